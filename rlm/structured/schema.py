"""What an answer must look like: read from a short form or JSON Schema, and checked by us.

    schema_of("label: 'spam'|'ham', score: float, tags: list[str]")     an object with these properties
    schema_of("bool")                                                   a single value
    schema_of({"type": "object", "properties": {...}})                  plain JSON Schema
    schema_of(Invoice)                                                  a dataclass or a pydantic model

    schema_of("score: float").check({"score": "high"})   →   'score: must be a number, not "high"'

The short form knows `str`, `int`, `float`, `bool`, `null`, `list[...]`, `{name: type, ...}`, literals such as `'a'`
or `3`, and `|` between them; `name?` is a property that may be null. In a literal, a backslash before a quote or
another backslash makes that a part of the text. Of JSON Schema it takes what providers take for structured output
(`KEYWORDS`); anything else is a `SchemaError`, because a rule that nobody checks is no rule.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from rlm.errors import SchemaError

__all__ = ["Schema", "SchemaSource", "schema_of"]

SchemaSource: TypeAlias = "str | Mapping[str, Any] | type | Schema"
"""What a schema can be made of."""

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
DEEPEST: Final = 30
"""Levels of schemas in schemas; also what keeps a check of a hostile answer from recursing without end."""
LARGEST: Final = 100_000
"""Characters of a schema that comes from where nobody vouches for it."""
SHOWN_CHARS: Final = 60


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema that was found right; `json` is its JSON Schema, with nothing left to look up."""

    json: Mapping[str, Any]
    _meets: Callable[[Any], bool] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_meets", _quick_check(self.json))

    @property
    def is_object(self) -> bool:
        """Whether only objects meet it, which is what providers ask of the root of a schema."""
        return bool(self.json.get("type") == "object")

    @property
    def properties(self) -> tuple[str, ...]:
        """The names of the properties of an object, in order; () for any other schema."""
        return tuple(self.json.get("properties", ())) if self.is_object else ()

    def check(self, value: Any) -> str:
        """What is wrong with a value, in words that a model can act on: '' where it meets the schema."""
        if self._meets(value):
            return ""
        problem = next(_problems(value, self.json, ""), None)
        if problem is None:
            return ""
        path, sentence = problem
        return f"{path}: {sentence}" if path else sentence


def schema_of(source: SchemaSource, *, trusted: bool = True) -> Schema:
    """Read a schema.

    Args:
        source: the short form, JSON Schema as a mapping or as text, a dataclass, or a pydantic model.
        trusted: whether it was written by the user. A schema that came from a cell may hold no `pattern`, since a
            regular expression can be made to run for years.

    Raises:
        SchemaError: it is not understood, or holds what cannot be checked.
    """
    match source:
        case Schema():
            return source
        case str():
            schema = _from_text(source)
        case Mapping():
            schema = _from_names(source) or dict(source)
        case type():
            schema = _from_class(source)
        case _:
            raise SchemaError(
                f"a schema is text such as 'label: str, score: float', a dict, or a class, not {type(source).__name__}"
            )
    if not trusted:
        _refuse_large(schema)
    definitions = schema.get("$defs", {})
    if not isinstance(definitions, Mapping):
        raise SchemaError("$defs must be a mapping of names to schemas")
    return Schema(_Reader(definitions, trusted).read(schema, "", 0))


def _refuse_large(schema: Mapping[str, Any]) -> None:
    try:
        size = len(json.dumps(schema, default=repr))
    except (ValueError, TypeError, RecursionError) as error:
        raise SchemaError("the schema is no JSON value") from error
    if size > LARGEST:
        raise SchemaError(f"the schema is longer than {LARGEST:,} characters")


# From JSON Schema ----------------------------------------------------------------------------------------------


