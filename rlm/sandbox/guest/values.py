# ruff: noqa: ARG002 - writers and readers of values share one signature, with the depth
"""The encoding of values that cross between a host and its guest.

A value is a tag byte and what follows it, lengths and counts big-endian:

    N T F           None, True, False
    i 8 bytes       int that fits in 64 bits, signed
    I u32 bytes     any other int, signed, little-endian two's complement
    f 8 bytes       float       c 16 bytes  complex
    s u32 bytes     str in UTF-8, each surrogate on its own in three bytes (`surrogatepass`)
    S (u32 bytes)* 0   a long str in pieces, each whole characters, ended by an empty piece
    b u64 bytes     bytes       B u64 bytes bytearray
    l t u32 values  list, tuple
    e E u32 values  set, frozenset
    d u32 (k v)*    dict, in its order
    D fields tz     datetime: year u16, month, day, hour, minute, second, fold u8 each, microsecond u32; a value
    a u16 u8 u8     date        h           time: hour, minute, second, fold u8, microsecond u32; a value
    w three i64      timedelta: days, seconds, microseconds      z three i64 timezone, by its offset
    x u u32 bytes   Decimal, as text; u 16 bytes UUID; p a str: pathlib.Path

There is no reference, no class and no code among them, so that decoding the bytes of a hostile process runs nothing. This
module encodes, and holds what both directions share; `decoding` decodes.
"""

from __future__ import annotations

import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, TypeAlias

    Parts: TypeAlias = "list[bytes | bytearray | str]"

__all__ = [
    "DEPTH",
    "MOST_VALUES",
    "TABLE_VALUES",
    "TooLarge",
    "Uncrossable",
    "WireError",
    "chunks",
    "encode",
    "encode_tuple",
    "encoded_size",
    "received_form",
]


CHUNK_BYTES = 1 << 18
DEPTH = 250
MOST_VALUES = 2_000_000  # that a host decodes of one value from its guest
TABLE_VALUES = (
    4  # that each dict and set counts as, besides those in it: even an empty one takes that much memory
)
LONG_TEXT = 1 << 16
PATH_CHARS = 200
U32 = struct.Struct(">I")
U64 = struct.Struct(">Q")
I64 = struct.Struct(">q")
THREE_I64 = struct.Struct(">qqq")
FLOAT = struct.Struct(">d")
COMPLEX = struct.Struct(">dd")
DATE = struct.Struct(">HBB")
TIME = struct.Struct(">BBBBI")
_I64_LEAST, _I64_MOST = -(1 << 63), (1 << 63) - 1
DECIMAL_BYTES = 100_000


class WireError(Exception):
    """Received bytes break the protocol."""


