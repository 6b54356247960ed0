"""Checks of the arguments of host calls.

A hostile cell can send any value, so the host checks again what the guest's functions checked. Each function raises
`HostCallRefused` with a short message for the cell. It bounds an argument before it works on it: the event loop is that
of all runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, TypeVar

import anyio.to_thread

from rlm.errors import HostCallRefused, SchemaError
from rlm.structured.check import shown
from rlm.structured.schema import Schema, schema_of
from rlm.values import written_size
from rlm.wording import clipped

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
MAX_TEXT_CHARS = 10_000_000
"""Greatest length of a prompt, an instruction or a question: no model reads as much."""
MAX_NAME_CHARS = 200
MAX_NUMBER = 1_000_000_000
SMALL_SCHEMA = 2_000
"""Length of a schema that is read on the event loop; a longer one, or one with references, is read in a thread."""


def text(arguments: Arguments, name: str) -> str:
    """Return a required str."""
    value = arguments.get(name)
    if not isinstance(value, str):
        raise HostCallRefused(f"{name} must be a str, not {type(value).__name__}")
    return _not_too_long(name, value)


def texts(arguments: Arguments, name: str) -> list[str]:
    """Return a required list of str."""
    values = entries(arguments, name)
    for value in values:
        if not isinstance(value, str):
            raise HostCallRefused(f"{name} must be a list of str")
        _not_too_long(f"an entry of {name}", value)
    return values


def entries(arguments: Arguments, name: str) -> list[Any]:
    """Return a required list of values."""
    values = arguments.get(name)
    if not isinstance(values, list):
        raise HostCallRefused(f"{name} must be a list, not {type(values).__name__}")
    return _bounded(name, values)


def _bounded(name: str, values: list[T]) -> list[T]:
    if len(values) > MAX_ENTRIES:
        raise HostCallRefused(
            f"{name} has {len(values):,} entries, and one call takes at most {MAX_ENTRIES:,}: make several"
        )
    return values


def _not_too_long(name: str, value: str) -> str:
    if len(value) > MAX_TEXT_CHARS:
        raise HostCallRefused(
            f"{name} has {len(value):,} characters, and a model is given at most {MAX_TEXT_CHARS:,}: pass a smaller piece"
        )
    return value


async def schema(arguments: Arguments) -> Schema | None:
    """Return the schema, or None if there is none."""
    source = arguments.get("schema")
    if source is None:
        return None
    if not isinstance(source, (str, dict)):
        raise HostCallRefused(f"schema must be a str, a dict or None, not {type(source).__name__}")
    try:
        if "$defs" not in source and written_size(source, SMALL_SCHEMA) <= SMALL_SCHEMA:
            return _schema(source)
        return await anyio.to_thread.run_sync(_schema, source)
    except SchemaError as error:
        raise HostCallRefused(str(error)) from error


def _schema(source: str | dict[str, Any]) -> Schema:
    return schema_of(source, trusted=False)


def per_call(arguments: Arguments) -> int | Literal["auto"]:
    """Return how many items go into one prompt; by default "auto"."""
    value = arguments.get("per_call", "auto")
    if isinstance(value, str) and value == "auto":
        return "auto"
    return _whole_number("per_call", value)


def children(arguments: Arguments) -> list[tuple[str, Any]]:
    """Return the question and the context of each child run."""
    items = entries(arguments, "items")
    if not all(isinstance(item, dict) for item in items):
        raise HostCallRefused("items must be a list of (question, context) pairs")
    return [(text(item, "question"), item.get("context")) for item in items]


def model(arguments: Arguments) -> str | None:
    """Return the model, or None for the default."""
    value = arguments.get("model")
    if value is not None and not isinstance(value, str):
        raise HostCallRefused(f"model must be a str or None, not {type(value).__name__}")
    if value and len(value) > MAX_NAME_CHARS:
        raise HostCallRefused(f"there is no model {clipped(value, 40)!r}")
    return value or None


def max_concurrent(arguments: Arguments, allowed: int) -> int:
    """Return how many calls may be in flight at once: by default as many as `allowed`, at most `MAX_CONCURRENT`."""
    value = arguments.get("max_concurrent")
    return min(allowed if value is None else _whole_number("max_concurrent", value), MAX_CONCURRENT)


def _whole_number(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_NUMBER:
        raise HostCallRefused(f"{name}={shown(value)}: must be a whole number from 1 to {MAX_NUMBER:,}")
    return int(value)
