"""The supervisor's ends of its streams: a queue of bytes that go out, and the frames that came from the host."""

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

__all__ = ["Host", "HostGone", "Incoming", "Outbox"]


PIPE_BYTES = 1 << 20


class HostGone(Exception):
    """The host has closed the channel: time to go."""


class Host:
    """The channel to the host: frames that came, and a queue of what is to go."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self.incoming = incoming
        self.outbox = Outbox(outgoing)
        self.arrived: deque[frames.Frame] = deque()
        self._frames = frames.Frames()
        widen_pipe(incoming)

    def say(self, kind: int, value: Any) -> None:
        """Send one message."""
        for data in frames.message_frames(kind, 0, values.encode(value)):
            self.outbox.put(data)

    def message(self) -> tuple[int, bytes]:
        """Wait for a whole message; one that another cuts short was given up."""
        kind, more, number, piece = self.frame()
        payload = bytearray(piece)
        while more:
            following = self.frame()
            if (following[0], following[2]) != (kind, number):
                self.arrived.appendleft(following)
                return self.message()
            more = following[1]
            payload += following[3]
        return kind, bytes(payload)

    def frame(self) -> frames.Frame:
        """Wait for a frame; meanwhile what is queued goes out."""
        while not self.arrived:
            poller = select.poll()
            poller.register(self.incoming, select.POLLIN)
            if self.outbox.size:
                poller.register(self.outbox.descriptor, select.POLLOUT)
            ready = dict(poller.poll())
            self.outbox.flush()
            if self.incoming in ready:
                self.take_in()
        return self.arrived.popleft()

    def speaks_within(self, seconds: float) -> bool:
        """Whether there is something to hear, or is before long."""
        poller = select.poll()
        poller.register(self.incoming, select.POLLIN)
        return bool(self.arrived or poller.poll(seconds * 1000))

    def take_in(self) -> None:
        """Read what has come."""
        data = os.read(self.incoming, frames.FRAME_BYTES)
        if not data:
            raise HostGone
        self.arrived += self._frames.feed(data)

    def close(self) -> None:
        """Leave it to the parent, after a fork."""
        os.close(self.incoming)
        os.close(self.outbox.descriptor)


class Outbox:
    """Bytes on their way to a descriptor that may not take them all at once."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._waiting: deque[memoryview] = deque()
        self.size = 0
        self._begun = False
        os.set_blocking(descriptor, False)

    def forget(self) -> None:
        """Drop what is queued, but for the rest of a frame that has begun to go."""
        kept = [self._waiting[0]] if self._waiting and self._begun else []
        self._waiting = deque(kept)
        self.size = sum(map(len, kept))

    def put(self, data: bytes) -> None:
        """Queue and send what goes."""
        self._waiting.append(memoryview(data))
        self.size += len(data)
        self.flush()

    def flush(self) -> None:
        """Send what goes."""
        while self._waiting:
            try:
                sent = os.write(self.descriptor, self._waiting[0])
            except BlockingIOError:
                return
            self.size -= sent
            self._begun = sent < len(self._waiting[0])
            if self._begun:
                self._waiting[0] = self._waiting[0][sent:]
            else:
                self._waiting.popleft()


class Incoming:
    """A message from the host as a source of bytes, read as it comes."""

    def __init__(self, host: Host, first: bytes, *, more: bool) -> None:
        self._host = host
        self._buffer = memoryview(first)
        self._more = more

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if len(self._buffer) >= count:
            piece = bytes(self._buffer[:count])
            self._buffer = self._buffer[count:]
            return piece
        data = bytearray(self._buffer)
        while len(data) < count:
            if not self._more:
                raise values.WireError("a value that ends too early")
            _, self._more, _, payload = self._host.frame()
            needed = count - len(data)
            data += payload[:needed]
            self._buffer = memoryview(payload)[needed:]
        return bytes(data)

    def finish(self) -> None:
        """Read the end of the message: its last frame may be empty."""
        while self._more:
            _, self._more, _, payload = self._host.frame()
            self._buffer = memoryview(payload)
        if len(self._buffer):
            raise values.WireError("bytes too many after a value")


def widen_pipe(descriptor: int) -> None:
    """Let more of a large context wait in the pipe, where the kernel allows it."""
    with contextlib.suppress(AttributeError, OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