class Uncrossable(Exception):
    """A value cannot be encoded; `path` leads to it from the outermost value, like `[3]["when"]`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = ""

    def within(self, step: str) -> None:
        """Put a step before the path: the value is inside another one."""
        self.path = step + self.path
        if len(self.path) > PATH_CHARS:
            self.path = self.path[: PATH_CHARS // 2] + "…"


class TooLarge(Uncrossable):
    """The encoded value would be larger than allowed, or made of more values."""


def encode(value: Any, *, limit: int | None = None, max_values: int | None = None) -> Parts:
    """Return the encoded value in parts, for `frames.message_frames`; long texts are encoded when they are sent.

    Raises:
        Uncrossable: a type that cannot be sent between guest and host, or more than DEPTH levels (a value that holds itself, for one).
        TooLarge: more than `limit` bytes, or more than `max_values` values, counted as `decoding` counts them.
    """
    encoder = _ValueEncoder(limit, max_values)
    encoder.put(value, 0)
    return encoder.finish()


def encode_tuple(*encoded: Parts) -> Parts:
    """Return an encoded tuple of values that are encoded already."""
    header: Parts = [b"t" + U32.pack(len(encoded))]
    return header + [part for parts in encoded for part in parts]


def encoded_size(parts: Parts) -> int:
    """Return about how many bytes the parts take; texts that are not encoded yet count one a character."""
    return sum(map(len, parts))


def chunks(parts: Parts) -> Iterator[bytes | memoryview]:
    """Yield the encoded bytes in pieces of at most CHUNK_BYTES."""
    for part in parts:
        if isinstance(part, str):
            step = CHUNK_BYTES if part.isascii() else CHUNK_BYTES // 4
            for start in range(0, len(part), step):
                data = part[start : start + step].encode("utf-8", "surrogatepass")
                yield U32.pack(len(data))
                yield data
            yield U32.pack(0)
        else:
            view = memoryview(part)
            for start in range(0, len(part), CHUNK_BYTES):
                yield view[start : start + CHUNK_BYTES]


class _ValueEncoder:
    """Appends small parts to `out`; large ones go into `parts` without a copy."""

    __slots__ = ("limit", "max_values", "out", "parts", "size", "values_left")

    def __init__(self, limit: int | None, max_values: int | None) -> None:
        self.parts: Parts = []
        self.out = bytearray()
        self.size = 0
        self.limit = limit
        self.max_values = self.values_left = sys.maxsize if max_values is None else max_values

    def finish(self) -> Parts:
        self._grow(len(self.out))
        self.parts.append(self.out)
        return self.parts

    def put(self, value: Any, depth: int) -> None:
        if depth > DEPTH:
            raise Uncrossable(f"nested more than {DEPTH} levels deep, or a value that contains itself")
        self.values_left -= 1
        if self.values_left < 0:
            self._count(0)
        put = _PUT.get(type(value))
        if put is None:
            put, value = _flatten(value)
        put(self, value, depth)
        if len(self.out) > CHUNK_BYTES:
            self._grow(len(self.out))
            self.parts.append(self.out)
            self.out = bytearray()

    def _count(self, count: int) -> None:
        self.values_left -= count
        if self.values_left < 0:
            raise TooLarge(f"of more than {self.max_values:,} values")

    def _grow(self, count: int) -> None:
        self.size += count
        if self.limit is not None and self.size > self.limit:
            raise TooLarge(f"larger than {self.limit:,} bytes")

    def _apart(self, part: bytes | bytearray | str) -> None:
        """Add a large part without copying it."""
        self._grow(len(self.out) + (len(part) if self.limit is None else _bytes_in(part)))
        if isinstance(part, str):
            self._count(len(part) // (CHUNK_BYTES // 4) + 1)
        self.parts += [self.out, part]
        self.out = bytearray()

    def put_none(self, value: None, depth: int) -> None:
        self.out += b"N"

    def put_bool(self, value: bool, depth: int) -> None:
        self.out += b"T" if value else b"F"

    def put_int(self, value: int, depth: int) -> None:
        if _I64_LEAST <= value <= _I64_MOST:
            self.out += b"i" + I64.pack(value)
        else:
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            self.out += b"I" + U32.pack(len(data)) + data

    def put_float(self, value: float, depth: int) -> None:
        self.out += b"f" + FLOAT.pack(value)

    def put_complex(self, value: complex, depth: int) -> None:
        self.out += b"c" + COMPLEX.pack(value.real, value.imag)

    def put_str(self, value: str, depth: int) -> None:
        if len(value) > LONG_TEXT:
            self.out += b"S"
            self._apart(value)
        else:
            data = value.encode("utf-8", "surrogatepass")
            self.out += b"s" + U32.pack(len(data)) + data

    def put_bytes(self, value: bytes, depth: int) -> None:
        self.out += b"b" + U64.pack(len(value))
        self._blob(value)

    def put_bytearray(self, value: bytearray, depth: int) -> None:
        data = bytes(value)
        self.out += b"B" + U64.pack(len(data))
        self._blob(data)

    def _blob(self, data: bytes) -> None:
        if len(data) > LONG_TEXT:
            self._apart(data)
        else:
            self.out += data

    def put_list(self, value: Iterable[Any], depth: int) -> None:
        self._items(b"l", tuple(value), depth)

    def put_tuple(self, value: Iterable[Any], depth: int) -> None:
        self._items(b"t", tuple(value), depth)

    def put_set(self, value: Iterable[Any], depth: int) -> None:
        self._items(b"e", tuple(value), depth, "an element of ")

    def put_frozenset(self, value: Iterable[Any], depth: int) -> None:
        self._items(b"E", tuple(value), depth, "an element of ")

    def _items(self, tag: bytes, items: tuple[Any, ...], depth: int, unordered: str = "") -> None:
        self._count(TABLE_VALUES if unordered else 0)
        self.out += tag + U32.pack(len(items))
        index = 0
        try:
            for index, item in enumerate(items):  # noqa: B007 - the handler names the item that failed
                self.put(item, depth + 1)
        except Uncrossable as problem:
            problem.within("{…}" if unordered else f"[{index}]")
            raise

    def put_dict(self, value: Iterable[tuple[Any, Any]], depth: int) -> None:
        items = tuple(value.items() if type(value) is dict else value)
        self._count(TABLE_VALUES)
        self.out += b"d" + U32.pack(len(items))
        key: Any = None
        try:
            for key, item in items:
                self.put(key, depth + 1)
                self.put(item, depth + 1)
        except Uncrossable as problem:
            problem.within(f"[{_short(key)}]")
            raise

    def put_datetime(self, value: Any, depth: int) -> None:
        self.out += b"D" + DATE.pack(value.year, value.month, value.day) + _clock(value)
        self._zone(value, depth)

    def put_date(self, value: Any, depth: int) -> None:
        self.out += b"a" + DATE.pack(value.year, value.month, value.day)

    def put_time(self, value: Any, depth: int) -> None:
        self.out += b"h" + _clock(value)
        self._zone(value, depth)

    def _zone(self, value: Any, depth: int) -> None:
        if value.tzinfo is not None and type(value.tzinfo) is not _loaded("datetime", "timezone"):
            zone = type(value.tzinfo).__qualname__
            raise Uncrossable(
                f"a {type(value).__qualname__} with a {zone} (use a fixed offset: .astimezone(timezone.utc))"
            )
        self.put(value.tzinfo, depth + 1)

    def put_timedelta(self, value: Any, depth: int) -> None:
        self.out += b"w" + THREE_I64.pack(value.days, value.seconds, value.microseconds)

    def put_timezone(self, value: Any, depth: int) -> None:
        offset = value.utcoffset(None)
        self.out += b"z" + THREE_I64.pack(offset.days, offset.seconds, offset.microseconds)

    def put_decimal(self, value: Any, depth: int) -> None:
        data = str(value).encode("ascii")
        if len(data) > DECIMAL_BYTES:
            raise Uncrossable(f"a Decimal of more than {DECIMAL_BYTES:,} digits")
        self.out += b"x" + U32.pack(len(data)) + data

    def put_uuid(self, value: Any, depth: int) -> None:
        data = value.bytes
        if type(data) is not bytes or len(data) != 16:  # noqa: PLR2004 - a UUID has 16 bytes
            raise Uncrossable("a UUID without its 16 bytes")
        self.out += b"u" + data

    def put_path(self, value: Any, depth: int) -> None:
        self.out += b"p"
        self.put_str(str(value), depth)


_PUT: dict[type, Callable[[_ValueEncoder, Any, int], None]] = {
    type(None): _ValueEncoder.put_none,
    bool: _ValueEncoder.put_bool,
    int: _ValueEncoder.put_int,
    float: _ValueEncoder.put_float,
    complex: _ValueEncoder.put_complex,
    str: _ValueEncoder.put_str,
    bytes: _ValueEncoder.put_bytes,
    bytearray: _ValueEncoder.put_bytearray,
    list: _ValueEncoder.put_list,
    tuple: _ValueEncoder.put_tuple,
    set: _ValueEncoder.put_set,
    frozenset: _ValueEncoder.put_frozenset,
    dict: _ValueEncoder.put_dict,
}
# Types that are only there when their module was imported, with the module's name: importing them here would
# make every guest slower to start.
_PUT_LOADED: list[tuple[str, str, Callable[[_ValueEncoder, Any, int], None]]] = [
    ("datetime", "datetime", _ValueEncoder.put_datetime),
    ("datetime", "date", _ValueEncoder.put_date),
    ("datetime", "time", _ValueEncoder.put_time),
    ("datetime", "timedelta", _ValueEncoder.put_timedelta),
    ("datetime", "timezone", _ValueEncoder.put_timezone),
    ("decimal", "Decimal", _ValueEncoder.put_decimal),
    ("uuid", "UUID", _ValueEncoder.put_uuid),
    ("pathlib", "PurePath", _ValueEncoder.put_path),
]
# How a subclass becomes its base. The methods of the base are called, so that those of a cell's subclass never run.
_FLATTEN: list[tuple[type, Callable[[_ValueEncoder, Any, int], None], Callable[[Any], Any]]] = [
    (str, _ValueEncoder.put_str, str.__str__),
    (int, _ValueEncoder.put_int, lambda value: int.__add__(value, 0)),
    (float, _ValueEncoder.put_float, float.__float__),
    (
        complex,
        _ValueEncoder.put_complex,
        lambda value: complex.__add__(value, 0j) if value else complex.__complex__(value),
    ),
    (bytes, _ValueEncoder.put_bytes, lambda value: bytes.__getitem__(value, slice(None))),
    (bytearray, _ValueEncoder.put_bytearray, lambda value: bytearray.__getitem__(value, slice(None))),
    (list, _ValueEncoder.put_list, list.__iter__),
    (tuple, _ValueEncoder.put_tuple, tuple.__iter__),
    (set, _ValueEncoder.put_set, set.__iter__),
    (frozenset, _ValueEncoder.put_frozenset, frozenset.__iter__),
    (dict, _ValueEncoder.put_dict, dict.items),
]


def _flatten(value: Any) -> tuple[Callable[[_ValueEncoder, Any, int], None], Any]:
    """Return the method that encodes a value of a type that is not built in, and the value in its base type."""
    kind = type(value)
    for module, name, put in _PUT_LOADED:
        known = _loaded(module, name)
        if known is not None and (kind is known or (name == "PurePath" and known in kind.__mro__)):
            return put, value
    if kind is _loaded("collections", "OrderedDict"):
        return _ValueEncoder.put_dict, tuple(value.items())  # its order is not the one of the dict below it
    for base, put, flat in _FLATTEN:
        if base in type.__getattribute__(kind, "__mro__"):
            return put, flat(value)
    raise Uncrossable(f"a value of type {_type_name(kind)}, which cannot be sent between guest and host")


def received_form(value: Any) -> Any:
    """Return a value as it arrives on the other side, except the values in it: of a subclass, its base."""
    if type(value) in _PUT:
        return value
    put, flat = _flatten(value)
    if put is _ValueEncoder.put_path:
        from pathlib import Path

        return Path(value)
    base = next((kind for kind, known in _PUT.items() if known is put), None)
    return value if base is None else base(flat)


def _bytes_in(part: bytes | bytearray | str) -> int:
    """Return how many bytes a part takes when it is sent, without encoding a long text as a whole."""
    if not isinstance(part, str) or part.isascii():
        return len(part)
    return sum(
        len(part[start : start + CHUNK_BYTES].encode("utf-8", "surrogatepass"))
        for start in range(0, len(part), CHUNK_BYTES)
    )


def _loaded(module: str, name: str) -> Any:
    return getattr(sys.modules.get(module), name, None)


def _type_name(kind: type) -> str:
    module = type.__getattribute__(kind, "__module__")
    name = type.__getattribute__(kind, "__qualname__")
    return f"{name}" if module in ("builtins", "__main__") else f"{module}.{name}"


def _short(key: Any) -> str:
    text = repr(key) if type(key) in (str, int, float, bool, bytes, type(None)) else _type_name(type(key))
    return text if len(text) <= 60 else text[:57] + "…"  # noqa: PLR2004 - a path in an error message


def _clock(value: Any) -> bytes:
    return TIME.pack(value.hour, value.minute, value.second, value.fold, value.microsecond)
