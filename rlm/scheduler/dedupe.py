"""Equal prompts of one batch are asked once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence
    from typing import Any

    from rlm.values import Call

__all__ = ["first_of_each", "occurrences"]


def first_of_each(calls: Sequence[Call]) -> list[int]:
    """For each call, the index of the first one that asks the same: `[0, 1, 0]` where the third equals the first.

    A batch that is one prompt repeated is sampling: there each call stands for itself.
    """
    first: dict[Hashable, int] = {}
    indices = [first.setdefault(_question(call), index) for index, call in enumerate(calls)]
    return list(range(len(calls))) if len(first) == 1 else indices


def occurrences(calls: Sequence[Call]) -> list[int]:
    """For each call, how many before it ask the same: `[0, 0, 1]` where the third equals the first."""
    seen: dict[Hashable, int] = {}
    numbers = []
    for call in calls:
        question = _question(call)
        numbers.append(seen.get(question, 0))
        seen[question] = numbers[-1] + 1
    return numbers


def _question(call: Call) -> Hashable:
    return (
        call.model,
        call.messages,
        call.max_output_tokens,
        call.temperature,
        _text_of(call.schema),
        _text_of(call.extra),
    )


def _text_of(options: Mapping[str, Any] | None) -> str:
    if not options:
        return ""
    try:
        return json.dumps(options, sort_keys=True, default=repr)
    except TypeError:  # keys of several types have no order
        return repr(options)
