"""Events as records of a journal, and back: every event, every value in it, without loss.

    {"type": "CallFinished", "run_id": …, "depth": 0, "at": …, "call": 3, "reply": {"text": …, "usage": {…}, …}}

A record has the event's name as `type` and the event's fields under their names. A field that is a dataclass
(`Reply`, `Usage`, `CellResult` …) becomes an object of its fields, a tuple of them an array. A value made by a model
or a cell (an answer, a draft) is written as plain JSON if JSON represents it exactly. Any other value (a tuple, bytes,
a set, a date, a key that is an int, NaN, an int beyond 64 bits, a str with both halves of a surrogate pair) is written
as `{"$wire": BASE64}`, in the encoding of the guest's protocol: decoding builds plain data and runs no code.

Evolution: events and fields may be added. A reader ignores types and fields that it does not know, and a missing field
gets its default. A change that gives existing data another meaning raises the version of the journal, which older
readers refuse.

The conversions are derived from the annotations of the classes, so every event has a record. No I/O.
"""

from __future__ import annotations

import dataclasses
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from functools import cache
from math import isfinite
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, cast, get_args, get_origin, get_type_hints

from rlm.errors import JournalError
from rlm.events import Event
from rlm.sandbox.guest.decoding import decode
from rlm.sandbox.guest.values import DEPTH, Uncrossable, WireError, chunks, encode
from rlm.values import Answer

__all__ = ["EVENT_TYPES", "event_of", "record_of"]

EVENT_TYPES: Final[Mapping[str, type[Event]]] = {kind.__name__: kind for kind in get_args(Event)}
"""Event classes by the `type` of their records."""

WIRE: Final = "$wire"
LARGEST_INT: Final = 1 << 64
SPLIT_PAIR: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")
PLAIN: Final[Mapping[Any, tuple[type, ...] | None]] = {
    str: (str,),
    bool: (bool,),
    int: (int,),
    float: (float, int),
    Any: None,
}


def record_of(event: Event) -> dict[str, Any]:
    """Return an event as a record: a dict of JSON values. Large values are shared with the event, not copied.

    Raises:
        JournalError: the event holds a value that has no record, such as an object of a user's class.
    """
    kind: Any = type(event)
    try:
        return {"type": kind.__name__, **_form(kind).write(event)}
    except Uncrossable as error:
        raise JournalError(
            f"a {kind.__name__} cannot be written down: {error.reason} (at {error.path or 'its top'})"
        ) from error


def event_of(record: Mapping[str, Any]) -> Event:
    """Return a record as an event, equal to the original, except that a value of a subclass becomes its base class.

    Raises:
        JournalError: the type is not in `EVENT_TYPES`, or a field is missing or of a wrong type.
    """
    name = record.get("type")
    kind: Any = EVENT_TYPES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise JournalError(f"a record of type {name!r} belongs to no known event")
    try:
        return cast("Event", _form(kind).read(record))
    except _Unreadable as error:
        raise JournalError(f"a record of a {name} cannot be read: {error}") from error


