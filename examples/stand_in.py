"""A stand-in for a model, so that the examples run without a key: a rule answers each item. No language model.

What the examples then print of calls, tokens and seconds is real; their labels are as good as the rule, and dollars
are what the named model would have taken. The rules, one for each question of the examples, are below.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeAlias

from rlm import ScriptedClient
from rlm.bulk import amap_rows
from rlm.bulk.io.formats import FileSource
from rlm.bulk.templates import read_template
from rlm.errors import RLMError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from rlm.bulk.io.rows import Row
    from rlm.bulk.templates import Template
    from rlm.values import Call

    Rule: TypeAlias = Callable[[dict[str, Any], str], Any]
    """Item and model → answer."""

HAS_KEY = bool(os.environ.get("OPENAI_API_KEY"))
HAS_ENDPOINT = bool(os.environ.get("OPENAI_BASE_URL"))
WHO_ANSWERS = (
    f"OPENAI_API_KEY is set: asking {'the endpoint of OPENAI_BASE_URL' if HAS_ENDPOINT else 'OpenAI'}."
    if HAS_KEY
    else "No OPENAI_API_KEY: a scripted stand-in answers by rule. It is no language model, and costs nothing; "
    "dollars below are what the named model would have taken."
)


def stand_in(rules: Mapping[str, Rule], *, latency_s: float = 0.0) -> ScriptedClient | None:
    """A client that answers each of these prompts by its rule; None where there is a key, so that OpenAI is asked.

    It says which of the two. Rules may be added while it answers.
    """

    def answer(call: Call) -> str:
        text = call.messages[0].content
        for prompt, rule in rules.items():
            template = read_template(prompt)
            if text.startswith(template.instruction):
                lines = re.findall(r'^\{"id": .*\}$', text.rpartition("\n\nItems:\n")[2], re.MULTILINE)
                entries = [json.loads(line) for line in lines]
                results = [{"id": one["id"], "value": rule(one["item"], call.model)} for one in entries]
                return json.dumps({"results": results})
            if (item := _only_item(template, text)) is not None:
                value = rule(item, call.model)
                return json.dumps(value if isinstance(value, dict) else {"value": value})
        raise AssertionError(f"the stand-in does not know this prompt: {text[:200]!r}")

    print(WHO_ANSWERS)
    return None if HAS_KEY else ScriptedClient(answer, latency_s=latency_s)


def rows_of(path: Path, *columns: str) -> list[Row]:
    """The rows of a file that has these columns; without, the example ends in a sentence that names those it has."""
    try:
        rows = list(FileSource(path).rows())
    except RLMError as error:
        raise SystemExit(str(error)) from None
    if not rows:
        raise SystemExit(f"{path} has no rows")
    for name in columns:
        if name not in rows[0]:
            raise SystemExit(f"{path} has no column {name!r}: it has {', '.join(map(repr, rows[0]))}")
    return rows


async def compared_with_a_loop(rows: Sequence[Row], seconds: float, latency_s: float) -> str:
    """The factor against one call per row, one after the other, which is measured, too; with a key, it is not."""
    if HAS_KEY:
        return f"{len(rows):,} rows in {seconds:.2f} s"
    client = ScriptedClient(lambda _: "an answer", latency_s=latency_s)
    prompt = "What is to be done with this row?"
    loop = (await amap_rows(rows, prompt, rows_per_call=1, max_concurrent=1, client=client)).report
    return (
        f"{len(rows):,} rows in {seconds:.2f} s; one call for each, one after the other: {loop.usage.calls:,} calls, "
        f"{loop.seconds:.2f} s, measured at {latency_s} s per call: {loop.seconds / seconds:.0f} times faster"
    )


def _only_item(template: Template, text: str) -> dict[str, Any] | None:
    """The item of a call that asks about one alone: what stands where the template has its fields."""
    marked = template.render({name: f"\0{name}\0" for name in template.fields})
    literals, names = marked.split("\0")[::2], marked.split("\0")[1::2]
    found = re.fullmatch(
        "(.*?)".join(map(re.escape, literals)), text.partition("\n\nReply only with JSON")[0], re.DOTALL
    )
    return dict(zip(names, found.groups(), strict=True)) if found else None


# The rules ---------------------------------------------------------------------------------------------------------


def has_the_words(row: dict[str, Any], _model: str) -> dict[str, bool]:
    """New labels of a proverb: does it have one of a few words?"""
    words = {
        "contrast": r"\b(but|yet|than)\b",
        "money": r"\b(rich\w*|poor|treasures?|silver|gold|borrower|revenues|profit)\b",
        "command": r"^(go|make|prepare)\b",
    }
    text = next(iter(row.values())).lower()
    return {label: bool(re.search(pattern, text)) for label, pattern in words.items()}


def words_and_new_names(row: dict[str, Any], _model: str) -> dict[str, Any]:
    """What texts with one label teach: the words that most have; and new ones, with other names in their quotes."""
    texts = _value(row["texts"])
    words = Counter(word for text in texts for word in sorted(set(re.findall(r"[a-z]{3,}", text))))
    often = ", ".join(repr(word) for word, _ in words.most_common(3))
    new = [re.sub(r"'\w+'", f"'name_{n}'", texts[n % len(texts)]) for n in range(int(row["count"]))]
    return {"rule": f"often has {often}", "new": new}


def nearest(examples: Sequence[Mapping[str, str]]) -> Callable[[dict[str, Any], str], str]:
    """The label of the most similar example; each model compares runs of letters of another length."""

    def rule(row: dict[str, Any], model: str) -> str:
        length = 2 + len(model) % 3
        wanted = _runs(next(iter(row.values())), length)
        shared = [
            len(wanted & runs) / len(wanted | runs)
            for runs in (_runs(one["text"], length) for one in examples)
        ]
        return examples[shared.index(max(shared))]["label"]

    return rule


def points_made(row: dict[str, Any], _model: str) -> dict[str, Any]:
    """Points of an answer: one for each point of the rubric half of whose words are in it."""
    said = _words(row["answer"])
    wanted = [_words(point) for point in row["rubric"].split(";")]
    made = [number for number, words in enumerate(wanted, 1) if len(words & said) * 2 >= len(words)]
    return {"points": len(made), "reason": f"makes the points {made}"}


def most_frequent(row: dict[str, Any], _model: str) -> str:
    """The most frequent of a word and the similar ones; a word alone belongs to nothing."""
    near = _value(row["near"])
    words = {row["word"]: 1, **near}
    return max(words, key=words.__getitem__) if near else "outlier"


def _value(field: Any) -> Any:
    """A list or a dict, which stands as JSON in the prompt of a single item."""
    return json.loads(field) if isinstance(field, str) else field


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w{3,}|==", text.lower()))


def _runs(text: str, length: int) -> set[str]:
    return {text[start : start + length] for start in range(len(text))}
