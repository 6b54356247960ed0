"""The trusted process of the guest: holds the context as it was loaded, runs no cell, and decides about life and death.

It forks the first worker from itself after loading. Then there are at most two workers: the *ancestor*, stopped,
with the state after the last cell; and its copy, which is ready to run the next one. A cell that ends well must
prove it: its process forks the copy for the cell after it, and only then is the ancestor given up. In every other
case the cell's process is killed and the ancestor goes on.

The supervisor never blocks on a worker: all it writes is queued, all it waits for has a deadline.
"""

from __future__ import annotations

import _socket as socket  # the part in C: the rest would be a tenth of a guest's start
import array
import contextlib
import gc
import os
import select
import signal
import struct
import sys
import time
from collections import deque

from . import folders, frames, hardening, limits, procfs, shelf, values, worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = ["Supervisor", "main"]

FIRST_WORD_SECONDS = 0.05
FORK_SECONDS = 10.0
PROOF_SECONDS = 3.0
TELL_SECONDS = 1.5
BACKLOG_BYTES = 4 << 20
PENDING_CALLS = 20_000
CALL_BYTES = 256 << 20  # as much as the host takes
UNREAD_BYTES = 64 << 20  # of replies, when the host is read slowly; four times as much is the cell's end
READ_SECONDS = 0.005
CREDENTIALS = struct.Struct("3i")
PASS_CREDENTIALS = getattr(socket, "SO_PASSCRED", None)
DRAIN_BYTES = 8 << 20
LOOK_SECONDS = 0.25
WATCH_SECONDS = 0.02
PIPE_BYTES = 1 << 20
OWN_FOLDERS = "rlm-own-"


class HostGone(Exception):
    """The host has closed the channel: time to go."""


class Lost(Exception):
    """A worker did not do what it must."""


def main(incoming: int, outgoing: int) -> NoReturn:
    """Serve the host until it goes away."""
    supervisor: Supervisor | None = None
    status = 0
    try:
        host = Host(incoming, outgoing)
        settings = hear_settings(host)
        supervisor = Supervisor(host, settings)
        host.say(frames.READY, settings.pop("facts"))
        supervisor.serve()
    except HostGone:
        pass
    except BaseException:  # noqa: BLE001 - the border of this process: the log is all that is left to tell
        import traceback

        traceback.print_exc()
        status = 70
    finally:
        if supervisor is not None:
            supervisor.kill_everything()
        os._exit(status)


def hear_settings(host: Host) -> dict[str, Any]:
    """Hear START, take this process's own measures, and find out what they are worth."""
    kind, payload = host.message()
    if kind != frames.START:
        raise values.WireError("a host begins with START")
    settings: dict[str, Any] = values.decode(payload)
    settings["owns_scratch"] = not settings["scratch"]
    settings["scratch"], settings["scratch_lock"] = make_scratch(settings["scratch"])
    missing: dict[str, str] = {}
    levels = ["own process", "clean environment", "limits"]
    settings["counts_processes"] = settings["bounds_processes"] = settings["quota"] = False
    levels += hardening.isolate(settings, missing)
    try_shelf(settings)
    hardening.adopt_orphans()
    settings["facts"] = {
        "python": sys.version.split()[0],
        "platform": sys.platform,
        "levels": levels,
        "missing": missing,
    }
    return settings


def try_shelf(settings: dict[str, Any]) -> None:
    """Find out whether what the host gave along is a shelf that can be used."""
    given, most = settings["shelf"], settings["memory_bytes"]
    settings["shelf"] = None if given < 0 else shelf.open_shelf(given, most)
    if given >= 0 and settings["shelf"] is None:
        os.close(given)  # else the processes that run cells would have it
    settings["shelf_bytes"] = 0 if settings["shelf"] is None else most


def make_scratch(given: str) -> tuple[str, int | None]:
    """The folder that cells may write to, the host's where it could make one, or a new one with its lock."""
    if given:
        scratch, lock = given, None
    else:
        folders.remove_abandoned(OWN_FOLDERS)
        scratch, lock = folders.make(OWN_FOLDERS)
    os.chdir(scratch)
    for name in ("HOME", "TMPDIR", "TEMP", "TMP"):
        os.environ[name] = scratch
    if "tempfile" in sys.modules:
        vars(sys.modules["tempfile"])["tempdir"] = None  # it has looked already
    return scratch, lock


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


