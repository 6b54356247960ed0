"""Sketch of a context: its type, its size, the first of its keys; data from which the prompt describes it.

For a child run's context in shared memory the cell makes the sketch, since the host never sees the value. So a sketch
that comes from a guest is read with `Sketch.from_tuple`, which accepts nothing but the form below.
"""

from __future__ import annotations

from collections.abc import Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

__all__ = ["SHOWN_KEYS", "SHOWN_TYPES", "Sketch", "sketch"]

SHOWN_KEYS = 20
SHOWN_TYPES = 5
END_CHARS = 80
MOST = 1 << 63

KINDS = {
    "str": ("str",),
    "bytes": ("bytes", "bytearray"),
    "dict": ("dict",),
    "items": ("list", "tuple", "set", "frozenset"),
}
ITEM_TYPES = frozenset(
    (
        *("NoneType", "bool", "int", "float", "complex", "str", "bytes", "bytearray", "list", "tuple", "set"),
        *("frozenset", "dict", "datetime", "date", "time", "timedelta", "timezone", "Decimal", "UUID"),
        *("PosixPath",),
    )
)


class Sketch:
    """Facts about one context.

    Attributes:
        form: "str", "bytes", "dict" or "items".
        kind: the name of its type.
        length: its `len`.
        keys: the first keys of a dict, each as both ends of its `repr` and the length of that.
        types: names of the types of items, the first few in alphabetical order.
        texts: characters of all texts among its items or values, and of the longest; None if there are none.
        is_messages: it is a list of chat messages.
    """

    __slots__ = ("form", "is_messages", "keys", "kind", "length", "texts", "types")

    def __init__(
        self,
        form: str,
        kind: str,
        length: int,
        *,
        keys: tuple[tuple[str, int], ...] = (),
        types: tuple[str, ...] = (),
        texts: tuple[int, int] | None = None,
        is_messages: bool = False,
    ) -> None:
        self.form = form
        self.kind = kind
        self.length = length
        self.keys = keys
        self.types = types
        self.texts = texts
        self.is_messages = is_messages

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the sketch as a value that can be sent to the host."""
        return self.form, self.kind, self.length, self.keys, self.types, self.texts, self.is_messages

    @classmethod
    def from_tuple(cls, value: Any) -> Sketch:
        """Return the sketch that `to_tuple` made; raises `ValueError` for anything else."""
        match value:
            case (str(form), str(kind), int(length), tuple(keys), tuple(types), texts, bool(is_messages)):
                made = cls(form, kind, length, keys=keys, types=types, texts=texts, is_messages=is_messages)
                if kind in KINDS.get(form, ()) and _is_count(length) and made._has_sound_parts():
                    return made
        raise ValueError("not the sketch of a context")

    def _has_sound_parts(self) -> bool:
        return (
            len(self.keys) <= (SHOWN_KEYS if self.form == "dict" else 0)
            and all(map(_is_key, self.keys))
            and len(self.types) <= (SHOWN_TYPES if self.form == "items" else 0)
            and all(type(name) is str and name in ITEM_TYPES for name in self.types)
            and (self.texts is None or _is_two_counts(self.texts))
            and (not self.is_messages or self.kind == "list")
        )


def sketch(context: Any, received_form: Callable[[Any], Any] = lambda value: value) -> Sketch | None:
    """Return the sketch of a context, or None if it is neither text nor bytes nor a container.

    Args:
        context: any value.
        received_form: maps a value to its form on the other side, as `values.received_form` does.
    """
    context = received_form(context)
    kind = type(context).__name__
    if isinstance(context, str):
        return Sketch("str", "str", len(context))
    if isinstance(context, (bytes, bytearray)):
        return Sketch("bytes", kind, len(context))
    if isinstance(context, Mapping):
        keys = [_written(received_form(key)) for key, _ in zip(context, range(SHOWN_KEYS), strict=False)]
        return Sketch(
            "dict", "dict", len(context), keys=tuple(map(_ends, keys)), texts=_texts(context.values())
        )
    if isinstance(context, (list, tuple, set, frozenset)):
        examples = {type(item): item for item in context}
        names = sorted({type(received_form(item)).__name__ for item in examples.values()})
        return Sketch(
            "items",
            kind,
            len(context),
            types=tuple(names[:SHOWN_TYPES]),
            texts=_texts(context),
            is_messages=_are_messages(context),
        )
    return None


def _written(key: Any) -> str:
    """Return `repr(key)`; for an int of more digits than Python writes, or a value that holds one, its type."""
    try:
        return repr(key)
    except ValueError:
        return f"<{type(key).__name__} that cannot be written out>"


def _ends(text: str) -> tuple[str, int]:
    return (text if len(text) <= 2 * END_CHARS else text[:END_CHARS] + text[-END_CHARS:]), len(text)


def _texts(values: Iterable[Any]) -> tuple[int, int] | None:
    total, longest, found = 0, 0, False
    for value in values:
        if isinstance(value, str):
            found = True
            length = len(value)
            total += length
            longest = max(longest, length)
    return (total, longest) if found else None


def _are_messages(items: Any) -> bool:
    return (
        isinstance(items, list)
        and bool(items)
        and all(isinstance(item, Mapping) and {"role", "content"} <= item.keys() for item in items)
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MOST


def _is_key(value: Any) -> bool:
    return (
        type(value) is tuple
        and len(value) == 2  # noqa: PLR2004 - a text and its length
        and type(value[0]) is str
        and len(value[0]) <= 2 * END_CHARS
        and _is_count(value[1])
        and value[1] >= len(value[0])
    )


def _is_two_counts(value: Any) -> bool:
    return type(value) is tuple and len(value) == 2 and all(map(_is_count, value)) and value[1] <= value[0]  # noqa: PLR2004
