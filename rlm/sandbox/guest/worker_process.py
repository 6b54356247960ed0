"""A worker as the supervisor sees it: its process, its channel, its output."""

from __future__ import annotations

import _socket as socket  # the part in C: the rest would be a tenth of a guest's start
import array
import contextlib
import fcntl
import os
import select
import signal
import struct
import sys
import time
from collections import deque

from . import frames, procfs, values
from .pipes import Outbox

__all__ = ["Lost", "Process", "describe_end", "put_on_leash"]


CREDENTIALS = struct.Struct("3i")
PASS_CREDENTIALS = getattr(socket, "SO_PASSCRED", None)


class Lost(Exception):
    """A worker did not do what it must."""


class Process:
    """A worker as the supervisor sees it: its process number, channel, output and what is on its way to it."""

    def __init__(self, channel: socket.socket, stdout: int, stderr: int, leash: int) -> None:
        self.channel = channel
        self.leash = leash
        self.streams = {stdout: 1, stderr: 2}
        self.pid = 0
        self.pidfd = -1
        self.outbox = Outbox(channel.fileno())
        self.frames = frames.Frames()
        self.arrived: deque[frames.Frame] = deque()
        for descriptor in self.streams:
            os.set_blocking(descriptor, False)

    def receive(self) -> bool:
        """Take in what has come; False at the end of the stream. Raises `Lost` when somebody else spoke."""
        try:
            data, ancillary, _, _ = self.channel.recvmsg(
                frames.FRAME_BYTES, socket.CMSG_SPACE(CREDENTIALS.size)
            )
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        self._check_speaker(ancillary)
        try:
            self.arrived += self.frames.feed(data)
        except values.WireError as error:
            raise Lost(str(error)) from None
        return True

    def tell(self, data: bytes) -> None:
        """Queue a frame for it; raises `Lost` when it does not listen any more."""
        try:
            self.outbox.put(data)
        except OSError as error:
            raise Lost(f"the worker is gone: {error}") from None

    def send_descriptors(self, data: bytes, descriptors: list[int], seconds: float) -> None:
        """Send a frame with descriptors once all that is queued has gone; raises `Lost` when it does not go."""
        message = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        poller = select.poll()
        poller.register(self.channel, select.POLLOUT)
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and poller.poll(left * 1000):
            try:
                self.outbox.flush()
                if not self.outbox.size:
                    self.channel.sendmsg([data], message)
                    return
            except BlockingIOError:
                continue
            except OSError as error:
                raise Lost(f"the worker is gone: {error}") from None
        raise Lost("the worker does not listen")

    def _check_speaker(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        """The kernel says who wrote: only the one process that the channel was made for may."""
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == getattr(socket, "SCM_CREDENTIALS", None):
                pid = CREDENTIALS.unpack(data[: CREDENTIALS.size])[0]
                if self.pid and pid != self.pid:
                    raise Lost("a process that the cell started spoke on the channel")
                self.pid = pid

    def watch(self) -> None:
        """From now on the process is known by number; watch for its end where the platform can."""
        if hasattr(os, "pidfd_open"):
            try:
                self.pidfd = os.pidfd_open(self.pid)
            except OSError:
                self.pidfd = -1

    def cpu_seconds(self) -> float:
        """How much processor time it has used, or 0 where nobody tells."""
        return procfs.cpu_seconds_of(self.pid)

    def send_signal(self, number: int) -> None:
        """Signal it, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def close(self) -> None:
        """Close all that belongs to it here."""
        self.channel.close()
        for descriptor in (*self.streams, self.pidfd, self.leash):
            if descriptor >= 0:
                os.close(descriptor)
        self.streams = {}
        self.pidfd = -1


def put_on_leash(descriptor: int, pid: int) -> None:
    """Have the kernel kill a process when the other end of this pipe closes, which is when the supervisor ends."""
    set_signal = getattr(fcntl, "F_SETSIG", 10 if sys.platform == "linux" else None)
    if set_signal is None:
        return
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETOWN, pid)
    except OSError as error:
        raise Lost(f"the worker is gone: {error}") from None
    fcntl.fcntl(descriptor, set_signal, signal.SIGKILL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)


def describe_end(status: int) -> tuple[str, str]:
    """The outcome and a sentence for a process that ended by itself."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        return "crashed", f"the cell's process was ended by signal {name}"
    return "exited", f"the cell ended its own process with exit status {os.WEXITSTATUS(status)}"