class _Reader:
    """Checks a JSON Schema, and puts what `$ref` names in its place."""

    def __init__(self, definitions: Mapping[str, Any], trusted: bool) -> None:
        self._definitions = definitions
        self._trusted = trusted

    def read(self, schema: Any, path: str, depth: int) -> dict[str, Any]:
        where = f" at {path}" if path else ""
        if depth > DEEPEST:
            raise SchemaError(f"the schema{where} is nested deeper than {DEEPEST} levels, or holds itself")
        if not isinstance(schema, Mapping):
            raise SchemaError(f"the schema{where} must be a mapping, not {type(schema).__name__}")
        if "$ref" in schema:
            return self.read(self._resolve(schema["$ref"], where), path, depth + 1)
        for key in schema:
            if key not in KEYWORDS and key not in ANNOTATIONS:
                hint = "; use anyOf" if key == "oneOf" else ""
                raise SchemaError(f"the schema{where} uses {key!r}, which cannot be checked here{hint}")
        self._check_values(schema, where)
        read = {key: value for key, value in schema.items() if key != "$defs"}
        if "properties" in read:
            read["properties"] = {
                str(name): self.read(inner, _join(path, str(name)), depth + 1)
                for name, inner in read["properties"].items()
            }
        if "items" in read:
            read["items"] = self.read(read["items"], f"{path}[]", depth + 1)
        if "anyOf" in read:
            read["anyOf"] = [self.read(inner, path, depth + 1) for inner in read["anyOf"]]
        return read

    def _resolve(self, reference: Any, where: str) -> Any:
        name = str(reference).removeprefix("#/$defs/")
        if not str(reference).startswith("#/$defs/") or name not in self._definitions:
            raise SchemaError(f"the schema{where} refers to {reference!r}, which its $defs do not hold")
        return self._definitions[name]

    def _check_values(self, schema: Mapping[str, Any], where: str) -> None:
        for key, (is_right, expected) in _KEYWORD_VALUES.items():
            if key in schema and not is_right(schema[key]):
                raise SchemaError(f"the schema{where} has {key}={_shown(schema[key])}: must be {expected}")
        missing = set(schema.get("required", ())) - set(schema.get("properties", ()))
        if missing and schema.get("additionalProperties") is False:
            raise SchemaError(
                f"the schema{where} requires {sorted(missing)}, which its properties do not have"
            )
        if "pattern" in schema:
            if not self._trusted:
                raise SchemaError(f"the schema{where} has a pattern, which a cell may not use")
            try:
                re.compile(schema["pattern"])
            except re.error as error:
                raise SchemaError(f"the schema{where} has a pattern that is none: {error}") from error


def _is_type(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in TYPES for name in names)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


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


# From the short form -------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"\s*(?:(?P<text>'(?:[^'\\]|\\(?s:.))*'|\"(?:[^\"\\]|\\(?s:.))*\")|(?P<number>-?\d+(?:\.\d+)?)|(?P<name>[^\W\d]\w*)|(?P<mark>[:,|\[\]{}?])|(?P<end>$))"
)
_ESCAPE = re.compile(r"\\(['\"\\])")
_NAMED = {
    "str": "string",
    "string": "string",
    "text": "string",
    "int": "integer",
    "integer": "integer",
    "float": "number",
    "number": "number",
    "bool": "boolean",
    "boolean": "boolean",
    "null": "null",
    "None": "null",
}
_CONTAINERS = {"list": "array"}
_CONSTANTS = {"true": True, "True": True, "false": False, "False": False}


def _from_names(source: Mapping[str, Any]) -> dict[str, Any] | None:
    """The short form as `{"label": "str"}`, which people write where JSON Schema is meant to be."""
    is_short = all(isinstance(value, str) for value in source.values()) and source
    if not is_short or any(key in KEYWORDS or str(key).startswith("$") for key in source):
        return None
    return _from_text(", ".join(f"{_quoted(str(key))}: {value}" for key, value in source.items()))


def _quoted(name: str) -> str:
    """A name as the short form takes it."""
    mark = '"' if "'" in name else "'"
    return name if name.isidentifier() else f"{mark}{name}{mark}"


def _from_text(text: str) -> dict[str, Any]:
    if text.lstrip().startswith("{") and '"' in text:
        try:
            schema = json.loads(text)
        except (ValueError, RecursionError):
            pass  # it may still be an object in the short form
        else:
            return schema if isinstance(schema, dict) else {}
    if not text.strip():
        raise SchemaError("the schema is empty: write for example 'label: str, score: float'")
    return _ShortForm(text).read()


