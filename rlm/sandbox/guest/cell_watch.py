"""One cell as the supervisor sees it: its clock, its calls, its report."""

from __future__ import annotations

import os
import select
import time

from . import folders, frames, procfs, shelf, values
from .worker_process import Lost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .supervisor import Supervisor
    from .worker_process import Process

__all__ = ["BACKLOG_BYTES", "Cell"]


BACKLOG_BYTES = 4 << 20
PENDING_CALLS = 20_000
CALL_BYTES = 256 << 20  # as much as the host takes
UNREAD_BYTES = 64 << 20  # of replies, when the host is read slowly; four times as much is the cell's end
READ_SECONDS = 0.005
LOOK_SECONDS = 0.25
WATCH_SECONDS = 0.02


class Cell:
    """One cell while it runs: its clock, its calls, its report."""

    def __init__(self, supervisor: Supervisor, process: Process, timeout: float) -> None:
        self._supervisor = supervisor
        self._host = supervisor.host
        self._process = process
        self._shelf = supervisor.shelf
        self._timeout = timeout
        self.clock = Clock(process)
        self.report: list[bytes] = []
        self._report_done = False
        self._under_way: tuple[int, int] | None = None
        self._size = 0
        self.overfilled = False
        settings = supervisor.settings
        self._read_at = 0.0
        self._looks_every = LOOK_SECONDS if settings["bounds_processes"] else WATCH_SECONDS
        self._look_at = time.monotonic()
        self._measure_at = time.monotonic() + LOOK_SECONDS
        self._verdict: tuple[str, str] | None = None

    def watch(self, payload: bytes) -> tuple[str, str]:
        """Start the cell and relay until it ends; `("", "")` when it says so itself, else what happened instead."""
        try:
            self._begin(payload)
            while self._verdict is None:
                self._wait()
        except Lost as error:
            return "protocol", str(error)
        return self._verdict

    def _begin(self, payload: bytes) -> None:
        try:
            for data in frames.message_frames(frames.RUN, 0, [payload]):
                self._process.tell(data)
        except Lost:
            self._verdict = "gone", ""

    def _wait(self) -> None:
        left = self._timeout - self.clock.seconds()
        if left <= 0:
            self._verdict = (
                "timeout",
                f"the cell computed for more than {self._timeout:g} seconds and was stopped",
            )
            return
        self._look_around()
        if self._verdict is not None:
            return
        stalled = self._process.outbox.size > UNREAD_BYTES
        patience = READ_SECONDS if stalled else self._looks_every
        ready = dict(self._poller().poll(min(left, patience) * 1000 + 1))
        self._host.outbox.flush()
        if self._process.outbox.size:
            self._flush_to_cell()
        for descriptor, number in list(self._process.streams.items()):
            if descriptor in ready and not self._supervisor.pass_output(descriptor, number):
                self._forget_stream(descriptor, ready[descriptor])
        if self._host.incoming in ready:
            self._host.take_in()
        self._relay_to_cell()
        if self._process.channel.fileno() in ready and not self._process.receive():
            self._verdict = "gone", ""
        self._relay_to_host()
        if self._verdict is None and self._process.pidfd in ready:
            self._verdict = "gone", ""

    def _look_around(self) -> None:
        """What the kernel does not limit here is counted now and then."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + self._looks_every
        settings = self._supervisor.settings
        if not settings["counts_processes"]:
            ancestor = self._supervisor.ancestor
            count = procfs.crowd(os.getpid(), set() if ancestor is None else {ancestor.pid}) - 1
            if count > settings["processes"]:
                self._verdict = (
                    "memory",
                    f"the cell had {count} processes and threads, more than {settings['processes']}",
                )
        if time.monotonic() < self._measure_at:
            return
        self._measure_at = time.monotonic() + LOOK_SECONDS
        if self.clock.waits:
            self.clock.look_at_children(procfs.descendants(os.getpid()))
        most = settings["scratch_bytes"]
        if not settings["quota"] and folders.is_overfull(settings["scratch"], most):
            self.overfilled = True
            self._verdict = (
                "memory",
                f"the cell filled its folder beyond {most:,} bytes, or with too many entries, and it was emptied",
            )

    def _poller(self) -> select.poll:
        poller = select.poll()
        host, process = self._host, self._process
        if self._takes_replies():
            poller.register(host.incoming, select.POLLIN)
        if process.pidfd >= 0:
            poller.register(process.pidfd, select.POLLIN)
        wanted = select.POLLOUT if process.outbox.size else 0
        if host.outbox.size:
            poller.register(host.outbox.descriptor, select.POLLOUT)
        if host.outbox.size < BACKLOG_BYTES:  # else the host must read first
            wanted |= select.POLLIN
            for descriptor in process.streams:
                poller.register(descriptor, select.POLLIN)
        poller.register(process.channel, wanted)
        return poller

    def _takes_replies(self) -> bool:
        """Not while many wait to be read, but now and then: the host may say CANCEL."""
        unread = self._process.outbox.size
        if unread > 4 * UNREAD_BYTES:
            raise Lost(f"the cell did not read {unread:,} bytes of replies")
        if unread > UNREAD_BYTES and time.monotonic() < self._read_at:
            return False
        self._read_at = time.monotonic() + READ_SECONDS
        return True

    def _flush_to_cell(self) -> None:
        try:
            self._process.outbox.flush()
        except OSError:
            self._verdict = "gone", ""

    def _forget_stream(self, descriptor: int, event: int) -> None:
        """A stream that the cell has closed would be ready for ever."""
        if event & select.POLLHUP and not event & select.POLLIN:
            del self._process.streams[descriptor]
            os.close(descriptor)

    def _relay_to_cell(self) -> None:
        arrived = self._host.arrived
        while arrived and self._verdict is None:
            kind, more, number, payload = arrived.popleft()
            if kind == frames.CANCEL:
                self._verdict = "cancelled", "the cell was cancelled"
            elif kind == frames.REPLY and self.clock.is_pending(number):
                if not more:
                    self.clock.call_ended(number)
                    if self._shelf is not None:
                        self._shelf.give_back(number)
                try:
                    self._process.outbox.put(frames.frame(kind, number, payload, more=more))
                except OSError:
                    self._verdict = "gone", ""

    def _relay_to_host(self) -> None:
        arrived = self._process.arrived
        while arrived:
            if self._report_done:
                raise Lost("the cell spoke after its end")
            kind, more, number, payload = arrived.popleft()
            begins = self._under_way is None
            self._check_order(kind, number, len(payload), more=more)
            if kind == frames.CALL:
                if begins:
                    self._tell_places(number)
                if not more:
                    self.clock.call_began(number)
                self._host.outbox.put(frames.frame(kind, number, payload, more=more))
            elif kind == frames.SHELVE and self._shelf is not None:
                self._shelve(self._shelf, number, payload, more=more)
            elif kind == frames.UNSHELVE and self._shelf is not None:
                if not self.clock.is_pending(number):
                    self._shelf.give_back(number)
            elif kind == frames.DONE:
                self._take_report(number, payload, more=more)
            else:
                raise Lost(f"the cell's process sent a message of kind {kind}, which is not its to send")

    def _check_order(self, kind: int, number: int, size: int, *, more: bool) -> None:
        """What the host would take for a broken guest must cost no more than the cell."""
        if self._under_way not in (None, (kind, number)):
            raise Lost("the cell's process sent a message within a message")
        self._size += size
        if self._size > self._most_bytes(kind):
            raise Lost(f"the cell's process sent a message of {self._size:,} bytes, which is too long")
        if kind in (frames.CALL, frames.SHELVE) and self.clock.is_pending(number):
            raise Lost("the cell's process made two calls of one number")
        self._under_way = (kind, number) if more else None
        if not more:
            self._size = 0

    def _most_bytes(self, kind: int) -> int:
        settings = self._supervisor.settings
        match kind:
            case frames.CALL:
                return CALL_BYTES
            case frames.SHELVE:
                return int(settings["shelf_bytes"])
            case _:
                return int(2 * settings["answer_bytes"] + BACKLOG_BYTES)

    def _shelve(self, board: shelf.Shelf, number: int, payload: bytes, *, more: bool) -> None:
        try:
            board.add(number, payload, more=more)
        except (shelf.Full, OSError) as error:
            raise Lost(f"the cell's process put more on the shelf than there is room for: {error}") from None

    def _tell_places(self, number: int) -> None:
        """Where the pieces of a call lie is told by this process alone, right before the call."""
        places = [] if self._shelf is None else self._shelf.places(number)
        if places:
            for data in frames.message_frames(frames.PLACES, number, values.encode(places)):
                self._host.outbox.put(data)

    def _take_report(self, keeps_state: int, payload: bytes, *, more: bool) -> None:
        self.report.append(frames.frame(frames.DONE, 0, payload, more=more))
        if not more:
            self._report_done = True
            self._verdict = (
                ("", "") if keeps_state else ("memory", "MemoryError: the cell used more memory than it may")
            )


class Clock:
    """The compute time of a cell: wall time while no call is pending, processor time while one is."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._pending: set[int] = set()
        self._counted = 0.0
        self._since = time.monotonic()
        self._cpu_since = 0.0
        self._children: dict[int, float] | None = None

    @property
    def waits(self) -> bool:
        """Whether a call is pending."""
        return bool(self._pending)

    def is_pending(self, number: int) -> bool:
        """Whether a reply to this call is waited for."""
        return number in self._pending

    def call_began(self, number: int) -> None:
        """A call went to the host."""
        if not self._pending:
            self._counted += time.monotonic() - self._since
            self._cpu_since = self._process.cpu_seconds()
            self._children = None
        self._pending.add(number)
        if len(self._pending) > PENDING_CALLS:
            raise Lost(f"more than {PENDING_CALLS:,} calls at once")

    def call_ended(self, number: int) -> None:
        """Its reply came."""
        if number in self._pending:
            self._pending.discard(number)
            if not self._pending:
                self._counted += self._cpu()
                self._since = time.monotonic()

    def look_at_children(self, pids: list[int]) -> None:
        """While a call is pending, add what other processes of the cell have used since the last look."""
        used = {pid: procfs.cpu_seconds_of(pid) for pid in pids if pid != self._process.pid}
        if self._children is not None:
            self._counted += sum(
                max(0.0, seconds - self._children.get(pid, 0.0)) for pid, seconds in used.items()
            )
        self._children = used

    def seconds(self) -> float:
        """Compute time so far."""
        if self._pending:
            return self._counted + self._cpu()
        return self._counted + time.monotonic() - self._since

    def _cpu(self) -> float:
        """Processor time since the first pending call; of a process that is gone, none."""
        return max(0.0, self._process.cpu_seconds() - self._cpu_since)
