"""The shelf: memory in which a guest leaves pieces of contexts for the guests of its child runs.

It is a file without a name (`memfd_create`). The host makes it and has it to read only. The supervisor, which is
trusted, alone writes to it; no process that runs cells ever has it. A child's supervisor inherits it to read one
place of it, and closes it before it starts the first such process.

What lies there is what a cell sent, so whoever reads a piece decodes it with bounds.
"""

from __future__ import annotations

import os

from . import frames, values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["ALIGNMENT", "Full", "Shelf", "Slice", "open_shelf", "piece_bytes", "read_value"]

ALIGNMENT = 1 << 16
"""Pieces begin at multiples of it, so at the beginning of a page."""
MOST_PIECES = 1 << 16
FAR_OFF = 1 << 46


class Full(Exception):
    """There is no room for a piece."""


def piece_bytes(most: int) -> int:
    """What a piece counts besides its bytes on a shelf of `most`, so that there are never too many to tell of."""
    return max(ALIGNMENT, most // MOST_PIECES)


def open_shelf(descriptor: int, most: int) -> Shelf | None:
    """The shelf on this descriptor, or None where this system does not give back a part of one."""
    shelf = Shelf(descriptor, most)
    try:
        write_all(descriptor, b"-", FAR_OFF)  # where files may not be large, offsets would run out
        shelf.add(0, b"-", more=False)
        shelf.add(1, b"-", more=False)
        shelf.give_back(0)
        shelf.clear()
    except (Full, OSError, ImportError, AttributeError, ValueError):
        return None
    return shelf


class Shelf:
    """The pieces of the calls of one cell. Those of a call are given back when it has its reply.

    No offset is ever used twice: who comes too late finds nothing, and never another piece.
    """

    def __init__(self, descriptor: int, most: int) -> None:
        self._descriptor = descriptor
        self._most = most
        self._piece_bytes = piece_bytes(most)
        self._used = 0
        self._end = 0
        self._pieces: dict[int, list[list[int]]] = {}
        self._is_open = False

    def add(self, call: int, data: bytes, *, more: bool) -> None:
        """Add to the piece of this call that is under way, or begin one; raises `Full`."""
        pieces = self._pieces.setdefault(call, [])
        if not self._is_open:
            self._take(self._piece_bytes)
            pieces.append([self._end, 0])
            self._is_open = True
        self._take(len(data))
        offset, length = pieces[-1]
        write_all(self._descriptor, data, offset + length)
        pieces[-1][1] = length + len(data)
        if not more:
            self._is_open = False
            self._end = offset + -(-pieces[-1][1] // ALIGNMENT) * ALIGNMENT

    def places(self, call: int) -> list[int]:
        """Offset and length of each piece of a call, one after the other."""
        return [number for piece in self._pieces.get(call, ()) for number in piece]

    def give_back(self, call: int) -> None:
        """The pieces of this call are not needed any more."""
        pieces = self._pieces.pop(call, None)
        if pieces is None:
            return
        self._used -= sum(self._piece_bytes + length for _, length in pieces)
        if not self._pieces:
            os.ftruncate(self._descriptor, 0)
            return
        for offset, length in pieces:
            if length:
                empty(self._descriptor, offset, length)

    def clear(self) -> None:
        """Give everything back."""
        if self._pieces:
            self._pieces = {}
            self._used = 0
            self._is_open = False
            os.ftruncate(self._descriptor, 0)

    def close(self) -> None:
        """Leave it to the parent, after a fork."""
        os.close(self._descriptor)

    def _take(self, count: int) -> None:
        if self._used + count > self._most:
            raise Full(f"the pieces of contexts under way take more than {self._most:,} bytes")
        self._used += count


def write_all(descriptor: int, data: bytes, offset: int) -> None:
    """Write so many bytes at this offset."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def empty(descriptor: int, offset: int, length: int) -> None:
    """Give the memory of a part of the file back; it reads as zeros then."""
    import mmap

    with mmap.mmap(descriptor, length, offset=offset) as part:
        part.madvise(mmap.MADV_REMOVE)


class Slice:
    """A part of a file as a source of bytes."""

    __slots__ = ("_buffer", "_descriptor", "_offset", "_position", "_unread")

    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self._unread = length
        self._buffer = b""
        self._position = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes; raises `WireError` where there are fewer."""
        end = self._position + count
        if end <= len(self._buffer):
            piece = self._buffer[self._position : end]
            self._position = end
            return piece
        if count > self.left():
            raise values.WireError("a value that ends too early")
        data = bytearray(self._buffer[self._position :])
        while len(data) < count:
            self._read()
            self._position = count - len(data)
            data += self._buffer[: self._position]
        return bytes(data)

    def left(self) -> int:
        """How many bytes have not been taken."""
        return self._unread + len(self._buffer) - self._position

    def _read(self) -> None:
        self._buffer = os.pread(self._descriptor, min(frames.FRAME_BYTES, self._unread), self._offset)
        if not self._buffer:
            raise values.WireError("a value that is not there any more")
        self._offset += len(self._buffer)
        self._unread -= len(self._buffer)


def read_value(descriptor: int, offset: int, length: int, max_values: int) -> Any:
    """The one value at a place, of at most `max_values` values; raises `WireError` where that is not what is there."""
    source = Slice(descriptor, offset, length)
    value = values.decode_from(source, max_values=max_values)
    if source.left():
        raise values.WireError(f"{source.left()} bytes too many after a value")
    return value
