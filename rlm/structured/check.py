"""Check of a JSON value against a schema; a problem is a place and a sentence that a model can act on.

This is ours because the sentences go into retry prompts, because a check of a hostile value must stay within bounds,
and because answers come by the million: `quick_check` compiles a schema into closures that accept most of them.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from rlm.values import written_size
from rlm.wording import clipped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = [
    "ANNOTATIONS",
    "KEYWORDS",
    "SHOWN_CHARS",
    "TYPES",
    "Steps",
    "TooManySteps",
    "join_path",
    "problems",
    "quick_check",
    "quoted",
    "shown",
    "type_name",
]

KEYWORDS: Final = frozenset(
    {
        "type",
        "properties",
        "required",
        "additionalProperties",
        "enum",
        "const",
        "items",
        "anyOf",
        "minimum",
        "maximum",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "pattern",
    }
)
ANNOTATIONS: Final = frozenset(
    {"title", "description", "default", "examples", "format", "$schema", "$defs", "$id", "$comment"}
)
TYPES: Final = ("string", "number", "integer", "boolean", "null", "array", "object")
SHOWN_CHARS: Final = 60
MOST_SHOWN: Final = 10_000
"""Greatest size of a value that is written out for a message."""

_Problem: TypeAlias = tuple[str, str]
_NOUNS = {
    "string": "a string",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "null": "null",
    "array": "a list",
    "object": "an object",
}


class TooManySteps(Exception):
    """A check took more steps than it may."""


class Steps:
    """Number of steps that a check may still take: a long value times a schema of many alternatives takes for ever."""

    def __init__(self, most: int) -> None:
        self._left = most

    def spend(self, count: int) -> None:
        """Count so many steps.

        Raises:
            TooManySteps: no more are left.
        """
        self._left -= count
        if self._left < 0:
            raise TooManySteps


def problems(value: Any, schema: Mapping[str, Any], path: str, steps: Steps) -> Iterator[_Problem]:
    """Yield a path and a sentence for each way in which a value breaks its schema, the outermost first."""
    steps.spend(1 + len(schema.get("enum", ())) + len(schema.get("required", ())))
    if "type" in schema and not _is_of_type(value, schema["type"]):
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        yield path, f"must be {' or '.join(_NOUNS[name] for name in names)}, not {shown(value)}"
        return
    if "enum" in schema and not any(_same(value, choice) for choice in schema["enum"]):
        choices = ", ".join(shown(choice) for choice in schema["enum"][:20])
        yield path, f"must be one of {choices}, not {shown(value)}"
    if "const" in schema and not _same(value, schema["const"]):
        yield path, f"must be {shown(schema['const'])}, not {shown(value)}"
    if "anyOf" in schema:
        yield from _any_of_problems(value, schema["anyOf"], path, steps)
    match value:
        case bool() | None:
            return
        case int() | float():
            yield from _number_problems(value, schema, path)
        case str():
            yield from _text_problems(value, schema, path)
        case list():
            yield from _list_problems(value, schema, path, steps)
        case dict():
            yield from _object_problems(value, schema, path, steps)
        case _:
            yield path, f"must be a JSON value, not {type(value).__name__}"


def _any_of_problems(
    value: Any, choices: list[Mapping[str, Any]], path: str, steps: Steps
) -> Iterator[_Problem]:
    found: list[_Problem] = []
    for choice in choices:
        problem = next(problems(value, choice, path, steps), None)
        if problem is None:
            return
        found.append(problem)
    # The alternative whose problem is deepest in the value is most likely the one that was meant.
    deepest = max(found, key=lambda problem: len(problem[0]))
    if deepest[0] != path:
        yield deepest
    else:
        yield path, "; or ".join(dict.fromkeys(sentence for _, sentence in found))


def _number_problems(value: Any, schema: Mapping[str, Any], path: str) -> Iterator[_Problem]:
    if isinstance(value, float) and not math.isfinite(value):
        yield path, "must be a finite number"
        return
    if "minimum" in schema and value < schema["minimum"]:
        yield path, f"must be at least {schema['minimum']}, not {shown(value)}"
    if "maximum" in schema and value > schema["maximum"]:
        yield path, f"must be at most {schema['maximum']}, not {shown(value)}"


def _text_problems(value: str, schema: Mapping[str, Any], path: str) -> Iterator[_Problem]:
    yield from _size_problems(len(value), schema, path, ("minLength", "maxLength"), "characters")
    if "pattern" in schema and re.search(schema["pattern"], value) is None:
        yield path, f"must match the pattern {schema['pattern']}, as {shown(value)} does not"


def _list_problems(
    value: list[Any], schema: Mapping[str, Any], path: str, steps: Steps
) -> Iterator[_Problem]:
    yield from _size_problems(len(value), schema, path, ("minItems", "maxItems"), "items")
    if "items" in schema:
        for index, item in enumerate(value):
            yield from problems(item, schema["items"], f"{path}[{index}]", steps)


def _object_problems(
    value: dict[str, Any], schema: Mapping[str, Any], path: str, steps: Steps
) -> Iterator[_Problem]:
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield join_path(path, name), "is missing"
    for name, item in value.items():
        if name in properties:
            yield from problems(item, properties[name], join_path(path, str(name)), steps)
        elif schema.get("additionalProperties") is False:
            known = ", ".join(properties) or "none"
            yield (
                join_path(path, str(name)[:SHOWN_CHARS]),
                f"is no property there; the properties are {known}",
            )


def _size_problems(
    size: int, schema: Mapping[str, Any], path: str, bounds: tuple[str, str], unit: str
) -> Iterator[_Problem]:
    least, most = bounds
    if least in schema and size < schema[least]:
        yield path, f"must have at least {schema[least]} {unit}, not {size}"
    if most in schema and size > schema[most]:
        yield path, f"must have at most {schema[most]} {unit}, not {size}"


_PLAIN: Final = (
    frozenset({"type", "properties", "required", "additionalProperties", "enum", "items"}) | ANNOTATIONS
)


def quick_check(schema: Mapping[str, Any]) -> Callable[[Any], bool]:
    """Compile a schema into a fast check that returns True only for values that meet it.

    False means "not known": `problems` decides then. Nearly all of millions of answers are valid, so this saves most
    of the time.
    """
    kind = schema.get("type")
    if not isinstance(kind, str) or not schema.keys() <= _PLAIN:
        return lambda _value: False
    if kind == "object" and "enum" not in schema:
        return _quick_object_check(schema)
    if kind == "array" and "enum" not in schema:
        check_item = quick_check(schema["items"]) if "items" in schema else None
        return lambda value: type(value) is list and (check_item is None or all(map(check_item, value)))
    if kind == "string" and "enum" in schema:
        texts = frozenset(choice for choice in schema["enum"] if isinstance(choice, str))
        return lambda value: type(value) is str and value in texts
    exact = {"string": str, "boolean": bool, "integer": int}.get(kind) if "enum" not in schema else None
    if kind == "number" and "enum" not in schema:
        return lambda value: type(value) is int or (type(value) is float and math.isfinite(value))
    return lambda value: type(value) is exact


def _quick_object_check(schema: Mapping[str, Any]) -> Callable[[Any], bool]:
    checks = {name: quick_check(inner) for name, inner in schema.get("properties", {}).items()}
    required = frozenset(schema.get("required", ()))

    def meets(value: Any) -> bool:
        if type(value) is not dict or not required <= value.keys():
            return False
        for name, item in value.items():
            check = checks.get(name)
            if check is None or not check(item):
                return False
        return True

    return meets


_EXACT: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (float, int),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}


def _is_of_type(value: Any, names: str | list[str]) -> bool:
    if isinstance(names, str):
        return _is_one_type(value, names)
    return any(_is_one_type(value, name) for name in names)


def _is_one_type(value: Any, name: str) -> bool:
    # Compare classes instead of isinstance: in Python, True is an int.
    if type(value) in _EXACT[name]:
        return True
    return name == "integer" and type(value) is float and value.is_integer()


def type_name(value: Any) -> str:
    """Return the name of the narrowest JSON type of a value, or "other"."""
    return next(
        name
        for name in ("boolean", "integer", *TYPES, "other")
        if name == "other" or _is_one_type(value, name)
    )


def _same(value: Any, other: Any) -> bool:
    """Return True if two values are equal as JSON: 1 equals 1.0, and neither equals true."""
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(_same, value, other))
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(_same(value[key], other[key]) for key in value)
    return bool(value == other)


def join_path(path: str, name: str) -> str:
    """Return the path of a property inside the object at `path`."""
    return f"{path}.{name}" if path else name


def shown(value: Any) -> str:
    """Return a value as JSON for a message, cut to `SHOWN_CHARS`; a large one is named by its type."""
    if isinstance(value, str):
        value = value[:SHOWN_CHARS]  # before its quotes and escapes are made
    elif written_size(value, MOST_SHOWN) > MOST_SHOWN:
        return f"a large {type(value).__name__}"
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return clipped(text, SHOWN_CHARS)


def quoted(text: str) -> str:
    """Return a text in Python's quotes for a message, cut to `SHOWN_CHARS`."""
    return clipped(repr(text[:SHOWN_CHARS]), SHOWN_CHARS)
