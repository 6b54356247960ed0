"""Find equal calls of one batch, which are sent once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence
    from typing import Any

    from rlm.values import Call

__all__ = ["first_of_each", "occurrences"]


def first_of_each(calls: Sequence[Call]) -> list[int]:
    """Return, for each call, the index of the first equal one: `[0, 1, 0]` if the third equals the first.

    A batch that repeats one prompt is sampling: each of its calls is its own first.
    """
    first: dict[Hashable, int] = {}
    indices = [first.setdefault(_identity(call), index) for index, call in enumerate(calls)]
    return list(range(len(calls))) if len(first) == 1 else indices


def occurrences(calls: Sequence[Call]) -> list[int]:
    """Return, for each call, how many equal calls precede it: `[0, 0, 1]` if the third equals the first."""
    seen: dict[Hashable, int] = {}
    numbers = []
    for call in calls:
        identity = _identity(call)
        numbers.append(seen.get(identity, 0))
        seen[identity] = numbers[-1] + 1
    return numbers


def _identity(call: Call) -> Hashable:
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
