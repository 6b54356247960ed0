"""JSON text of any value that a cell or a row may hold: compact for prompts, canonical for comparisons."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["canonical", "compact"]

_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, default=repr)
_COMPACT = json.JSONEncoder(ensure_ascii=False, default=str)


def canonical(content: Any) -> str:
    """Return a text that is equal for two values exactly if they are the same item."""
    try:
        return _CANONICAL.encode(content)
    except (
        TypeError,
        ValueError,
        ArithmeticError,
        RecursionError,
    ):  # ArithmeticError: a Decimal NaN as a key
        return _written(content)


def compact(value: Any) -> str:
    """Return a value as JSON on one line; a value that JSON cannot hold becomes a string of its repr."""
    try:
        return _COMPACT.encode(value)
    except (
        TypeError,
        ValueError,
        ArithmeticError,
        RecursionError,
    ):  # keys that are not strings, values that contain themselves
        return json.dumps(_written(value), ensure_ascii=False)


def _written(value: Any) -> str:
    """Return the repr, with ints in hexadecimal if one has more digits than Python converts to text."""
    try:
        return repr(value)
    except ValueError:
        return repr(_in_hexadecimal(value))


def _in_hexadecimal(value: Any) -> Any:
    match value:
        case int():
            return hex(value)
        case list() | tuple() | set() | frozenset():
            return type(value).__name__, [_in_hexadecimal(item) for item in value]
        case dict():
            return [(_in_hexadecimal(key), _in_hexadecimal(item)) for key, item in value.items()]
        case _:
            return value