class _ShortForm:
    """Recursive descent over `name: type, ...` or a single type."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._kind, self._token = "", ""
        self._advance()

    def read(self) -> dict[str, Any]:
        schema = self._object("") if self._names_a_property() else self._union(0)
        if self._kind != "end":
            raise self._unexpected("the end")
        return schema

    def _names_a_property(self) -> bool:
        return self._kind in {"name", "text"} and self._text[self._position :].lstrip()[:1] in {":", "?"}

    def _object(self, closing: str, depth: int = 0) -> dict[str, Any]:
        properties: dict[str, Any] = {}
        while not (self._token == closing and self._kind in {"mark", "end"}):
            if self._kind not in {"name", "text"}:
                raise self._unexpected("the name of a property")
            name = self._token
            self._advance()
            if name in properties:
                raise SchemaError(f"the schema {self._text!r} has the property {name!r} twice")
            optional = self._take("?")
            self._expect(":")
            schema = self._union(depth)
            properties[name] = _or_null(schema) if optional else schema
            if not self._take(","):
                break
        if not properties:
            raise self._unexpected("a property")
        return _closed_object(properties)

    def _union(self, depth: int) -> dict[str, Any]:
        if depth > DEEPEST:
            raise SchemaError(f"the schema is nested deeper than {DEEPEST} levels")
        choices = [self._single(depth)]
        while self._take("|"):
            choices.append(self._single(depth))
        return _any_of(choices)

    def _single(self, depth: int) -> dict[str, Any]:
        kind, token = self._kind, self._token
        if self._take("{"):
            schema = self._object("}", depth + 1)
            self._expect("}")
            return schema
        if kind not in {"name", "text", "number"}:
            raise self._unexpected("a type")
        self._advance()
        if kind == "text":
            return {"enum": [token]}
        if kind == "number":
            return {"enum": [float(token) if "." in token else int(token)]}
        if token in _CONSTANTS:
            return {"enum": [_CONSTANTS[token]]}
        if token in _CONTAINERS:
            self._expect("[")
            items = self._union(depth + 1)
            self._expect("]")
            return {"type": _CONTAINERS[token], "items": items}
        if token not in _NAMED:
            raise SchemaError(
                f"the schema {self._text!r} has the type {token!r}: the types are str, int, float, bool, null, "
                "list[...], {...} and literals in quotes"
            )
        return {"type": _NAMED[token]}

    def _take(self, mark: str) -> bool:
        if self._kind == "mark" and self._token == mark:
            self._advance()
            return True
        return False

    def _expect(self, mark: str) -> None:
        if not self._take(mark):
            raise self._unexpected(f"`{mark}`")

    def _advance(self) -> None:
        found = _TOKEN.match(self._text, self._position)
        if found is None:
            raise SchemaError(f"the schema {self._text!r} is not understood from {self._rest()!r} on")
        self._position = found.end()
        self._kind = str(found.lastgroup)
        token = found[self._kind]
        self._token = _ESCAPE.sub(r"\1", token[1:-1]) if self._kind == "text" else token

    def _unexpected(self, expected: str) -> SchemaError:
        found = f"{self._token!r}" if self._kind != "end" else "its end"
        return SchemaError(f"the schema {self._text!r} should have {expected} where {found} is")

    def _rest(self) -> str:
        return self._text[self._position :].strip()[:20]


def _closed_object(properties: dict[str, Any]) -> dict[str, Any]:
    """An object as OpenAI's strict mode wants it: closed, and with every property required."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _any_of(choices: list[dict[str, Any]]) -> dict[str, Any]:
    """One schema for several: literals become one enum, all else anyOf."""
    literals = [value for choice in choices for value in choice.get("enum", ())]
    others = [choice for choice in choices if "enum" not in choice]
    merged = [_enum(literals), *others] if literals else others
    return merged[0] if len(merged) == 1 else {"anyOf": merged}


def _enum(values: list[Any]) -> dict[str, Any]:
    kinds = {_type_name(value) for value in values}
    return {"type": kinds.pop(), "enum": values} if len(kinds) == 1 else {"enum": values}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [*schema.get("anyOf", [schema]), {"type": "null"}]}


# From classes --------------------------------------------------------------------------------------------------


def _from_class(source: type) -> dict[str, Any]:
    model_json_schema = getattr(source, "model_json_schema", None)  # pydantic, without importing it
    if callable(model_json_schema):
        schema: dict[str, Any] = model_json_schema()
        return schema
    return _from_annotation(source, 0)


def _from_annotation(annotation: Any, depth: int) -> dict[str, Any]:
    if depth > DEEPEST:
        raise SchemaError(f"the class is nested deeper than {DEEPEST} levels, or holds itself")
    simple = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
    if annotation in simple:
        return {"type": simple[annotation]}
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        hints = typing.get_type_hints(annotation)
        names = [field.name for field in dataclasses.fields(annotation)]
        return _closed_object({name: _from_annotation(hints[name], depth + 1) for name in names})
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return _enum(list(arguments))
    if origin is list:
        return {"type": "array", "items": _from_annotation(arguments[0], depth + 1)}
    if origin in {typing.Union, types.UnionType}:
        return _any_of([_from_annotation(argument, depth + 1) for argument in arguments])
    raise SchemaError(
        f"no schema can be made of {annotation!r}: a dataclass or pydantic model of str, int, float, bool, None, "
        "list[...], Literal[...] and such classes"
    )


# Checking ------------------------------------------------------------------------------------------------------

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


