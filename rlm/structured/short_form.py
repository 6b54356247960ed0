"""The short form of a schema, `label: 'spam'|'ham', score: float`, read into JSON Schema.

    schema  =  property ("," property)*  |  union
    property = name ["?"] ":" union              with "?", the property may be null
    union   =  type ("|" type)*
    type    =  str | int | float | bool | null | "list[" union "]" | "{" property, ... "}" | literal

The parser is a recursive descent over tokens. Objects are closed and require every property, as OpenAI's strict mode
wants them.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from rlm.errors import SchemaError
from rlm.structured.check import KEYWORDS, quoted, type_name

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DEEPEST", "any_of", "closed_object", "enum_of", "from_names", "from_text"]

DEEPEST: Final = 30
"""Greatest number of nested schemas; it also bounds the recursion when a hostile value is checked."""

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


def from_names(source: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read `{"label": "str"}`, the short form as a mapping; return None if the mapping is JSON Schema."""
    is_short = all(isinstance(value, str) for value in source.values()) and source
    if not is_short or any(key in KEYWORDS or str(key).startswith("$") for key in source):
        return None
    return from_text(", ".join(f"{_quoted(str(key))}: {value}" for key, value in source.items()))


def _quoted(name: str) -> str:
    """Return the name of a property as the short form accepts it."""
    mark = '"' if "'" in name else "'"
    return name if name.isidentifier() else f"{mark}{name}{mark}"


def from_text(text: str) -> dict[str, Any]:
    """Read the short form, or JSON Schema as text.

    Raises:
        SchemaError: the text is empty or cannot be parsed.
    """
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
    """Recursive-descent parser of `name: type, ...` or a single type."""

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
                raise SchemaError(f"the schema {quoted(self._text)} has the property {quoted(name)} twice")
            optional = self._accept("?")
            self._expect(":")
            schema = self._union(depth)
            properties[name] = _or_null(schema) if optional else schema
            if not self._accept(","):
                break
        if not properties:
            raise self._unexpected("a property")
        return closed_object(properties)

    def _union(self, depth: int) -> dict[str, Any]:
        if depth > DEEPEST:
            raise SchemaError(f"the schema is nested deeper than {DEEPEST} levels")
        choices = [self._single(depth)]
        while self._accept("|"):
            choices.append(self._single(depth))
        return any_of(choices)

    def _single(self, depth: int) -> dict[str, Any]:
        kind, token = self._kind, self._token
        if self._accept("{"):
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
                f"the schema {quoted(self._text)} has the type {quoted(token)}: the types are str, int, float, bool, null, "
                "list[...], {...} and literals in quotes"
            )
        return {"type": _NAMED[token]}

    def _accept(self, mark: str) -> bool:
        if self._kind == "mark" and self._token == mark:
            self._advance()
            return True
        return False

    def _expect(self, mark: str) -> None:
        if not self._accept(mark):
            raise self._unexpected(f"`{mark}`")

    def _advance(self) -> None:
        found = _TOKEN.match(self._text, self._position)
        if found is None:
            raise SchemaError(f"the schema {quoted(self._text)} cannot be parsed from {self._rest()!r} on")
        self._position = found.end()
        self._kind = str(found.lastgroup)
        token = found[self._kind]
        self._token = _ESCAPE.sub(r"\1", token[1:-1]) if self._kind == "text" else token

    def _unexpected(self, expected: str) -> SchemaError:
        found = quoted(self._token) if self._kind != "end" else "its end"
        return SchemaError(f"the schema {quoted(self._text)} should have {expected} where {found} is")

    def _rest(self) -> str:
        return self._text[self._position :].strip()[:20]


def closed_object(properties: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object as OpenAI's strict mode requires it: closed, with every property required."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def any_of(choices: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one schema for several alternatives: literals become one enum, everything else anyOf."""
    literals = [value for choice in choices for value in choice.get("enum", ())]
    others = [choice for choice in choices if "enum" not in choice]
    merged = [enum_of(literals), *others] if literals else others
    return merged[0] if len(merged) == 1 else {"anyOf": merged}


def enum_of(values: list[Any]) -> dict[str, Any]:
    """Return an enum of these values, with their type if they share one."""
    kinds = {type_name(value) for value in values}
    return {"type": kinds.pop(), "enum": values} if len(kinds) == 1 else {"enum": values}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [*schema.get("anyOf", [schema]), {"type": "null"}]}
