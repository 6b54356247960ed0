"""One running cell as the supervisor sees it: relays its frames and output, counts its time, and decides when to stop it.

The worker that runs the cell is in the cell's hands. So the supervisor checks the order and size of everything that it
relays: what would look to the host like a broken guest must cost the cell, not the guest.
"""

from __future__ import annotations

import os
import select
import time

from . import folders, frames, procfs, shared_memory, values
from .worker_process import WorkerLost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .pipes import HostPipe
    from .worker_process import WorkerProcess

__all__ = ["BACKLOG_BYTES", "CellWatch", "drain_output"]

BACKLOG_BYTES = 4 << 20
MAX_PENDING_CALLS = 20_000
CALL_BYTES = 256 << 20  # as much as the host takes
UNREAD_BYTES = (
    64 << 20
)  # of replies: beyond it the host is read slowly; beyond four times as much the cell is killed
READ_SECONDS = 0.005
MEASURE_SECONDS = 0.25
COUNT_SECONDS = 0.02
DRAIN_BYTES = 8 << 20


class CellWatch:
    """Runs one cell on a worker and relays between it and the host.

    Args:
        host: gets the cell's calls and output, and sends the replies.
        process: the worker that runs the cell.
        memory: takes the contexts of child runs; None if nothing is shared.
        settings: the limits.
        checkpoint: process number of the stopped worker that is not the cell's, or 0.
        timeout: seconds of compute time.
    """

    def __init__(
        self,
        host: HostPipe,
        process: WorkerProcess,
        memory: shared_memory.ContextWriter | None,
        settings: dict[str, Any],
        *,
        checkpoint: int,
        timeout: float,
    ) -> None:
        self._host = host
        self._process = process
        self._memory = memory
        self._settings = settings
        self._checkpoint = checkpoint
        self._timeout = timeout
        self.clock = CellClock(process)
        self.report: list[bytes] = []
        self.overfilled = False
        self.is_silent = True
        self._report_done = False
        self._unfinished: tuple[int, int] | None = None
        self._size = 0
        self._read_at = 0.0
        self._count_every = MEASURE_SECONDS if settings["bounds_processes"] else COUNT_SECONDS
        self._count_at = time.monotonic()
        self._measure_at = time.monotonic() + MEASURE_SECONDS
        self._ending: tuple[str, str] | None = None

    def run(self, payload: bytes) -> tuple[str, str]:
        """Send the cell to the worker and relay until it ends.

        Returns:
            ("", "") if the worker reported the end; ("gone", "") if its process ended; else an outcome of ENDED and a
            sentence, and the worker has to be killed.
        """
        try:
            self._send_cell(payload)
            while self._ending is None:
                self._step()
        except WorkerLost as error:
            return "protocol", str(error)
        return self._ending

    def _send_cell(self, payload: bytes) -> None:
        try:
            for data in frames.message_frames(frames.RUN, 0, [payload]):
                self._process.send(data)
        except WorkerLost:
            self._ending = "gone", ""

    def _step(self) -> None:
        """Wait for one event, with a bound on the wait, and handle it."""
        left = self._timeout - self.clock.seconds()
        if left <= 0:
            self._ending = (
                "timeout",
                f"the cell computed for more than {self._timeout:g} seconds and was stopped",
            )
            return
        self._check_limits()
        if self._ending is not None:
            return
        stalled = self._process.outbox.size > UNREAD_BYTES
        wait = READ_SECONDS if stalled else self._count_every
        ready = dict(self._poller().poll(min(left, wait) * 1000 + 1))
        self._host.outbox.flush()
        if self._process.outbox.size:
            self._flush_to_cell()
        for descriptor, number in list(self._process.streams.items()):
            if descriptor in ready:
                if relay_output(self._host, descriptor, number):
                    self.is_silent = False
                else:
                    self._close_ended_stream(descriptor, ready[descriptor])
        if self._host.incoming in ready:
            self._host.receive()
        self._relay_to_cell()
        if self._process.channel.fileno() in ready and not self._process.receive():
            self._ending = "gone", ""
        # Frames that arrived with the end of the stream still count, above all a last DONE.
        self._relay_to_host()
        if self._ending is None and self._process.pidfd in ready:
            self._ending = "gone", ""

    def _check_limits(self) -> None:
        """Measure what the kernel does not limit on this machine."""
        now = time.monotonic()
        if now < self._count_at:
            return
        self._count_at = now + self._count_every
        settings = self._settings
        if not settings["counts_processes"]:
            spared = {self._checkpoint} if self._checkpoint else set()
            count = procfs.count_tasks(os.getpid(), spared) - 1
            if count > settings["processes"]:
                self._ending = (
                    "memory",
                    f"the cell had {count} processes and threads, more than {settings['processes']}",
                )
        if now < self._measure_at:
            return
        self._measure_at = now + MEASURE_SECONDS
        if self.clock.is_waiting:
            self.clock.count_children(procfs.descendants(os.getpid()))
        limit = settings["scratch_bytes"]
        if not settings["quota"] and folders.is_overfull(settings["scratch"], limit):
            self.overfilled = True
            self._ending = (
                "memory",
                f"the cell filled its folder beyond {limit:,} bytes, or with too many entries, and it was emptied",
            )

    def _poller(self) -> select.poll:
        poller = select.poll()
        host, process = self._host, self._process
        if self._takes_replies():
            poller.register(host.incoming, select.POLLIN)
        if process.pidfd >= 0:
            poller.register(process.pidfd, select.POLLIN)
        events = select.POLLOUT if process.outbox.size else 0
        if host.outbox.size:
            poller.register(host.outbox.descriptor, select.POLLOUT)
        if (
            host.outbox.size < BACKLOG_BYTES
        ):  # else the host must read first; a cell that floods is made to wait
            events |= select.POLLIN
            for descriptor in process.streams:
                poller.register(descriptor, select.POLLIN)
        poller.register(process.channel, events)
        return poller

    def _takes_replies(self) -> bool:
        """Return False most of the time while the cell reads slowly; True now and then, since CANCEL may come."""
        unread = self._process.outbox.size
        if unread > 4 * UNREAD_BYTES:
            raise WorkerLost(f"the cell did not read {unread:,} bytes of replies")
        if unread > UNREAD_BYTES and time.monotonic() < self._read_at:
            return False
        self._read_at = time.monotonic() + READ_SECONDS
        return True

    def _flush_to_cell(self) -> None:
        try:
            self._process.outbox.flush()
        except OSError:
            self._ending = "gone", ""

    def _close_ended_stream(self, descriptor: int, event: int) -> None:
        """Close a stream whose other end the cell has closed: `poll` would return at once for ever."""
        if event & select.POLLHUP and not event & select.POLLIN:
            del self._process.streams[descriptor]
            os.close(descriptor)

    def _relay_to_cell(self) -> None:
        arrived = self._host.arrived
        while arrived and self._ending is None:
            kind, more, number, payload = arrived.popleft()
            if kind == frames.CANCEL:
                self._ending = "cancelled", "the cell was cancelled"
            elif kind == frames.REPLY and self.clock.is_pending(number):
                if not more:
                    self.clock.call_ended(number)
                    if self._memory is not None:
                        self._memory.release(number)
                try:
                    self._process.outbox.put(frames.frame(kind, number, payload, more=more))
                except OSError:
                    self._ending = "gone", ""

    def _relay_to_host(self) -> None:
        arrived = self._process.arrived
        while arrived:
            if self._report_done:
                raise WorkerLost("the cell spoke after its end")
            kind, more, number, payload = arrived.popleft()
            begins = self._unfinished is None
            self._check_order(kind, number, len(payload), more=more)
            self.is_silent = False
            if kind == frames.CALL:
                if begins:
                    self._send_locations(number)
                if not more:
                    self.clock.call_began(number)
                self._host.outbox.put(frames.frame(kind, number, payload, more=more))
            elif kind == frames.SHARE and self._memory is not None:
                self._share(self._memory, number, payload, more=more)
            elif kind == frames.UNSHARE and self._memory is not None:
                if not self.clock.is_pending(number):  # the contexts of a pending call are the host's to read
                    self._memory.release(number)
            elif kind == frames.DONE:
                self._add_report(number, payload, more=more)
            else:
                raise WorkerLost(
                    f"the cell's process sent a message of kind {kind}, which is not its to send"
                )

    def _check_order(self, kind: int, number: int, size: int, *, more: bool) -> None:
        """Raise `WorkerLost` where the host would see a broken protocol."""
        if self._unfinished not in (None, (kind, number)):
            raise WorkerLost("the cell's process began a message before the one before it was complete")
        self._size += size
        if self._size > self._max_bytes(kind):
            raise WorkerLost(f"the cell's process sent a message of {self._size:,} bytes, which is too long")
        if kind in (frames.CALL, frames.SHARE) and self.clock.is_pending(number):
            raise WorkerLost("the cell's process made two calls of one number")
        self._unfinished = (kind, number) if more else None
        if not more:
            self._size = 0

    def _max_bytes(self, kind: int) -> int:
        match kind:
            case frames.CALL:
                return CALL_BYTES
            case frames.SHARE:
                return int(self._settings["shared_bytes"])
            case _:
                return int(2 * self._settings["answer_bytes"] + BACKLOG_BYTES)

    def _share(self, memory: shared_memory.ContextWriter, number: int, payload: bytes, *, more: bool) -> None:
        try:
            memory.append(number, payload, more=more)
        except (shared_memory.SharedMemoryFull, OSError) as error:
            raise WorkerLost(
                f"the cell's process put more into shared memory than its limit: {error}"
            ) from None

    def _send_locations(self, number: int) -> None:
        """Tell the host where the contexts of a call are; a cell cannot name locations itself, only indexes."""
        locations = [] if self._memory is None else self._memory.locations(number)
        if locations:
            for data in frames.message_frames(frames.LOCATIONS, number, values.encode(locations)):
                self._host.outbox.put(data)

    def _add_report(self, keeps_state: int, payload: bytes, *, more: bool) -> None:
        """Keep DONE until the worker has forked the next one: only then is it true for the host."""
        self.report.append(frames.frame(frames.DONE, 0, payload, more=more))
        if not more:
            self._report_done = True
            self._ending = (
                ("", "") if keeps_state else ("memory", "MemoryError: the cell used more memory than it may")
            )


