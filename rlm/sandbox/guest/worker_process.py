"""A worker as the supervisor sees it: its process, its channel, its output.

A cell controls its own worker, so nothing that the worker sends is trusted. What the supervisor relies on comes from
the kernel: the process number that wrote to the channel (SCM_CREDENTIALS), the parent of a process, and signals.
"""

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

__all__ = ["WorkerLost", "WorkerProcess", "describe_end"]

CREDENTIALS = struct.Struct("3i")
PASS_CREDENTIALS = getattr(socket, "SO_PASSCRED", None)


class WorkerLost(Exception):
    """A worker broke the protocol, did not answer in time, or has ended."""


class WorkerProcess:
    """The supervisor's ends of one worker's channel, output and death pipe, and its process number.

    The death pipe carries no bytes. The supervisor holds one end of it and nothing else does, so the kernel closes it
    when the supervisor ends, however it ends; `kill_on_supervisor_exit` has the kernel kill the worker then.
    """

    def __init__(self, channel: socket.socket, stdout: int, stderr: int, death_pipe: int) -> None:
        self.channel = channel
        self.death_pipe = death_pipe
        self.streams = {stdout: 1, stderr: 2}
        self.pid = 0
        self.pidfd = -1
        self.outbox = Outbox(channel.fileno())
        self.arrived: deque[frames.Frame] = deque()
        self._frames = frames.FrameReader()
        for descriptor in self.streams:
            os.set_blocking(descriptor, False)

    @classmethod
    def create(cls) -> tuple[WorkerProcess, list[int]]:
        """Return a worker that has no process yet, and the descriptors for it, in the order of FORK."""
        ours, theirs = socket.socketpair()
        if PASS_CREDENTIALS is not None:
            ours.setsockopt(socket.SOL_SOCKET, PASS_CREDENTIALS, 1)
        stdout, stdout_theirs = os.pipe()
        stderr, stderr_theirs = os.pipe()
        death_pipe_theirs, death_pipe = os.pipe()
        process = cls(ours, stdout, stderr, death_pipe)
        return process, [theirs.detach(), stdout_theirs, stderr_theirs, death_pipe_theirs]

    def wait_ready(self, theirs: list[int], parent: int, seconds: float) -> None:
        """Wait for HELLO of the new process and close its descriptors here; raises `WorkerLost` without HELLO.

        A cell that controls the parent could name any process as the new worker. Only the sender of HELLO counts, and
        only if `parent` has forked it; no other process may be signalled on the word of a cell.
        """
        death_pipe_theirs = theirs.pop()
        for descriptor in theirs:
            os.close(descriptor)
        try:
            kind, _, number, _ = self.next_frame(seconds)
            if PASS_CREDENTIALS is None:
                self.pid = number
            if kind != frames.HELLO or not self.pid or not procfs.is_child(self.pid, parent):
                self.pid = 0  # it is not known to be our worker, so it must not be killed below
                raise WorkerLost("the new worker sent no greeting")  # noqa: TRY301 - as when it sends nothing
            kill_on_supervisor_exit(death_pipe_theirs, self.pid)
        except WorkerLost:
            self.send_signal(signal.SIGKILL)
            self.close()
            raise
        finally:
            os.close(death_pipe_theirs)
        if hasattr(os, "pidfd_open"):  # its end is then noticed even if a copy of its channel stays open
            with contextlib.suppress(OSError):
                self.pidfd = os.pidfd_open(self.pid)

    def receive(self) -> bool:
        """Read what has arrived; return False at the end of the stream.

        Raises:
            WorkerLost: another process wrote to the channel, or the bytes are no frames.
        """
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
        self._check_sender(ancillary)
        try:
            self.arrived += self._frames.feed(data)
        except values.WireError as error:
            raise WorkerLost(str(error)) from None
        return True

    def _check_sender(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        """Accept bytes of one process only: the kernel attaches the number of the process that wrote them."""
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == getattr(socket, "SCM_CREDENTIALS", None):
                pid = CREDENTIALS.unpack(data[: CREDENTIALS.size])[0]
                if self.pid and pid != self.pid:
                    raise WorkerLost("a process that the cell started wrote to the worker's channel")
                self.pid = pid

    def next_frame(self, seconds: float) -> frames.Frame:
        """Wait for a frame while no cell runs; raises `WorkerLost` if none arrives in time."""
        deadline = time.monotonic() + seconds
        while not self.arrived:
            poller = select.poll()
            poller.register(self.channel, select.POLLIN | (select.POLLOUT if self.outbox.size else 0))
            left = deadline - time.monotonic()
            if left <= 0 or not poller.poll(left * 1000):
                raise WorkerLost("the worker did not answer in time")
            try:
                self.outbox.flush()
            except OSError:
                raise WorkerLost("the worker process has ended") from None
            if not self.receive():
                raise WorkerLost("the worker process has ended")
        return self.arrived.popleft()

    def send(self, data: bytes) -> None:
        """Queue a frame; raises `WorkerLost` if the worker has closed its end."""
        try:
            self.outbox.put(data)
        except OSError as error:
            raise WorkerLost(f"the worker process has ended: {error}") from None

    def send_descriptors(self, data: bytes, descriptors: list[int], seconds: float) -> None:
        """Send a frame with descriptors after all queued bytes; raises `WorkerLost` if that takes too long."""
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
                raise WorkerLost(f"the worker process has ended: {error}") from None
        raise WorkerLost("the worker does not read")

    def cpu_seconds(self) -> float:
        """Return the processor time that the process has used, or 0 if the platform does not say."""
        return procfs.cpu_seconds_of(self.pid)

    def send_signal(self, number: int) -> None:
        """Send a signal if there is a process and it has not been reaped."""
        if self.pid:  # number 0 would mean the whole group of the supervisor
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def close(self) -> None:
        """Close the supervisor's ends."""
        self.channel.close()
        for descriptor in (*self.streams, self.pidfd, self.death_pipe):
            if descriptor >= 0:
                os.close(descriptor)
        self.streams = {}
        self.pidfd = -1


def kill_on_supervisor_exit(descriptor: int, pid: int) -> None:
    """Have the kernel send SIGKILL to a worker when the other end of its death pipe closes.

    PR_SET_PDEATHSIG would not do: it follows the parent, and the parent of a worker is another worker, which ends when
    its state is no longer needed. F_SETSIG is Linux's; elsewhere a worker ends when it reads the end of its channel,
    but one in an endless loop outlives a supervisor that was killed.
    """
    set_signal = getattr(fcntl, "F_SETSIG", 10 if sys.platform == "linux" else None)
    if set_signal is None:
        return
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETOWN, pid)
    except OSError as error:
        raise WorkerLost(f"the worker process has ended: {error}") from None
    fcntl.fcntl(descriptor, set_signal, signal.SIGKILL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)


def describe_end(status: int) -> tuple[str, str]:
    """Return the outcome and a sentence for a process that ended by itself, from its wait status."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        return "crashed", f"the cell's process was ended by signal {name}"
    return "exited", f"the cell ended its own process with exit status {os.WEXITSTATUS(status)}"