class _Unreadable(Exception):
    """A part of a record has a wrong type."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Form:
    """Writer and reader of the values of one annotation."""

    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


@cache
def _form(annotation: Any) -> _Form:
    if annotation is Answer:
        return _form_of_answer()
    if dataclasses.is_dataclass(annotation):
        return _form_of_fields(cast("type", annotation))
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is tuple:
        return _form_of_tuple(_form(arguments[0]))
    if origin in (Union, UnionType):
        (present,) = [argument for argument in arguments if argument is not NoneType]
        return _form_of_optional(_form(present))
    return _form_of_plain(str if origin is Literal else annotation)  # a later version may know more literals


def _form_of_fields(kind: type) -> _Form:
    hints = get_type_hints(kind)
    forms = [(field.name, _form(hints[field.name])) for field in dataclasses.fields(kind)]

    def write(value: Any) -> dict[str, Any]:
        return {name: form.write(getattr(value, name)) for name, form in forms}

    def read(written: Any) -> Any:
        values = _read_fields(forms, written, kind)
        try:
            return kind(**values)
        except TypeError as error:
            missing = ", ".join(name for name, _ in forms if name not in values)
            raise _Unreadable(f"a {kind.__name__} without {missing}") from error

    return _Form(write, read)


def _form_of_answer() -> _Form:
    """Write an answer with its text beside its value, since rendering the value again may differ, as for a set."""
    hints = get_type_hints(Answer)
    forms = [(name, _form(hint)) for name, hint in hints.items() if name != "value"]

    def write(answer: Answer) -> dict[str, Any]:
        text = str.__str__(answer)
        value = {} if answer.value == text and isinstance(answer.value, str) else {"value": answer.value}
        written = {name: _write_any(part) for name, part in {"text": text, **value}.items()}
        return {**written, **{name: form.write(getattr(answer, name)) for name, form in forms}}

    def read(written: Any) -> Answer:
        values = _read_fields([*forms, ("text", _form(str)), ("value", _form(Any))], written, Answer)
        text = values.pop("text", "")
        value = values.pop("value", text)
        answer = Answer(text, **values)
        answer.value = value
        return answer

    return _Form(write, read)


def _read_fields(forms: list[tuple[str, _Form]], written: Any, kind: type) -> dict[str, Any]:
    if not isinstance(written, Mapping):
        raise _Unreadable(f"{type(written).__name__} instead of the fields of a {kind.__name__}")
    return {name: form.read(written[name]) for name, form in forms if name in written}


def _form_of_tuple(item: _Form) -> _Form:
    def write(values: Any) -> list[Any]:
        return [item.write(value) for value in values]

    def read(written: Any) -> tuple[Any, ...]:
        if not isinstance(written, list):
            raise _Unreadable(f"{type(written).__name__} instead of an array")
        return tuple([item.read(value) for value in written])

    return _Form(write, read)


def _form_of_optional(present: _Form) -> _Form:
    def write(value: Any) -> Any:
        return None if value is None else present.write(value)

    def read(written: Any) -> Any:
        return None if written is None else present.read(written)

    return _Form(write, read)


def _form_of_plain(kind: Any) -> _Form:
    allowed = PLAIN[kind]

    def read(written: Any) -> Any:
        value = _read_any(written)
        if allowed is not None and type(value) not in allowed:
            raise _Unreadable(f"{type(value).__name__} instead of {kind.__name__}")
        return value

    return _Form(_write_any, read)


def _write_any(value: Any) -> Any:
    """Return the value itself if JSON represents it exactly, else its wire form."""
    if isinstance(value, str):
        value = str.__str__(value)  # an `Answer` is a str, too, and may be used as a question
    if _is_exact(value, 0) and not (isinstance(value, dict) and WIRE in value):
        return value
    data = b"".join(chunks(encode(value)))
    return {WIRE: b64encode(data).decode("ascii")}


def _read_any(written: Any) -> Any:
    if not isinstance(written, dict) or WIRE not in written:
        return written
    try:
        return decode(b64decode(written[WIRE], validate=True))
    except (TypeError, ValueError, WireError) as error:
        raise _Unreadable(f"a value that cannot be decoded: {error}") from error


def _is_exact(value: Any, depth: int) -> bool:
    """Return True if the value survives a round trip through JSON."""
    kind = type(value)
    if kind is str:
        return _survives(value)
    if kind is int:
        return bool(abs(value) < LARGEST_INT)
    if kind is float:
        return isfinite(value)
    if kind is list and depth < DEPTH:
        return all(_is_exact(item, depth + 1) for item in value)
    if kind is dict and depth < DEPTH:
        return all(
            type(key) is str and _survives(key) and _is_exact(item, depth + 1) for key, item in value.items()
        )
    return value is None or kind is bool


def _survives(text: str) -> bool:
    """Return True if a text survives JSON, which joins two halves of a surrogate pair into one character."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return not SPLIT_PAIR.search(text)
    return True
