"""A stand-in for a model, so that the examples run without a key: a rule answers each item. No language model.

What the examples then print of calls, tokens and seconds is real; their labels are as good as the rule, and dollars
are what the named model would have taken. The rules, one for each question of the examples, are below.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from rlm import ScriptedClient

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rlm.values import Call

HAS_KEY = bool(os.environ.get("OPENAI_API_KEY"))
WHO_ANSWERS = (
    "OPENAI_API_KEY is set: asking OpenAI."
    if HAS_KEY
    else "No OPENAI_API_KEY: a scripted stand-in answers by rule. It is no language model, and costs nothing; "
    "dollars below are what the named model would have taken."
)


def stand_in(
    rule: Callable[[Any, str], Any], prompt: str, *, latency_s: float = 0.0
) -> ScriptedClient | None:
    """A client that answers by `rule(item, model)`, or None where there is a key, so that OpenAI is asked."""

    def answer(call: Call) -> str:
        text = call.messages[0].content
        items = re.findall(r'^\{"id": .*\}$', text.rpartition("\n\nItems:\n")[2], re.MULTILINE)
        if not items:
            value = rule(_only_item(text, prompt), call.model)
            return json.dumps(value if isinstance(value, dict) else {"value": value})
        entries = [json.loads(item) for item in items]
        return json.dumps(
            {"results": [{"id": entry["id"], "value": rule(entry["item"], call.model)} for entry in entries]}
        )

    return None if HAS_KEY else ScriptedClient(answer, latency_s=latency_s)


def _only_item(text: str, prompt: str) -> Any:
    """The item of a call that asks about one alone: where the fields of the prompt stand, or the JSON below it."""
    text = text.partition("\n\nReply only with JSON")[0]
    if "{{" not in prompt:
        return json.loads(text.removeprefix(prompt))
    pattern = re.sub(r"\\\{\\\{(\w+)\\\}\\\}", r"(?P<\1>.*?)", re.escape(prompt))
    found = re.fullmatch(pattern, text, re.DOTALL)
    assert found, f"the stand-in does not know this prompt: {text[:200]!r}"  # noqa: S101 - a script
    return found.groupdict()


# The rules ---------------------------------------------------------------------------------------------------------


def has_the_words(row: dict[str, Any], _model: str) -> dict[str, bool]:
    """New labels of a proverb: does it have one of a few words?"""
    words = {
        "contrast": r"\b(but|yet|than)\b",
        "money": r"\b(rich\w*|poor|treasures?|silver|gold|borrower|revenues|profit)\b",
        "command": r"^(go|make|prepare)\b",
    }
    return {label: bool(re.search(pattern, row["text"].lower())) for label, pattern in words.items()}


def frequent_words(row: dict[str, Any], _model: str) -> dict[str, str]:
    """A rule for a label: the words that most of its texts have."""
    words = Counter(
        word for text in row["texts"].splitlines() for word in set(re.findall(r"[a-z]{3,}", text))
    )
    return {"rule": f"often has {', '.join(repr(word) for word, _ in words.most_common(3))}"}


def renamed(row: dict[str, Any], _model: str) -> dict[str, list[str]]:
    """New texts: the known ones with other names in their quotes."""
    texts = row["texts"].splitlines()
    return {"new": [re.sub(r"'\w+'", f"'name_{n}'", texts[n % len(texts)]) for n in range(int(row["count"]))]}


def nearest(examples: Sequence[Mapping[str, str]]) -> Callable[[dict[str, Any], str], dict[str, str]]:
    """The label of the most similar example; each model compares runs of letters of another length."""

    def rule(row: dict[str, Any], model: str) -> dict[str, str]:
        length = 2 + len(model) % 3
        wanted = _runs(row["text"], length)
        shared = [
            len(wanted & runs) / len(wanted | runs)
            for runs in (_runs(one["text"], length) for one in examples)
        ]
        return {"predicted": examples[shared.index(max(shared))]["label"]}

    return rule


def points_made(row: dict[str, Any], _model: str) -> dict[str, Any]:
    """Points of an answer: one for each point of the rubric half of whose words are in it."""
    said = _words(row["answer"])
    wanted = [_words(point) for point in row["rubric"].split(";")]
    made = [number for number, words in enumerate(wanted, 1) if len(words & said) * 2 >= len(words)]
    return {"points": len(made), "reason": f"makes the points {made}"}


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w{3,}|==", text.lower()))


def _runs(text: str, length: int) -> set[str]:
    return {text[start : start + length] for start in range(len(text))}