class CellClock:
    """Compute time of a cell: wall time while no call is pending, processor time while one is.

    So a cell that waits for a model does not run out of time, and one that computes meanwhile does. Processor time of
    the cell's child processes is sampled; what a child uses that lives for less than a sample is not counted.
    """

    def __init__(self, process: WorkerProcess) -> None:
        self._process = process
        self._pending: set[int] = set()
        self._counted = 0.0
        self._since = time.monotonic()
        self._cpu_since = 0.0
        self._children: dict[int, float] | None = None

    @property
    def is_waiting(self) -> bool:
        """True while a call is pending."""
        return bool(self._pending)

    def is_pending(self, number: int) -> bool:
        """Return True if the call of this number has no reply yet."""
        return number in self._pending

    def call_began(self, number: int) -> None:
        """Count a call as pending; raises `WorkerLost` if there are too many."""
        if not self._pending:
            self._counted += time.monotonic() - self._since
            self._cpu_since = self._process.cpu_seconds()
            self._children = None
        self._pending.add(number)
        if len(self._pending) > MAX_PENDING_CALLS:
            raise WorkerLost(f"the cell made more than {MAX_PENDING_CALLS:,} host calls at once")

    def call_ended(self, number: int) -> None:
        """Count a call as answered."""
        if number in self._pending:
            self._pending.discard(number)
            if not self._pending:
                self._counted += self._cpu()
                self._since = time.monotonic()

    def count_children(self, pids: list[int]) -> None:
        """While a call is pending, add the processor time of these other processes since the last sample."""
        used = {pid: procfs.cpu_seconds_of(pid) for pid in pids if pid != self._process.pid}
        if self._children is not None:
            self._counted += sum(
                max(0.0, seconds - self._children.get(pid, 0.0)) for pid, seconds in used.items()
            )
        self._children = used

    def seconds(self) -> float:
        """Return the compute time so far."""
        if self._pending:
            return self._counted + self._cpu()
        return self._counted + time.monotonic() - self._since

    def _cpu(self) -> float:
        """Return processor time since the first pending call; 0 if the process has ended."""
        return max(0.0, self._process.cpu_seconds() - self._cpu_since)


def relay_output(host: HostPipe, descriptor: int, number: int) -> bool:
    """Send one piece of output to the host; return False if none is waiting or the stream has ended."""
    try:
        data = os.read(descriptor, frames.FRAME_BYTES)
    except BlockingIOError:
        return False
    if data:
        host.outbox.put(frames.frame(frames.OUTPUT, number, data))
    return bool(data)


def drain_output(host: HostPipe, process: WorkerProcess) -> None:
    """Send the output that a cell wrote before it ended, up to DRAIN_BYTES: a process it left may write for ever."""
    for descriptor, number in process.streams.items():
        left = DRAIN_BYTES
        while left > 0 and relay_output(host, descriptor, number):
            left -= frames.FRAME_BYTES
