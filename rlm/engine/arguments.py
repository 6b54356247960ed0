"""Checks of the arguments of host calls.

A hostile cell can send any value, so the host checks again what the guest's functions checked. Each function raises
`HostCallRefused` with a message for the cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, TypeVar

from rlm.checks import whole_number
from rlm.errors import HostCallRefused, SchemaError
from rlm.structured.schema import Schema, schema_of

__all__ = [
    "Arguments",
    "children",
    "entries",
    "max_concurrent",
    "model",
    "per_call",
    "schema",
    "text",
    "texts",
]

Arguments: TypeAlias = Mapping[str, Any]
"""The arguments of a host call, as the guest sent them."""

T = TypeVar("T")

MAX_CONCURRENT = 1_000
MAX_ENTRIES = 100_000


def text(arguments: Arguments, name: str) -> str:
    """Return a required str."""
    value = arguments.get(name)
    if not isinstance(value, str):
        raise HostCallRefused(f"{name} must be a str, not {type(value).__name__}")
    return value


def texts(arguments: Arguments, name: str) -> list[str]:
    """Return a required list of str."""
    values = arguments.get(name)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise HostCallRefused(f"{name} must be a list of str")
    return _bounded(name, values)


def entries(arguments: Arguments, name: str) -> list[Any]:
    """Return a required list of values."""
    values = arguments.get(name)
    if not isinstance(values, list):
        raise HostCallRefused(f"{name} must be a list, not {type(values).__name__}")
    return _bounded(name, values)


def _bounded(name: str, values: list[T]) -> list[T]:
    """Return the values, unless there are so many that they would block the event loop of all runs."""
    if len(values) > MAX_ENTRIES:
        raise HostCallRefused(
            f"{name} has {len(values):,} entries, and one call takes at most {MAX_ENTRIES:,}: make several"
        )
    return values


def schema(arguments: Arguments) -> Schema | None:
    """Return the schema, or None if there is none."""
    source = arguments.get("schema")
    if source is None:
        return None
    if not isinstance(source, (str, dict)):
        raise HostCallRefused(f"schema must be a str, a dict or None, not {type(source).__name__}")
    try:
        return schema_of(source, trusted=False)
    except SchemaError as error:
        raise HostCallRefused(str(error)) from error


def per_call(arguments: Arguments) -> int | Literal["auto"]:
    """Return how many items go into one prompt; by default "auto"."""
    value = arguments.get("per_call", "auto")
    if value == "auto":
        return "auto"
    return _whole_number("per_call", value)


def children(arguments: Arguments) -> list[tuple[str, Any]]:
    """Return the question and the context of each child run."""
    items = arguments.get("items")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise HostCallRefused("items must be a list of (question, context) pairs")
    return [(text(item, "question"), item.get("context")) for item in _bounded("items", items)]


def model(arguments: Arguments) -> str | None:
    """Return the model, or None for the default."""
    value = arguments.get("model")
    if value is not None and not isinstance(value, str):
        raise HostCallRefused(f"model must be a str or None, not {type(value).__name__}")
    return value or None


def max_concurrent(arguments: Arguments) -> int:
    """Return how many calls may be in flight at once, at most `MAX_CONCURRENT`."""
    return min(_whole_number("max_concurrent", arguments.get("max_concurrent", 10)), MAX_CONCURRENT)


def _whole_number(name: str, value: Any) -> int:
    whole_number(name, value, error=HostCallRefused)
    return int(value)
