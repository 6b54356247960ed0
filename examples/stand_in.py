"""A stand-in for a model, so that the examples run without a key: a rule answers each item. No language model.

What the examples then print of calls, tokens and seconds is real; their labels are as good as the rule, and dollars
are what the named model would have taken.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

from rlm import ScriptedClient

if TYPE_CHECKING:
    from collections.abc import Callable

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
