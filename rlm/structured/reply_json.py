"""Replies that should be JSON, read into values: lenient in form, strict in meaning.

Code fences, prose around the JSON, trailing commas and a tail that was cut off are accepted. A value is taken only
from an entry that names its item's id, never from the order of the entries and never from inside another value. Two
different answers for one item are no answer. Libraries that repair JSON guess values, so none is used here.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from rlm.structured.json_text import canonical
from rlm.thinking import without_thinking

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm.structured.schema import Schema

__all__ = ["Invalid", "ItemResult", "Missing", "Valid", "entry_lists", "read_json"]

MOST_FAILED_STARTS: Final = 64
"""Number of brackets in prose that are tried as the start of JSON before reading stops."""


@dataclass(frozen=True, slots=True)
class Valid:
    """Result of an item whose answer meets the schema."""

    value: Any


@dataclass(frozen=True, slots=True)
class Missing:
    """Result of an item that has no answer."""

    reason: str = "the reply has no entry for it"


@dataclass(frozen=True, slots=True)
class Invalid:
    """Result of an item whose answer cannot be used, with the reason."""

    reason: str


ItemResult: TypeAlias = Valid | Missing | Invalid


def read_json(reply: str, schema: Schema) -> ItemResult:
    """Return the result of a reply that should be one JSON value and nothing else."""
    text = without_thinking(reply).strip()
    values = [value for value in _documents(text) if isinstance(value, dict)] if schema.is_object else []
    if not schema.is_object:
        values = [_unwrapped(value) for value in _scalars(text)]
    if not values:
        return Missing("the reply holds no JSON") if text else Missing("the reply is empty")
    *others, last = values
    if problem := schema.check(last):
        return Invalid(problem)
    if any(canonical(other) != canonical(last) and not schema.check(other) for other in others):
        return Invalid("the reply holds several answers: reply with one, as JSON only")
    return Valid(last)


_OPENING = re.compile(r"[\[{]")
_WRAPPERS: Final = ("results", "answers", "items", "entries")
"""Names of the list of entries: the one that the prompt requests, and those that models write instead."""
_LIST_OF_OBJECTS = re.compile(rf'(?:\{{\s*"(?:{"|".join(_WRAPPERS)})"\s*:\s*)?\[\s*(?=\{{)')
_BETWEEN = re.compile(r"[\s,]*")
_TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.)*+")|,(?=\s*[}\]])')
_BROKEN: Final = object()


def entry_lists(reply: str, schema: Schema | None) -> list[list[tuple[int, Any]]]:
    """Return the ids and values of every list of entries in a reply, in order."""
    lists: list[list[tuple[int, Any]]] = []
    lines: list[tuple[int, Any]] = []
    for document in _documents(without_thinking(reply)):
        if isinstance(document, dict) and "id" in document:  # JSON Lines: one entry per line without a list
            if not lines:
                lists.append(lines)
            lines += _entry(document, schema)
            continue
        lines = []
        lists.append([pair for entry in _entries(document) for pair in _entry(entry, schema)])
    return [pairs for pairs in lists if pairs]


def _entries(document: Any) -> list[Any]:
    if isinstance(document, list):
        return document
    for name in _WRAPPERS:
        if isinstance(document.get(name), list):
            return list(document[name])
    if document and all(key.isascii() and key.isdigit() for key in document):
        return [{"id": key, "value": value} for key, value in document.items()]
    return []


def _entry(entry: Any, schema: Schema | None) -> list[tuple[int, Any]]:
    """Return the id and the value of an entry as a list of one pair, or [] if it is none."""
    if not isinstance(entry, dict):
        return []
    number = _whole(entry.get("id"))
    if number is None:
        return []
    if "value" in entry:
        return [(number, entry["value"])]
    if schema is not None and schema.is_object:
        return [(number, {key: value for key, value in entry.items() if key != "id"})]
    return []


def _whole(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:  # noqa: PLR2004
        return int(value)
    return None


def _documents(text: str) -> Iterator[Any]:
    """Yield the outermost JSON objects and lists of a text, in order."""
    position, failures = 0, 0
    while failures < MOST_FAILED_STARTS and (opening := _OPENING.search(text, position)):
        start = opening.start()
        value, position = _decoded(text, start)
        if value is not _BROKEN:
            yield value
            continue
        failures += 1
        if _looks_like_json(text, start):
            value = _mended(text[start:])
            if value is not _BROKEN:
                yield value
            return  # the end of the broken part is unknown, and its inner values are not answers
        position = start + 1


def _decoded(text: str, start: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return _BROKEN, start + 1


def _looks_like_json(text: str, start: int) -> bool:
    following = text[start + 1 : start + 200].lstrip()[:1]
    return following == '"' if text[start] == "{" else following in {"{", "[", '"'}


def _mended(text: str) -> Any:
    """Return a broken document without its trailing commas, or the complete objects of its list."""
    text = _TRAILING_COMMA.sub(lambda found: found[1] or "", text)
    value, _ = _decoded(text, 0)
    if value is not _BROKEN:
        return value
    opening = _LIST_OF_OBJECTS.match(text)
    if opening is None:
        return _BROKEN
    whole: list[Any] = []
    position = opening.end()
    while text[position : position + 1] == "{":
        value, end = _decoded(text, position)
        if value is _BROKEN:
            break
        whole.append(value)
        between = _BETWEEN.match(text, end)
        position = between.end() if between else end
    return whole


def _scalars(text: str) -> list[Any]:
    """Return the candidates for a single value: the JSON of the reply, or its text."""
    try:
        return [_DECODER.decode(text)]
    except (ValueError, RecursionError):
        return list(_documents(text)) or ([text] if text else [])


def _unwrapped(value: Any) -> Any:
    return value["value"] if isinstance(value, dict) and value.keys() == {"value"} else value


def _no_repeated_key(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object has one key twice, so its value is ambiguous")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large to be a number")
    return number


_DECODER = json.JSONDecoder(
    object_pairs_hook=_no_repeated_key, parse_constant=_no_constant, parse_float=_finite
)
