"""A model that labels items the way a test says: the far side of packed prompts; and tables to label."""

from __future__ import annotations

import csv
import json
import re

__all__ = ["SCHEMA", "answer", "items_in", "label", "parity", "read_csv", "write_csv"]

SCHEMA = "label: 'odd'|'even'"

PACKED = "\n\nItems:\n"


def items_in(prompt):
    """The items of a packed prompt by id, or `{}` for the prompt of a single item."""
    if PACKED not in prompt:
        return {}
    lines = re.findall(r'^\{"id": .*\}$', prompt.rpartition(PACKED)[2], re.MULTILINE)
    return {entry["id"]: entry["item"] for entry in map(json.loads, lines)}


def answer(prompt, value_of):
    """A right reply to a prompt; `value_of` gives the value of a packed item, or of the text of a single prompt."""
    items = items_in(prompt)
    if not items:
        value = value_of(prompt)
        return json.dumps(value) if isinstance(value, dict) else json.dumps({"value": value})
    return json.dumps({"results": [{"id": key, "value": value_of(item)} for key, item in items.items()]})


def parity(item):
    """The right label by `SCHEMA` of an item, or a prompt, whose text ends with a number."""
    text = item["text"] if isinstance(item, dict) else item.split("\n")[0]
    return {"label": "odd" if int(text.split()[-1]) % 2 else "even"}


def label(call):
    """The right reply to a call that asks for parities."""
    return answer(call.messages[0].content, parity)


def write_csv(path, texts):
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["n", "text"])
        lines.writerows(enumerate(texts))
    return path


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
