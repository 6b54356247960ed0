"""The supervisor's streams: an outbox that never blocks, and the frames that arrive from the host."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
from collections import deque

from . import frames, values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["HostGone", "HostPipe", "Outbox", "PipeReader"]

PIPE_BYTES = 1 << 20


class HostGone(Exception):
    """The host has closed its end; the supervisor kills its workers and exits."""


class HostPipe:
    """The two pipes to the host: frames that have arrived, and an outbox."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self.incoming = incoming
        self.outbox = Outbox(outgoing)
        self.arrived: deque[frames.Frame] = deque()
        self._frames = frames.FrameReader()
        widen_pipe(incoming)

    def send(self, kind: int, value: Any) -> None:
        """Queue one message."""
        for data in frames.message_frames(kind, 0, values.encode(value)):
            self.outbox.put(data)

    def next_message(self) -> tuple[int, bytes]:
        """Wait for a whole message; drop one that a frame of another message interrupts."""
        kind, more, number, piece = self.next_frame()
        payload = bytearray(piece)
        while more:
            following = self.next_frame()
            if (following[0], following[2]) != (kind, number):
                self.arrived.appendleft(following)
                return self.next_message()
            more = following[1]
            payload += following[3]
        return kind, bytes(payload)

    def next_frame(self) -> frames.Frame:
        """Wait for a frame, and send what is queued meanwhile: the host may wait for it before it writes."""
        while not self.arrived:
            poller = select.poll()
            poller.register(self.incoming, select.POLLIN)
            if self.outbox.size:
                poller.register(self.outbox.descriptor, select.POLLOUT)
            ready = dict(poller.poll())
            self.outbox.flush()
            if self.incoming in ready:
                self.receive()
        return self.arrived.popleft()

    def has_frames_within(self, seconds: float) -> bool:
        """Return True if a frame has arrived or bytes arrive within this time."""
        poller = select.poll()
        poller.register(self.incoming, select.POLLIN)
        return bool(self.arrived or poller.poll(seconds * 1000))

    def receive(self) -> None:
        """Read the bytes that have arrived; raises `HostGone` at the end of the stream."""
        data = os.read(self.incoming, frames.FRAME_BYTES)
        if not data:
            raise HostGone
        self.arrived += self._frames.feed(data)

    def close(self) -> None:
        """Close the descriptors, in a worker that was just forked."""
        os.close(self.incoming)
        os.close(self.outbox.descriptor)


class Outbox:
    """Queue of bytes for a descriptor that is written to without blocking."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._waiting: deque[memoryview] = deque()
        self.size = 0
        self._frame_begun = False
        os.set_blocking(descriptor, False)

    def put(self, data: bytes) -> None:
        """Queue one frame and send as much as the descriptor takes."""
        self._waiting.append(memoryview(data))
        self.size += len(data)
        self.flush()

    def flush(self) -> None:
        """Send as much as the descriptor takes."""
        while self._waiting:
            try:
                sent = os.write(self.descriptor, self._waiting[0])
            except BlockingIOError:
                return
            self.size -= sent
            self._frame_begun = sent < len(self._waiting[0])
            if self._frame_begun:
                self._waiting[0] = self._waiting[0][sent:]
            else:
                self._waiting.popleft()

    def drop_queued(self) -> None:
        """Drop the queued frames, except the rest of one that was sent in part: the reader must stay in step."""
        kept = [self._waiting[0]] if self._waiting and self._frame_begun else []
        self._waiting = deque(kept)
        self.size = sum(map(len, kept))


class PipeReader:
    """Source of the bytes of one message from the host, read as they arrive.

    A context is decoded from it while it is received, so its encoded form is never in memory as a whole.
    """

    def __init__(self, host: HostPipe, first: bytes, *, more: bool) -> None:
        self._host = host
        self._buffer = memoryview(first)
        self._more = more

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes; raises `WireError` where there are fewer."""
        if len(self._buffer) >= count:
            piece = bytes(self._buffer[:count])
            self._buffer = self._buffer[count:]
            return piece
        data = bytearray(self._buffer)
        while len(data) < count:
            if not self._more:
                raise values.WireError("a value that ends too early")
            _, self._more, _, payload = self._host.next_frame()
            needed = count - len(data)
            data += payload[:needed]
            self._buffer = memoryview(payload)[needed:]
        return bytes(data)

    def finish(self) -> None:
        """Read the end of the message, whose last frame may be empty; raises `WireError` if bytes are left."""
        while self._more:
            _, self._more, _, payload = self._host.next_frame()
            self._buffer = memoryview(payload)
        if len(self._buffer):
            raise values.WireError("bytes too many after a value")


def widen_pipe(descriptor: int) -> None:
    """Enlarge the pipe's buffer where the kernel allows it, so that a large context needs fewer switches."""
    with contextlib.suppress(AttributeError, OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