def widen_pipe(descriptor: int) -> None:
    """Let more of a large context wait in the pipe, where the kernel allows it."""
    import fcntl

    with contextlib.suppress(AttributeError, OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


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
        return cpu_seconds_of(self.pid)

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
        used = {pid: cpu_seconds_of(pid) for pid in pids if pid != self._process.pid}
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


class Supervisor:
    """What the host talks to."""

    def __init__(self, host: Host, settings: dict[str, Any]) -> None:
        self.host = host
        self.settings = settings
        self.shelf: shelf.Shelf | None = settings.pop("shelf")
        self._piece: int = settings.pop("piece")
        self._lock: int | None = settings.pop("scratch_lock")
        self._context: Any = None
        self.ancestor: Process | None = None
        self._next: Process | None = None

    # --- the host --------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Do what the host asks, one thing at a time."""
        if self._piece < 0 and not self.host.speaks_within(FIRST_WORD_SECONDS):
            self._get_ready()  # else it is a context, most likely, and the workers would have to be made again
        while True:
            first = self.host.frame()
            if first[0] in (frames.REPLY, frames.CANCEL):
                continue  # it was for a cell that has ended meanwhile
            if first[0] == frames.LOAD:
                self._load(first[3], more=first[1])
                continue
            self.host.arrived.appendleft(first)
            kind, payload = self.host.message()
            if kind == frames.RUN:
                self._run(payload)
            elif kind == frames.LOAD:
                self._load(payload, more=False)
            elif kind == frames.PICK:
                self._pick(**values.decode(payload))
            elif kind == frames.ASK:
                self._ask(payload)
            elif kind == frames.RESET:
                self._drop_workers()
                self.host.say(frames.LOADED, None)

    def _load(self, first: bytes, *, more: bool) -> None:
        self._forget()
        message = Incoming(self.host, first, more=more)
        self._context = values.decode_from(message)
        message.finish()
        self._loaded(None)

    def _pick(self, offset: int, length: int, max_values: int) -> None:
        """Load the context from the inherited piece. A cell wrote it, so it may be no value at all."""
        piece, self._piece = self._piece, -1
        self._forget()
        problem = None
        try:
            with limits.within_memory(
                2 * self.settings["memory_bytes"]
            ):  # while it is joined, it is there twice
                self._context = shelf.read_value(piece, offset, length, max_values)
        except MemoryError:
            problem = "it takes more memory than a guest may have"
        except (values.WireError, OSError) as error:
            problem = f"{type(error).__name__}: {error}"
        finally:
            os.close(piece)
        self._loaded(problem)

    def _forget(self) -> None:
        self._drop_workers()
        self._context = None
        if self._piece >= 0:
            os.close(self._piece)
            self._piece = -1

    def _loaded(self, problem: str | None) -> None:
        gc.collect()
        gc.freeze()
        self._get_ready()
        self.host.say(frames.LOADED, problem)

    def _get_ready(self) -> None:
        """Have the process for the first cell there before the cell."""
        self._next = self._ready_worker()[1]

    # --- a cell ----------------------------------------------------------------------------------------------

    def _run(self, payload: bytes) -> None:
        """Run one cell to whatever end it comes to, and say so."""
        began = time.monotonic()
        state, process = self._ready_worker()
        cell = Cell(self, process, values.decode(payload)["timeout"])
        outcome, error = cell.watch(payload)
        if outcome == "":
            try:
                self._commit(process, self._prove(process))
            except Lost as reason:
                outcome, error = "protocol", f"the cell left its process unable to go on: {reason}"
        self._drain(process)
        if outcome == "":
            for data in cell.report:
                self.host.outbox.put(data)
        else:
            detail = self._roll_back(process)
            if cell.overfilled:
                folders.empty_folder(self.settings["scratch"])
            if outcome == "gone":
                outcome, error = detail
            state = "lost" if state == "lost" or self.ancestor is None else "rolled back"
        verdict = {
            "outcome": outcome,
            "error": error,
            "state": state,
            "wall": time.monotonic() - began,
            "compute": cell.clock.seconds(),
        }
        self.host.say(frames.ENDED, verdict)
        if self.shelf is not None:
            self.shelf.clear()  # now that the host gives up the calls which the cell did not wait for

    def _prove(self, process: Process) -> Process:
        """Have the process that ran the cell fork the one for the next; that is what it is there for."""
        self._kill_leftovers(process)
        process.outbox.forget()  # replies that the cell did not wait for
        return self._fork(process, PROOF_SECONDS)

    def _commit(self, process: Process, heir: Process) -> None:
        """The cell's process becomes the ancestor; it waits, stopped, and with it whatever the cell left running."""
        old = self.ancestor
        self.ancestor, self._next = process, heir
        process.send_signal(signal.SIGSTOP)
        if old is not None:
            self._end(old)
        self._kill_leftovers(process)  # what a thread of the cell forked until the stop

    def _roll_back(self, process: Process) -> tuple[str, str]:
        """Kill the cell's process; the ancestor knows how it ended, where it ended by itself."""
        process.send_signal(signal.SIGKILL)
        self._kill_leftovers(process)
        status = self._status_of(process)
        process.close()
        self._reap()
        return describe_end(status)

    def _status_of(self, process: Process) -> int:
        if self.ancestor is None:
            return 0
        try:
            self.ancestor.send_signal(signal.SIGCONT)
            self.ancestor.tell(frames.frame(frames.REAP, process.pid))
            kind, _, number, _ = self._await_frame(self.ancestor, FORK_SECONDS)
        except Lost:
            self._end(self.ancestor)
            self.ancestor = None
            return 0
        self._ancestor_stops()
        return number if kind == frames.STATUS else 0

    def _drain(self, process: Process) -> None:
        """Pass on what the cell wrote last."""
        for descriptor, number in process.streams.items():
            left = DRAIN_BYTES
            while left > 0 and self.pass_output(descriptor, number):
                left -= frames.FRAME_BYTES

    def pass_output(self, descriptor: int, number: int) -> bool:
        """Pass on a piece of output; False when there is none at the moment, or no more."""
        try:
            data = os.read(descriptor, frames.FRAME_BYTES)
        except BlockingIOError:
            return False
        if data:
            self.host.outbox.put(frames.frame(frames.OUTPUT, number, data))
        return bool(data)

    # --- asking ----------------------------------------------------------------------------------------------

    def _ask(self, payload: bytes) -> None:
        """Put a question to a copy that is thrown away, since answering may run a cell's own code."""
        _, process = self._ready_worker()
        self._next = None
        told: list[bytes] = []
        try:
            for data in frames.message_frames(frames.ASK, 0, [payload]):
                process.tell(data)
            deadline = time.monotonic() + TELL_SECONDS
            size, more = 0, True
            while more:
                kind, more, _, piece = self._await_frame(process, deadline - time.monotonic())
                size += len(piece)
                if kind != frames.TOLD or size > self.settings["answer_bytes"] + BACKLOG_BYTES:
                    raise Lost("not what was asked")  # noqa: TRY301 - as when it answers nothing
                told.append(frames.frame(frames.TOLD, 0, piece, more=more))
        except Lost:
            told = list(frames.message_frames(frames.TOLD, 0, values.encode(("silent", None))))
        finally:
            self._roll_back(process)
        for data in told:
            self.host.outbox.put(data)

    # --- workers ---------------------------------------------------------------------------------------------

    def _ready_worker(self) -> tuple[str, Process]:
        """A process that is ready for a cell, and what became of the variables: `kept`, or `lost`."""
        process, self._next = self._next, None
        if process is not None:
            return "kept", process
        state = "kept"
        if self.ancestor is not None:
            self.ancestor.send_signal(signal.SIGCONT)
            try:
                process = self._fork(self.ancestor)
            except Lost:
                self._end(self.ancestor)
                self.ancestor, state = None, "lost"
        if process is None:
            self.ancestor = self._first_worker()
            process = self._fork(self.ancestor)
        self._ancestor_stops()
        return state, process

    def _ancestor_stops(self) -> None:
        if self.ancestor is not None:
            self.ancestor.send_signal(signal.SIGSTOP)

    def _first_worker(self) -> Process:
        """Fork a worker from this process, which has the context and nothing else."""
        process, theirs = self._new_process()
        pid = os.fork()
        if pid == 0:
            self.host.close()
            process.close()
            self._leave_to_parent()
            if not self.settings["bounds_processes"]:
                hardening.yield_to_supervisor()
            worker.start(theirs, self._context, self.settings)
        return self._greeted(process, theirs, os.getpid())

    def _leave_to_parent(self) -> None:
        """In a worker: close what is the supervisor's alone."""
        if self.shelf is not None:
            self.shelf.close()
        if self._piece >= 0:
            os.close(self._piece)
        if self._lock is not None:
            os.close(self._lock)

    def _fork(self, parent: Process, seconds: float = FORK_SECONDS) -> Process:
        """Have a worker fork; raises `Lost` where it does not."""
        process, theirs = self._new_process()
        try:
            parent.send_descriptors(frames.frame(frames.FORK), theirs, seconds)
        except Lost:
            process.close()
            for descriptor in theirs:
                os.close(descriptor)
            raise
        return self._greeted(process, theirs, parent.pid, seconds)

    def _greeted(
        self, process: Process, theirs: list[int], parent: int, seconds: float = FORK_SECONDS
    ) -> Process:
        """Hear that a new worker is there, and put it on its leash; raises `Lost` when it is not."""
        leashed = theirs.pop()
        for descriptor in theirs:
            os.close(descriptor)
        try:
            kind, _, number, _ = self._await_frame(process, seconds)
            if PASS_CREDENTIALS is None:
                process.pid = number
            if kind != frames.HELLO or not process.pid or not is_child(process.pid, parent):
                process.pid = 0  # whoever that was, it is not the new worker's place to be killed in
                raise Lost("the new worker did not say hello")  # noqa: TRY301 - as when it says nothing
            put_on_leash(leashed, process.pid)
        except Lost:
            if process.pid:
                process.send_signal(signal.SIGKILL)
            process.close()
            raise
        finally:
            os.close(leashed)
        process.watch()
        return process

    def _new_process(self) -> tuple[Process, list[int]]:
        ours, theirs = socket.socketpair()
        if PASS_CREDENTIALS is not None:
            ours.setsockopt(socket.SOL_SOCKET, PASS_CREDENTIALS, 1)
        stdout, stdout_theirs = os.pipe()
        stderr, stderr_theirs = os.pipe()
        leashed, leash = os.pipe()
        return Process(ours, stdout, stderr, leash), [theirs.detach(), stdout_theirs, stderr_theirs, leashed]

    def _await_frame(self, process: Process, seconds: float) -> frames.Frame:
        """The next frame of a worker that is not running a cell; raises `Lost` when it does not come in time."""
        deadline = time.monotonic() + seconds
        while not process.arrived:
            poller = select.poll()
            poller.register(process.channel, select.POLLIN | (select.POLLOUT if process.outbox.size else 0))
            left = deadline - time.monotonic()
            if left <= 0 or not poller.poll(left * 1000):
                raise Lost("no answer in time")
            try:
                process.outbox.flush()
            except OSError:
                raise Lost("the worker is gone") from None
            if not process.receive():
                raise Lost("the worker is gone")
        return process.arrived.popleft()

    def _end(self, process: Process) -> None:
        """Kill a worker and all it started."""
        process.send_signal(signal.SIGKILL)
        process.close()
        self._reap()

    def _drop_workers(self) -> None:
        for process in (self._next, self.ancestor):
            if process is not None:
                self._kill_leftovers(process)
                self._end(process)
        self._next = self.ancestor = None

    def _kill_leftovers(self, process: Process) -> None:
        """Kill what the cell started and left running, until nothing new appears."""
        spared = {process.pid}
        spared.update(other.pid for other in (self.ancestor, self._next) if other is not None)
        for _ in range(100):
            found = [pid for pid in procfs.descendants(os.getpid()) if pid not in spared]
            living = [pid for pid in found if not procfs.is_zombie(pid)]
            for pid in living:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._reap()
            if not living:
                return

    def _reap(self) -> None:
        """Take note of children that have ended."""
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    def kill_everything(self) -> None:
        """Leave nothing behind."""
        self._drop_workers()
        self._reap()
        if self.settings["owns_scratch"]:
            folders.empty_folder(self.settings["scratch"])
            os.chdir("/")
            with contextlib.suppress(OSError):
                os.rmdir(self.settings["scratch"])  # noqa: PTH106 - where it is a mount, the process outside removes it


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


def put_on_leash(descriptor: int, pid: int) -> None:
    """Have the kernel kill a process when the other end of this pipe closes, which is when the supervisor ends."""
    import fcntl

    set_signal = getattr(fcntl, "F_SETSIG", 10 if sys.platform == "linux" else None)
    if set_signal is None:
        return
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETOWN, pid)
    except OSError as error:
        raise Lost(f"the worker is gone: {error}") from None
    fcntl.fcntl(descriptor, set_signal, signal.SIGKILL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)


def cpu_seconds_of(pid: int) -> float:
    """How much processor time a process has used, or 0 where nobody tells."""
    try:
        # The kernel's clock of another process: its number inverted, times eight, plus two (clock_getcpuclockid).
        return time.clock_gettime((~pid << 3) | 2) if sys.platform == "linux" else 0.0
    except OSError:
        return 0.0


def is_child(pid: int, parent: int) -> bool:
    """Whether one process was forked by the other; true as well where the platform does not tell."""
    if sys.platform != "linux":
        return True
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - no pathlib here
            return int(file.read().rpartition(b")")[2].split()[1]) == parent
    except OSError:
        return False


def describe_end(status: int) -> tuple[str, str]:
    """The outcome and a sentence for a process that ended by itself."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        return "crashed", f"the cell's process was ended by signal {name}"
    return "exited", f"the cell ended its own process with exit status {os.WEXITSTATUS(status)}"
