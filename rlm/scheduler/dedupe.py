"""Decide which calls are equal: equal calls of one batch are sent once, and the cache answers a call sent before."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence
    from typing import Any

    from rlm.values import Call

__all__ = ["first_of_each", "identity", "occurrences"]


def first_of_each(calls: Sequence[Call]) -> list[int]:
    """Return, for each call, the index of the first equal one: `[0, 1, 0]` if the third equals the first.

    A batch that repeats one prompt is sampling: each of its calls is its own first.
    """
    first: dict[Hashable, int] = {}
    indices = [first.setdefault(identity(call), index) for index, call in enumerate(calls)]
    return list(range(len(calls))) if len(first) == 1 else indices


def occurrences(calls: Sequence[Call]) -> list[int]:
    """Return, for each call, how many equal calls precede it: `[0, 0, 1]` if the third equals the first."""
    seen: dict[Hashable, int] = {}
    numbers = []
    for call in calls:
        key = identity(call)
        numbers.append(seen.get(key, 0))
        seen[key] = numbers[-1] + 1
    return numbers


def identity(call: Call) -> Hashable:
    """Return everything of a call that reaches the model, hashable; its `repr` is the same in every process."""
    return (
        call.model,
        call.messages,
        call.max_output_tokens,
        call.temperature,
        _text_of(call.schema),
        _text_of(call.extra),
    )


def _text_of(options: Mapping[str, Any] | None) -> str | None:
    if options is None:
        return None
    try:
        return json.dumps(dict(options), sort_keys=True, default=repr)
    except (TypeError, ValueError):  # keys of several types have no order; a list may contain itself
        return repr(options)
