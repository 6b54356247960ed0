# ruff: noqa: ARG002, ARG005 - writers and readers of values share one signature, with the depth
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

There is no reference, no class, no code among them: decoding a hostile value can only fail. `decode` bounds depth
and the number of values; frames bound its bytes.
"""

from __future__ import annotations

import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, Protocol, TypeAlias

    Parts: TypeAlias = "list[bytes | bytearray | str]"

    class Source(Protocol):
        """Where encoded bytes come from."""

        def read(self, count: int) -> bytes:
            """Exactly `count` bytes; raises `WireError` where there are fewer."""
            ...


__all__ = [
    "DEPTH",
    "Buffer",
    "TooLarge",
    "Uncrossable",
    "WireError",
    "chunks",
    "decode",
    "decode_from",
    "encode",
    "encode_tuple",
    "encoded_size",
    "received_form",
]


CHUNK_BYTES = 1 << 18
DEPTH = 250
MAX_VALUES = 1 << 62
LONG_TEXT = 1 << 16
PATH_CHARS = 200
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_I64 = struct.Struct(">q")
_THREE_I64 = struct.Struct(">qqq")
_FLOAT = struct.Struct(">d")
_COMPLEX = struct.Struct(">dd")
_DATE = struct.Struct(">HBB")
_TIME = struct.Struct(">BBBBI")
_I64_LEAST, _I64_MOST = -(1 << 63), (1 << 63) - 1
_COLLISIONS = 1000
_TABLE = 4
_DECIMAL_BYTES = 100_000


class WireError(Exception):
    """What came is not what this protocol allows."""


class Uncrossable(Exception):
    """A value has no form on the wire; `path` leads to it from the value that was to cross, like `[3]["when"]`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = ""

    def within(self, step: str) -> None:
        """Note that the trouble lies one step further in."""
        self.path = step + self.path
        if len(self.path) > PATH_CHARS:
            self.path = self.path[: PATH_CHARS // 2] + "…"


class TooLarge(Uncrossable):
    """The encoded value would be larger than allowed."""


def encode(value: Any, *, limit: int | None = None) -> Parts:
    """The wire form of a value, in parts for `frames`; long texts stay as they are until they are sent.

    Raises:
        Uncrossable: a type that cannot cross, or more than DEPTH levels (a value that holds itself, for one).
        TooLarge: more than `limit` bytes, texts counted in characters.
    """
    encoder = _Encoder(limit)
    encoder.put(value, 0)
    return encoder.finish()


def encode_tuple(*encoded: Parts) -> Parts:
    """The wire form of a tuple whose values are encoded already."""
    header: Parts = [b"t" + _U32.pack(len(encoded))]
    return header + [part for parts in encoded for part in parts]


def encoded_size(parts: Parts) -> int:
    """About how many bytes these are: texts that are still to be encoded count by the character."""
    return sum(map(len, parts))


def chunks(parts: Parts) -> Iterator[bytes | memoryview]:
    """The bytes of a message in pieces of at most a frame."""
    for part in parts:
        if isinstance(part, str):
            step = CHUNK_BYTES if part.isascii() else CHUNK_BYTES // 4
            for start in range(0, len(part), step):
                data = part[start : start + step].encode("utf-8", "surrogatepass")
                yield _U32.pack(len(data))
                yield data
            yield _U32.pack(0)
        else:
            view = memoryview(part)
            for start in range(0, len(part), CHUNK_BYTES):
                yield view[start : start + CHUNK_BYTES]


class _Encoder:
    """Appends to `out`; whatever is large goes into `parts` uncopied."""

    __slots__ = ("limit", "out", "parts", "size")

    def __init__(self, limit: int | None) -> None:
        self.parts: Parts = []
        self.out = bytearray()
        self.size = 0
        self.limit = limit

    def finish(self) -> Parts:
        self._grow(len(self.out))
        self.parts.append(self.out)
        return self.parts

    def put(self, value: Any, depth: int) -> None:
        if depth > DEPTH:
            raise Uncrossable(f"nested more than {DEPTH} levels deep, or a value that contains itself")
        put = _PUT.get(type(value))
        if put is None:
            put, value = _flatten(value)
        put(self, value, depth)
        if len(self.out) > CHUNK_BYTES:
            self._grow(len(self.out))
            self.parts.append(self.out)
            self.out = bytearray()

    def _grow(self, count: int) -> None:
        self.size += count
        if self.limit is not None and self.size > self.limit:
            raise TooLarge(f"larger than {self.limit:,} bytes")

    def _apart(self, part: bytes | bytearray | str) -> None:
        """Add a large part without copying it."""
        self._grow(len(part) + len(self.out))
        self.parts += [self.out, part]
        self.out = bytearray()

    def put_none(self, value: None, depth: int) -> None:
        self.out += b"N"

    def put_bool(self, value: bool, depth: int) -> None:
        self.out += b"T" if value else b"F"

    def put_int(self, value: int, depth: int) -> None:
        if _I64_LEAST <= value <= _I64_MOST:
            self.out += b"i" + _I64.pack(value)
        else:
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            self.out += b"I" + _U32.pack(len(data)) + data

    def put_float(self, value: float, depth: int) -> None:
        self.out += b"f" + _FLOAT.pack(value)

    def put_complex(self, value: complex, depth: int) -> None:
        self.out += b"c" + _COMPLEX.pack(value.real, value.imag)

    def put_str(self, value: str, depth: int) -> None:
        if len(value) > LONG_TEXT:
            self.out += b"S"
            self._apart(value)
        else:
            data = value.encode("utf-8", "surrogatepass")
            self.out += b"s" + _U32.pack(len(data)) + data

    def put_bytes(self, value: bytes, depth: int) -> None:
        self.out += b"b" + _U64.pack(len(value))
        self._blob(value)

    def put_bytearray(self, value: bytearray, depth: int) -> None:
        data = bytes(value)
        self.out += b"B" + _U64.pack(len(data))
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
        self.out += tag + _U32.pack(len(items))
        index = 0
        try:
            for index, item in enumerate(items):  # noqa: B007 - the handler names the item that failed
                self.put(item, depth + 1)
        except Uncrossable as problem:
            problem.within("{…}" if unordered else f"[{index}]")
            raise

    def put_dict(self, value: Iterable[tuple[Any, Any]], depth: int) -> None:
        items = tuple(value.items() if type(value) is dict else value)
        self.out += b"d" + _U32.pack(len(items))
        key: Any = None
        try:
            for key, item in items:
                self.put(key, depth + 1)
                self.put(item, depth + 1)
        except Uncrossable as problem:
            problem.within(f"[{_short(key)}]")
            raise

    def put_datetime(self, value: Any, depth: int) -> None:
        self.out += b"D" + _DATE.pack(value.year, value.month, value.day) + _clock(value)
        self._zone(value, depth)

    def put_date(self, value: Any, depth: int) -> None:
        self.out += b"a" + _DATE.pack(value.year, value.month, value.day)

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
        self.out += b"w" + _THREE_I64.pack(value.days, value.seconds, value.microseconds)

    def put_timezone(self, value: Any, depth: int) -> None:
        offset = value.utcoffset(None)
        self.out += b"z" + _THREE_I64.pack(offset.days, offset.seconds, offset.microseconds)

    def put_decimal(self, value: Any, depth: int) -> None:
        data = str(value).encode("ascii")
        if len(data) > _DECIMAL_BYTES:
            raise Uncrossable(f"a Decimal of more than {_DECIMAL_BYTES:,} digits")
        self.out += b"x" + _U32.pack(len(data)) + data

    def put_uuid(self, value: Any, depth: int) -> None:
        data = value.bytes
        if type(data) is not bytes or len(data) != 16:  # noqa: PLR2004 - a UUID has 16 bytes
            raise Uncrossable("a UUID without its 16 bytes")
        self.out += b"u" + data

    def put_path(self, value: Any, depth: int) -> None:
        self.out += b"p"
        self.put_str(str(value), depth)


_PUT: dict[type, Callable[[_Encoder, Any, int], None]] = {
    type(None): _Encoder.put_none,
    bool: _Encoder.put_bool,
    int: _Encoder.put_int,
    float: _Encoder.put_float,
    complex: _Encoder.put_complex,
    str: _Encoder.put_str,
    bytes: _Encoder.put_bytes,
    bytearray: _Encoder.put_bytearray,
    list: _Encoder.put_list,
    tuple: _Encoder.put_tuple,
    set: _Encoder.put_set,
    frozenset: _Encoder.put_frozenset,
    dict: _Encoder.put_dict,
}
# Types that are only there when their module was imported, with the module's name: importing them here would
# make every guest slower to start.
_PUT_LOADED: list[tuple[str, str, Callable[[_Encoder, Any, int], None]]] = [
    ("datetime", "datetime", _Encoder.put_datetime),
    ("datetime", "date", _Encoder.put_date),
    ("datetime", "time", _Encoder.put_time),
    ("datetime", "timedelta", _Encoder.put_timedelta),
    ("datetime", "timezone", _Encoder.put_timezone),
    ("decimal", "Decimal", _Encoder.put_decimal),
    ("uuid", "UUID", _Encoder.put_uuid),
    ("pathlib", "PurePath", _Encoder.put_path),
]
# How a subclass becomes its base. The base's own methods are called, so a subclass cannot lie about itself.
_FLATTEN: list[tuple[type, Callable[[_Encoder, Any, int], None], Callable[[Any], Any]]] = [
    (str, _Encoder.put_str, str.__str__),
    (int, _Encoder.put_int, lambda value: int.__add__(value, 0)),
    (float, _Encoder.put_float, float.__float__),
    (
        complex,
        _Encoder.put_complex,
        lambda value: complex.__add__(value, 0j) if value else complex.__complex__(value),
    ),
    (bytes, _Encoder.put_bytes, lambda value: bytes.__getitem__(value, slice(None))),
    (bytearray, _Encoder.put_bytearray, lambda value: bytearray.__getitem__(value, slice(None))),
    (list, _Encoder.put_list, list.__iter__),
    (tuple, _Encoder.put_tuple, tuple.__iter__),
    (set, _Encoder.put_set, set.__iter__),
    (frozenset, _Encoder.put_frozenset, frozenset.__iter__),
    (dict, _Encoder.put_dict, dict.items),
]


def _flatten(value: Any) -> tuple[Callable[[_Encoder, Any, int], None], Any]:
    """The way to put a value whose exact type is not a built-in one, and the value in its base type."""
    kind = type(value)
    for module, name, put in _PUT_LOADED:
        known = _loaded(module, name)
        if known is not None and (kind is known or (name == "PurePath" and known in kind.__mro__)):
            return put, value
    if kind is _loaded("collections", "OrderedDict"):
        return _Encoder.put_dict, tuple(value.items())  # its order is not the one of the dict below it
    for base, put, flat in _FLATTEN:
        if base in type.__getattribute__(kind, "__mro__"):
            return put, flat(value)
    raise Uncrossable(f"a value of type {_type_name(kind)}, which cannot cross")


def received_form(value: Any) -> Any:
    """A value as it will be where it arrives, but for what it holds: of a subclass, its base."""
    if type(value) in _PUT:
        return value
    put, flat = _flatten(value)
    if put is _Encoder.put_path:
        from pathlib import Path

        return Path(value)
    base = next((kind for kind, known in _PUT.items() if known is put), None)
    return value if base is None else base(flat)


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
    return _TIME.pack(value.hour, value.minute, value.second, value.fold, value.microsecond)


def decode(data: bytes | bytearray, *, max_values: int = MAX_VALUES) -> Any:
    """The value that `data` is the wire form of; not a byte may be left.

    Raises:
        WireError: anything else than one whole value, more than `max_values` values or DEPTH levels.
    """
    source = Buffer(data)
    value = decode_from(source, max_values=max_values)
    if source.left():
        raise WireError(f"{source.left()} bytes too many after a value")
    return value


def decode_from(source: Source, *, max_values: int = MAX_VALUES) -> Any:
    """Decode one value while it arrives: its encoded form is never in memory as a whole."""
    try:
        return _Decoder(source, max_values).value(0)
    except (ValueError, OverflowError, TypeError, ArithmeticError, RecursionError) as error:
        raise WireError(f"not a value: {error}") from None


class Buffer:
    """Bytes that are all there."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = data
        self._position = 0

    def read(self, count: int) -> bytes:
        """The next `count` bytes."""
        end = self._position + count
        if end > len(self._data):
            raise WireError("a value that ends too early")
        piece = self._data[self._position : end]
        self._position = end
        return bytes(piece)

    def left(self) -> int:
        """How many bytes have not been taken."""
        return len(self._data) - self._position


class _Decoder:
    __slots__ = ("_read_bytes", "collisions_left", "left")

    def __init__(self, source: Source, max_values: int) -> None:
        self._read_bytes = source.read
        self.left = max_values
        self.collisions_left = _COLLISIONS

    def value(self, depth: int) -> Any:
        tag = self._read_bytes(1)
        read = _READ.get(tag)
        if read is None:
            raise WireError(f"no value begins with {tag!r}")
        self.left -= 1
        if self.left < 0 or depth > DEPTH:
            raise WireError("too many values, or too deep")
        return read(self, depth)

    def read_int(self, depth: int) -> int:
        value: int = _I64.unpack(self._read_bytes(8))[0]
        return value

    def read_big_int(self, depth: int) -> int:
        return int.from_bytes(self._short(), "little", signed=True)

    def read_float(self, depth: int) -> float:
        value: float = _FLOAT.unpack(self._read_bytes(8))[0]
        return value

    def read_complex(self, depth: int) -> complex:
        return complex(*_COMPLEX.unpack(self._read_bytes(16)))

    def read_str(self, depth: int) -> str:
        return self._short().decode("utf-8", "surrogatepass")

    def read_long_str(self, depth: int) -> str:
        pieces: list[str] = []
        while piece := self._short():
            self._spend(1)
            pieces.append(piece.decode("utf-8", "surrogatepass"))
        return "".join(pieces)

    def read_bytes(self, depth: int) -> bytes:
        return bytes(self._blob())

    def read_bytearray(self, depth: int) -> bytearray:
        return bytearray(self._blob())

    def read_list(self, depth: int) -> list[Any]:
        return [self.value(depth + 1) for _ in range(self._count())]

    def read_tuple(self, depth: int) -> tuple[Any, ...]:
        return tuple([self.value(depth + 1) for _ in range(self._count())])

    def read_set(self, depth: int) -> set[Any]:
        return set(self._keys(self.read_list(depth)))

    def read_frozenset(self, depth: int) -> frozenset[Any]:
        return frozenset(self._keys(self.read_list(depth)))

    def read_dict(self, depth: int) -> dict[Any, Any]:
        count = self._count()
        keys: list[Any] = []
        items: list[Any] = []
        for _ in range(count):
            keys.append(self.value(depth + 1))
            items.append(self.value(depth + 1))
        return dict(zip(self._keys(keys), items, strict=True))

    def read_datetime(self, depth: int) -> Any:
        from datetime import datetime

        year, month, day = _DATE.unpack(self._read_bytes(_DATE.size))
        hour, minute, second, fold, microsecond = _TIME.unpack(self._read_bytes(_TIME.size))
        return datetime(year, month, day, hour, minute, second, microsecond, self.value(depth + 1), fold=fold)

    def read_date(self, depth: int) -> Any:
        from datetime import date

        return date(*_DATE.unpack(self._read_bytes(_DATE.size)))

    def read_time(self, depth: int) -> Any:
        from datetime import time

        hour, minute, second, fold, microsecond = _TIME.unpack(self._read_bytes(_TIME.size))
        return time(hour, minute, second, microsecond, self.value(depth + 1), fold=fold)

    def read_timedelta(self, depth: int) -> Any:
        from datetime import timedelta

        return timedelta(*_THREE_I64.unpack(self._read_bytes(24)))

    def read_timezone(self, depth: int) -> Any:
        from datetime import timedelta, timezone

        offset = timedelta(*_THREE_I64.unpack(self._read_bytes(24)))
        return timezone(offset) if offset else timezone.utc  # noqa: UP017 - the name the class has had for longest

    def read_decimal(self, depth: int) -> Any:
        from decimal import Decimal

        data = self._short()
        if len(data) > _DECIMAL_BYTES:
            raise WireError("a Decimal that is too long")
        return Decimal(data.decode("ascii"))

    def read_uuid(self, depth: int) -> Any:
        from uuid import UUID

        return UUID(bytes=self._read_bytes(16))

    def read_path(self, depth: int) -> Any:
        from pathlib import Path

        text = self.value(depth + 1)
        if type(text) is not str:
            raise WireError("a path that is not text")
        return Path(text)

    def _short(self) -> bytes:
        return self._read_bytes(_U32.unpack(self._read_bytes(4))[0])

    def _blob(self) -> bytearray:
        left: int = _U64.unpack(self._read_bytes(8))[0]
        data = bytearray()
        while left:
            piece = self._read_bytes(min(left, CHUNK_BYTES))
            data += piece
            left -= len(piece)
        return data

    def _spend(self, values: int) -> None:
        self.left -= values
        if self.left < 0:
            raise WireError("too many values")

    def _keys(self, keys: list[Any]) -> list[Any]:
        """The keys, unless they were chosen to collide: hashes of numbers are no secret, and a table of them is slow.

        A table costs as much memory as a few other values, even an empty one.
        """
        self._spend(_TABLE)
        self.collisions_left -= len(keys) - len(set(map(hash, keys)))
        if self.collisions_left < 0:
            raise WireError("keys whose hashes collide")
        return keys

    def _count(self) -> int:
        count: int = _U32.unpack(self._read_bytes(4))[0]
        if count > self.left:
            raise WireError("too many values")
        return count


_READ: dict[bytes, Callable[[_Decoder, int], Any]] = {
    b"N": lambda decoder, depth: None,
    b"T": lambda decoder, depth: True,
    b"F": lambda decoder, depth: False,
    b"i": _Decoder.read_int,
    b"I": _Decoder.read_big_int,
    b"f": _Decoder.read_float,
    b"c": _Decoder.read_complex,
    b"s": _Decoder.read_str,
    b"S": _Decoder.read_long_str,
    b"b": _Decoder.read_bytes,
    b"B": _Decoder.read_bytearray,
    b"l": _Decoder.read_list,
    b"t": _Decoder.read_tuple,
    b"e": _Decoder.read_set,
    b"E": _Decoder.read_frozenset,
    b"d": _Decoder.read_dict,
    b"D": _Decoder.read_datetime,
    b"a": _Decoder.read_date,
    b"h": _Decoder.read_time,
    b"w": _Decoder.read_timedelta,
    b"z": _Decoder.read_timezone,
    b"x": _Decoder.read_decimal,
    b"u": _Decoder.read_uuid,
    b"p": _Decoder.read_path,
}
