"""Schemas of answers, read from a short form, JSON Schema or a class, and checked by this package.

    schema_of("label: 'spam'|'ham', score: float, tags: list[str]")     an object with these properties
    schema_of("bool")                                                   a single value
    schema_of({"type": "object", "properties": {...}})                  plain JSON Schema
    schema_of(Invoice)                                                  a dataclass or a pydantic model

    schema_of("score: float").check({"score": "high"})   →   'score: must be a number, not "high"'

The short form knows `str`, `int`, `float`, `bool`, `null`, `list[...]`, `{name: type, ...}`, literals such as `'a'`
or `3`, and `|` between them; `name?` is a property that may be null. In a literal, a backslash before a quote or
another backslash makes that a part of the text. Of JSON Schema it takes what providers take for structured output
(`KEYWORDS`); any other keyword is a `SchemaError`, because it would not be checked.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from rlm.errors import SchemaError
from rlm.structured.check import (
    ANNOTATIONS,
    KEYWORDS,
    SHOWN_CHARS,
    TYPES,
    Steps,
    TooManySteps,
    join_path,
    problems,
    quick_check,
    quoted,
    shown,
)
from rlm.structured.short_form import DEEPEST, any_of, closed_object, enum_of, from_names, from_text
from rlm.values import written_size
from rlm.wording import clipped

__all__ = ["Schema", "SchemaSource", "schema_of"]

SchemaSource: TypeAlias = "str | Mapping[str, Any] | type | Schema"
"""Anything that `schema_of` accepts."""

LARGEST: Final = 100_000
"""Greatest length, in characters, of a schema that comes from a cell."""
MOST_CHARS: Final = 10_000_000
"""Greatest length of a schema after its `$ref`s are resolved: references that double make a gigabyte of 2 kB."""
MESSAGE_CHARS: Final = 250
"""Greatest length of the message of a `SchemaError`, which a cell may be sent."""
PROBLEM_CHARS: Final = 2_000
"""Greatest length of a problem of an answer, which goes into the prompt that asks again."""
NODE_CHARS: Final = 20
STEPS: Final = 50_000
TRUSTED_STEPS: Final = 5_000_000
MOST_BITS: Final = 1_000
"""Greatest number of bits of a bound: comparing a float with a longer int raises `OverflowError`."""


@dataclass(frozen=True, slots=True)
class Schema:
    """A valid schema.

    Attributes:
        json: its JSON Schema with every `$ref` resolved.
        trusted: False if a cell wrote it. The number of steps of a check is then smaller, and a check that
            takes more is a problem of the answer.
    """

    json: Mapping[str, Any]
    trusted: bool = True
    _meets: Callable[[Any], bool] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_meets", quick_check(self.json))

    @property
    def is_object(self) -> bool:
        """Return True if only objects meet the schema, which providers require of the root."""
        return bool(self.json.get("type") == "object")

    @property
    def properties(self) -> tuple[str, ...]:
        """Return the names of the properties of an object, in order; () for any other schema."""
        return tuple(self.json.get("properties", ())) if self.is_object else ()

    def check(self, value: Any) -> str:
        """Return the first problem of a value as a sentence that a model can act on, or '' if it meets the schema."""
        if self._meets(value):
            return ""
        try:
            problem = next(
                problems(value, self.json, "", Steps(TRUSTED_STEPS if self.trusted else STEPS)), None
            )
        except TooManySteps:
            return "the answer is too long to be checked against this schema: reply with a shorter one"
        if problem is None:
            return ""
        path, sentence = problem
        return clipped(f"{path}: {sentence}" if path else sentence, PROBLEM_CHARS)


def schema_of(source: SchemaSource, *, trusted: bool = True) -> Schema:
    """Read a schema.

    Args:
        source: the short form, JSON Schema as a mapping or as text, a dataclass, or a pydantic model.
        trusted: True if the user wrote the schema. One that came from a cell may have no `pattern`, because a
            regular expression can be written to run for years.

    Raises:
        SchemaError: the source cannot be read, or has a keyword that cannot be checked.
    """
    if isinstance(source, Schema):
        return source
    if not trusted and written_size(source, LARGEST) > LARGEST:
        raise SchemaError(f"the schema is longer than {LARGEST:,} characters")
    try:
        return _schema_of(source, trusted)
    except SchemaError as error:
        raise SchemaError(clipped(str(error), MESSAGE_CHARS)) from error
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        # Such as an int of more digits than Python converts, or a Decimal that cannot be compared.
        raise SchemaError(clipped(f"the schema cannot be read: {error}", MESSAGE_CHARS)) from error


def _schema_of(source: Any, trusted: bool) -> Schema:
    match source:
        case str():
            schema = from_text(source)
        case Mapping():
            schema = from_names(source) or dict(source)
        case type():
            schema = _from_class(source)
        case _:
            raise SchemaError(
                f"a schema is text such as 'label: str, score: float', a dict, or a class, not {type(source).__name__}"
            )
    if not trusted:
        _require_json(schema)
    definitions = schema.get("$defs", {})
    if not isinstance(definitions, Mapping):
        raise SchemaError("$defs must be a mapping of names to schemas")
    largest = MOST_CHARS if trusted else LARGEST
    return Schema(_Reader(definitions, trusted, largest).read(schema, "", 0), trusted)


def _require_json(schema: Mapping[str, Any]) -> None:
    """Refuse values that JSON does not have, such as a Decimal: a provider is sent the schema as JSON."""
    try:
        json.dumps(schema)
    except (ValueError, TypeError, RecursionError) as error:
        raise SchemaError(f"the schema is not a JSON value: {error}") from error


# From JSON Schema ----------------------------------------------------------------------------------------------


class _Reader:
    """Reader of a JSON Schema: checks its keywords and resolves each `$ref`."""

    def __init__(self, definitions: Mapping[str, Any], trusted: bool, largest: int) -> None:
        self._definitions = definitions
        self._trusted = trusted
        self._largest = largest
        self._chars_left = largest

    def read(self, schema: Any, path: str, depth: int) -> dict[str, Any]:
        where = f" at {clipped(path, SHOWN_CHARS)}" if path else ""
        if depth > DEEPEST:
            raise SchemaError(f"the schema{where} is nested deeper than {DEEPEST} levels, or contains itself")
        if not isinstance(schema, Mapping):
            raise SchemaError(f"the schema{where} must be a mapping, not {type(schema).__name__}")
        if "$ref" in schema:
            return self.read(self._resolve(schema["$ref"], where), path, depth + 1)
        for key in schema:
            if key not in KEYWORDS and key not in ANNOTATIONS:
                hint = "; use anyOf" if key == "oneOf" else ""
                raise SchemaError(f"the schema{where} uses {quoted(str(key))}, which is not supported{hint}")
        self._check_values(schema, where)
        self._spend(schema)
        read = {key: value for key, value in schema.items() if key != "$defs"}
        if "properties" in read:
            read["properties"] = {
                str(name): self.read(inner, join_path(path, str(name)), depth + 1)
                for name, inner in read["properties"].items()
            }
        if "items" in read:
            read["items"] = self.read(read["items"], f"{path}[]", depth + 1)
        if "anyOf" in read:
            read["anyOf"] = [self.read(inner, path, depth + 1) for inner in read["anyOf"]]
        return read

    def _spend(self, schema: Mapping[str, Any]) -> None:
        """Count the part of a schema that is not in the schemas in it, each time it is read."""
        own = {
            key: value
            for key, value in schema.items()
            if key not in ("$defs", "properties", "items", "anyOf")
        }
        names = list(schema.get("properties", ()))
        self._chars_left -= NODE_CHARS + written_size([own, names], self._largest)
        if self._chars_left < 0:
            raise SchemaError(
                f"the schema is longer than {self._largest:,} characters when its $refs are resolved"
            )

    def _resolve(self, reference: Any, where: str) -> Any:
        name = str(reference).removeprefix("#/$defs/")
        if not str(reference).startswith("#/$defs/") or name not in self._definitions:
            raise SchemaError(
                f"the schema{where} refers to {quoted(str(reference))}, which is not in its $defs"
            )
        return self._definitions[name]

    def _check_values(self, schema: Mapping[str, Any], where: str) -> None:
        for key, (is_right, expected) in _KEYWORD_VALUES.items():
            if key in schema and not is_right(schema[key]):
                raise SchemaError(f"the schema{where} has {key}={shown(schema[key])}: must be {expected}")
        missing = set(schema.get("required", ())) - set(schema.get("properties", ()))
        if missing and schema.get("additionalProperties") is False:
            raise SchemaError(
                f"the schema{where} requires {shown(sorted(missing))}, which its properties do not have"
            )
        if "pattern" in schema:
            if not self._trusted:
                raise SchemaError(f"the schema{where} has a pattern, which a cell may not use")
            try:
                re.compile(schema["pattern"])
            except re.error as error:
                raise SchemaError(f"the schema{where} has an invalid pattern: {error}") from error


def _is_type(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in TYPES for name in names)


def _is_number(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and value.bit_length() <= MOST_BITS
    return isinstance(value, float) and math.isfinite(value)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << MOST_BITS


def _is_some_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


_KEYWORD_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "type": (_is_type, f"one of {', '.join(TYPES)}, or a list of them"),
    "properties": (lambda value: isinstance(value, Mapping), "a mapping of names to schemas"),
    "required": (
        lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
        "a list of names",
    ),
    "additionalProperties": (lambda value: isinstance(value, bool), "true or false"),
    "enum": (_is_some_list, "a list with at least one value"),
    "anyOf": (_is_some_list, "a list with at least one schema"),
    "minimum": (_is_number, "a number"),
    "maximum": (_is_number, "a number"),
    "minLength": (_is_size, "a whole number"),
    "maxLength": (_is_size, "a whole number"),
    "minItems": (_is_size, "a whole number"),
    "maxItems": (_is_size, "a whole number"),
    "pattern": (lambda value: isinstance(value, str), "a regular expression"),
}


# From classes --------------------------------------------------------------------------------------------------


def _from_class(source: type) -> dict[str, Any]:
    model_json_schema = getattr(source, "model_json_schema", None)  # pydantic, without importing it
    if callable(model_json_schema):
        schema: dict[str, Any] = model_json_schema()
        return schema
    return _from_annotation(source, 0)


def _from_annotation(annotation: Any, depth: int) -> dict[str, Any]:
    if depth > DEEPEST:
        raise SchemaError(f"the class is nested deeper than {DEEPEST} levels, or contains itself")
    simple = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
    if annotation in simple:
        return {"type": simple[annotation]}
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        hints = typing.get_type_hints(annotation)
        names = [field.name for field in dataclasses.fields(annotation)]
        return closed_object({name: _from_annotation(hints[name], depth + 1) for name in names})
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return enum_of(list(arguments))
    if origin is list:
        return {"type": "array", "items": _from_annotation(arguments[0], depth + 1)}
    if origin in {typing.Union, types.UnionType}:
        return any_of([_from_annotation(argument, depth + 1) for argument in arguments])
    raise SchemaError(
        f"no schema can be made of {annotation!r}: give a dataclass or pydantic model of str, int, float, bool, None, "
        "list[...], Literal[...] and such classes"
    )
