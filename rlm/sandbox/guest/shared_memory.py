"""Shared memory through which large contexts go from a guest to the guests of its child runs.

It is a file in memory without a name (`memfd_create`), made by the host, which keeps a descriptor to read. Who has it:

- The supervisor, which is trusted, is the only process that writes to it.
- A child's supervisor inherits a descriptor to read one range of it, and closes it before it forks a worker.
- No process that runs cells ever has a descriptor of it.

The bytes in it come from a cell, so each reader decodes them with bounds (`read_context`).
"""

from __future__ import annotations

import os

from . import decoding, frames, values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "ALIGNMENT",
    "ContextWriter",
    "MemoryReader",
    "SharedMemoryFull",
    "open_shared_memory",
    "overhead_bytes",
    "read_context",
]

ALIGNMENT = 1 << 16
"""Contexts begin at multiples of this, and so at the beginning of a page, which `MADV_REMOVE` needs."""
MAX_CONTEXTS = 1 << 16
FAR_OFFSET = 1 << 46


class SharedMemoryFull(Exception):
    """A context does not fit into the shared memory."""


def overhead_bytes(limit: int) -> int:
    """Return the bytes that each context counts besides its own.

    They bound the number of contexts at MAX_CONTEXTS, so that the message with their locations stays small.
    """
    return max(ALIGNMENT, limit // MAX_CONTEXTS)


def open_shared_memory(descriptor: int, limit: int) -> ContextWriter | None:
    """Return a writer for this descriptor, or None where the system cannot release a part of such a file."""
    writer = ContextWriter(descriptor, limit)
    try:
        write_at(
            descriptor, b"-", FAR_OFFSET
        )  # offsets only grow: under a low limit on file size they would run out
        writer.append(0, b"-", more=False)
        writer.append(1, b"-", more=False)
        writer.release(0)
        writer.clear()
    except (SharedMemoryFull, OSError, ImportError, AttributeError, ValueError):
        return None
    return writer


class ContextWriter:
    """The contexts that one cell gives to child runs, by the number of the call that they belong to.

    The contexts of a call are released when it has its reply. No offset is used twice: a reader that comes after the
    release reads zeros, and never another context.
    """

    def __init__(self, descriptor: int, limit: int) -> None:
        self._descriptor = descriptor
        self._limit = limit
        self._overhead = overhead_bytes(limit)
        self._used = 0
        self._end = 0
        self._contexts: dict[int, list[list[int]]] = {}
        self._is_open = False

    def append(self, call: int, data: bytes, *, more: bool) -> None:
        """Append to the unfinished context of this call, or begin one; raises `SharedMemoryFull`."""
        contexts = self._contexts.setdefault(call, [])
        if not self._is_open:
            self._count(self._overhead)
            contexts.append([self._end, 0])
            self._is_open = True
        self._count(len(data))
        offset, length = contexts[-1]
        write_at(self._descriptor, data, offset + length)
        contexts[-1][1] = length + len(data)
        if not more:
            self._is_open = False
            self._end = offset + -(-contexts[-1][1] // ALIGNMENT) * ALIGNMENT

    def locations(self, call: int) -> list[int]:
        """Return offset and length of each context of a call, one after the other."""
        return [number for context in self._contexts.get(call, ()) for number in context]

    def release(self, call: int) -> None:
        """Free the memory of this call's contexts."""
        contexts = self._contexts.pop(call, None)
        if contexts is None:
            return
        self._used -= sum(self._overhead + length for _, length in contexts)
        if not self._contexts:
            os.ftruncate(self._descriptor, 0)
            return
        for offset, length in contexts:
            if length:
                free_range(self._descriptor, offset, length)

    def clear(self) -> None:
        """Free all of it."""
        if self._contexts:
            self._contexts = {}
            self._used = 0
            self._is_open = False
            os.ftruncate(self._descriptor, 0)

    def close(self) -> None:
        """Close the descriptor, in a worker that was just forked."""
        os.close(self._descriptor)

    def _count(self, count: int) -> None:
        if self._used + count > self._limit:
            raise SharedMemoryFull(f"the contexts of pending calls take more than {self._limit:,} bytes")
        self._used += count


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of `data` at this offset."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def free_range(descriptor: int, offset: int, length: int) -> None:
    """Return the memory of a range of the file to the system; it reads as zeros afterwards."""
    import mmap

    with mmap.mmap(descriptor, length, offset=offset) as part:
        part.madvise(mmap.MADV_REMOVE)


class MemoryReader:
    """A range of a file as a source of encoded bytes, read in pieces of one frame."""

    __slots__ = ("_buffer", "_descriptor", "_offset", "_position", "_unread")

    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self._unread = length
        self._buffer = b""
        self._position = 0

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes; raises `WireError` where there are fewer."""
        end = self._position + count
        if end <= len(self._buffer):
            piece = self._buffer[self._position : end]
            self._position = end
            return piece
        if count > self.left():
            raise values.WireError("a value that ends too early")
        data = bytearray(self._buffer[self._position :])
        while len(data) < count:
            self._fill()
            self._position = count - len(data)
            data += self._buffer[: self._position]
        return bytes(data)

    def left(self) -> int:
        """Return the number of unread bytes."""
        return self._unread + len(self._buffer) - self._position

    def _fill(self) -> None:
        self._buffer = os.pread(self._descriptor, min(frames.FRAME_BYTES, self._unread), self._offset)
        if not self._buffer:
            raise values.WireError("the value was released before it was read")
        self._offset += len(self._buffer)
        self._unread -= len(self._buffer)


def read_context(descriptor: int, offset: int, length: int, max_values: int) -> Any:
    """Decode the one value in a range; raises `WireError` if it is no value or holds more than `max_values` values."""
    reader = MemoryReader(descriptor, offset, length)
    value = decoding.decode_from(reader, max_values=max_values)
    if reader.left():
        raise values.WireError(f"{reader.left()} bytes too many after a value")
    return value