def _problems(value: Any, schema: Mapping[str, Any], path: str) -> Iterator[_Problem]:
    """Where and how a value breaks its schema, the outermost first."""
    if "type" in schema and not _is_of_type(value, schema["type"]):
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        yield path, f"must be {' or '.join(_NOUNS[name] for name in names)}, not {_shown(value)}"
        return
    if "enum" in schema and not any(_same(value, choice) for choice in schema["enum"]):
        choices = ", ".join(_shown(choice) for choice in schema["enum"][:20])
        yield path, f"must be one of {choices}, not {_shown(value)}"
    if "const" in schema and not _same(value, schema["const"]):
        yield path, f"must be {_shown(schema['const'])}, not {_shown(value)}"
    if "anyOf" in schema:
        yield from _any_of_problems(value, schema["anyOf"], path)
    match value:
        case bool() | None:
            return
        case int() | float():
            yield from _number_problems(value, schema, path)
        case str():
            yield from _text_problems(value, schema, path)
        case list():
            yield from _list_problems(value, schema, path)
        case dict():
            yield from _object_problems(value, schema, path)
        case _:
            yield path, f"must be a JSON value, not {type(value).__name__}"


def _any_of_problems(value: Any, choices: list[Mapping[str, Any]], path: str) -> Iterator[_Problem]:
    found: list[_Problem] = []
    for choice in choices:
        problem = next(_problems(value, choice, path), None)
        if problem is None:
            return
        found.append(problem)
    # The choice that got furthest is most likely the one that was meant.
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
        yield path, f"must be at least {schema['minimum']}, not {_shown(value)}"
    if "maximum" in schema and value > schema["maximum"]:
        yield path, f"must be at most {schema['maximum']}, not {_shown(value)}"


def _text_problems(value: str, schema: Mapping[str, Any], path: str) -> Iterator[_Problem]:
    yield from _size_problems(len(value), schema, path, ("minLength", "maxLength"), "characters")
    if "pattern" in schema and re.search(schema["pattern"], value) is None:
        yield path, f"must match the pattern {schema['pattern']}, as {_shown(value)} does not"


def _list_problems(value: list[Any], schema: Mapping[str, Any], path: str) -> Iterator[_Problem]:
    yield from _size_problems(len(value), schema, path, ("minItems", "maxItems"), "items")
    if "items" in schema:
        for index, item in enumerate(value):
            yield from _problems(item, schema["items"], f"{path}[{index}]")


def _object_problems(value: dict[str, Any], schema: Mapping[str, Any], path: str) -> Iterator[_Problem]:
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield _join(path, name), "is missing"
    for name, item in value.items():
        if name in properties:
            yield from _problems(item, properties[name], _join(path, str(name)))
        elif schema.get("additionalProperties") is False:
            known = ", ".join(properties) or "none"
            yield _join(path, str(name)[:SHOWN_CHARS]), f"is no property there; the properties are {known}"


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


def _quick_check(schema: Mapping[str, Any]) -> Callable[[Any], bool]:
    """A check that is fast and says yes only to what meets the schema; what it does not know it leaves to `_problems`.

    Answers come by the million, and nearly all of them are right.
    """
    kind = schema.get("type")
    if not isinstance(kind, str) or not schema.keys() <= _PLAIN:
        return lambda _value: False
    if kind == "object" and "enum" not in schema:
        return _quick_object_check(schema)
    if kind == "array" and "enum" not in schema:
        check_item = _quick_check(schema["items"]) if "items" in schema else None
        return lambda value: type(value) is list and (check_item is None or all(map(check_item, value)))
    if kind == "string" and "enum" in schema:
        texts = frozenset(choice for choice in schema["enum"] if isinstance(choice, str))
        return lambda value: type(value) is str and value in texts
    exact = {"string": str, "boolean": bool, "integer": int}.get(kind) if "enum" not in schema else None
    if kind == "number" and "enum" not in schema:
        return lambda value: type(value) is int or (type(value) is float and math.isfinite(value))
    return lambda value: type(value) is exact


def _quick_object_check(schema: Mapping[str, Any]) -> Callable[[Any], bool]:
    checks = {name: _quick_check(inner) for name, inner in schema.get("properties", {}).items()}
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
    # By the very class and not by isinstance: to Python, True is a number.
    if type(value) in _EXACT[name]:
        return True
    return name == "integer" and type(value) is float and value.is_integer()


def _type_name(value: Any) -> str:
    return next(
        name
        for name in ("boolean", "integer", *TYPES, "other")
        if name == "other" or _is_one_type(value, name)
    )


def _same(value: Any, other: Any) -> bool:
    """Equality of JSON: 1 is 1.0, and neither is true."""
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(_same, value, other))
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(_same(value[key], other[key]) for key in value)
    return bool(value == other)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 1]}…"
