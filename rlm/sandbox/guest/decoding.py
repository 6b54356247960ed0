# ruff: noqa: ARG002, ARG005 - all readers share one signature, with the depth
"""Decoding of values: the other direction of `values`, for bytes that may come from a hostile process.

Bounded are the depth, the number of values, and the colliding hashes in dicts and sets; the bytes are bounded by the
frames that carry them. The result is plain data, or a `WireError` is raised.
"""

from __future__ import annotations

from . import values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    class ByteSource(Protocol):
        """Source of encoded bytes."""

        def read(self, count: int) -> bytes:
            """Return exactly `count` bytes; raises `WireError` where there are fewer."""
            ...


__all__ = ["Buffer", "decode", "decode_all", "decode_from"]


MAX_VALUES = 1 << 62
_COLLISIONS = 1000


def decode(data: bytes | bytearray, *, max_values: int = MAX_VALUES) -> Any:
    """Return the one value that `data` encodes.

    Raises:
        WireError: it is not one whole value, or of more than `max_values` values or DEPTH levels.
    """
    source = Buffer(data)
    value = decode_from(source, max_values=max_values)
    if source.left():
        raise values.WireError(f"{source.left()} bytes too many after a value")
    return value


def decode_all(data: bytes | bytearray, count: int, *, max_values: int = MAX_VALUES) -> list[Any]:
    """Return the `count` values that `data` encodes one after the other; of the last one, its `WireError` if it breaks.

    Each has its own bounds, so that the last costs nothing but itself.
    """
    source = Buffer(data)
    found = [decode_from(source, max_values=max_values) for _ in range(count - 1)]
    try:
        found.append(decode_from(source, max_values=max_values))
    except values.WireError as error:
        found.append(error)
    return found


def decode_from(source: ByteSource, *, max_values: int = MAX_VALUES) -> Any:
    """Decode one value while its bytes arrive; the encoded form is never in memory as a whole."""
    try:
        return _Decoder(source, max_values).value(0)
    except (ValueError, OverflowError, TypeError, ArithmeticError, RecursionError) as error:
        raise values.WireError(f"not a value: {error}") from None


class Buffer:
    """Bytes in memory as a source."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = data
        self._position = 0

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes; raises `WireError` where there are fewer."""
        end = self._position + count
        if end > len(self._data):
            raise values.WireError("the value ends too early")
        piece = self._data[self._position : end]
        self._position = end
        return bytes(piece)

    def left(self) -> int:
        """Return the number of unread bytes."""
        return len(self._data) - self._position


class _Decoder:
    __slots__ = ("_read_bytes", "collisions_left", "left")

    def __init__(self, source: ByteSource, max_values: int) -> None:
        self._read_bytes = source.read
        self.left = max_values
        self.collisions_left = _COLLISIONS

    def value(self, depth: int) -> Any:
        tag = self._read_bytes(1)
        read = _READ.get(tag)
        if read is None:
            raise values.WireError(f"no value begins with {tag!r}")
        self.left -= 1
        if self.left < 0 or depth > values.DEPTH:
            raise values.WireError("the value has too many parts, or too many levels")
        return read(self, depth)

    def read_int(self, depth: int) -> int:
        value: int = values.I64.unpack(self._read_bytes(8))[0]
        return value

    def read_big_int(self, depth: int) -> int:
        return int.from_bytes(self._short(), "little", signed=True)

    def read_float(self, depth: int) -> float:
        value: float = values.FLOAT.unpack(self._read_bytes(8))[0]
        return value

    def read_complex(self, depth: int) -> complex:
        return complex(*values.COMPLEX.unpack(self._read_bytes(16)))

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

        year, month, day = values.DATE.unpack(self._read_bytes(values.DATE.size))
        hour, minute, second, fold, microsecond = values.TIME.unpack(self._read_bytes(values.TIME.size))
        return datetime(year, month, day, hour, minute, second, microsecond, self.value(depth + 1), fold=fold)

    def read_date(self, depth: int) -> Any:
        from datetime import date

        return date(*values.DATE.unpack(self._read_bytes(values.DATE.size)))

    def read_time(self, depth: int) -> Any:
        from datetime import time

        hour, minute, second, fold, microsecond = values.TIME.unpack(self._read_bytes(values.TIME.size))
        return time(hour, minute, second, microsecond, self.value(depth + 1), fold=fold)

    def read_timedelta(self, depth: int) -> Any:
        from datetime import timedelta

        return timedelta(*values.THREE_I64.unpack(self._read_bytes(24)))

    def read_timezone(self, depth: int) -> Any:
        from datetime import timedelta, timezone

        offset = timedelta(*values.THREE_I64.unpack(self._read_bytes(24)))
        return timezone(offset) if offset else timezone.utc  # noqa: UP017 - the name the class has had for longest

    def read_decimal(self, depth: int) -> Any:
        from decimal import Decimal

        data = self._short()
        if len(data) > values.DECIMAL_BYTES:
            raise values.WireError("the Decimal is too long")
        return Decimal(data.decode("ascii"))

    def read_uuid(self, depth: int) -> Any:
        from uuid import UUID

        return UUID(bytes=self._read_bytes(16))

    def read_path(self, depth: int) -> Any:
        from pathlib import Path

        text = self.value(depth + 1)
        if type(text) is not str:
            raise values.WireError("the path is not text")
        return Path(text)

    def _short(self) -> bytes:
        return self._read_bytes(values.U32.unpack(self._read_bytes(4))[0])

    def _blob(self) -> bytearray:
        left: int = values.U64.unpack(self._read_bytes(8))[0]
        data = bytearray()
        while left:
            piece = self._read_bytes(min(left, values.CHUNK_BYTES))
            data += piece
            left -= len(piece)
        return data

    def _spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise values.WireError("too many values")

    def _keys(self, keys: list[Any]) -> list[Any]:
        """Return the keys of a dict or set; raises `WireError` if too many of them collide.

        The hashes of numbers are known, so a cell can choose numbers whose table takes hours to fill. Each table also
        counts as a few values, since even an empty one takes that much memory.
        """
        self._spend(values.TABLE_VALUES)
        self.collisions_left -= len(keys) - len(set(map(hash, keys)))
        if self.collisions_left < 0:
            raise values.WireError("keys whose hashes collide")
        return keys

    def _count(self) -> int:
        count: int = values.U32.unpack(self._read_bytes(4))[0]
        if count > self.left:
            raise values.WireError("too many values")
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
