"""A model that labels items the way a test says: the far side of packed prompts."""

from __future__ import annotations

import json
import re

__all__ = ["answer", "items_in"]

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
