"""The trusted process of the guest: holds the context as it was loaded, runs no cell, and decides about life and death.

It forks the first worker from itself after loading. Then there are at most two workers: the *ancestor*, stopped,
with the state after the last cell; and its copy, which is ready to run the next one. A cell that ends well must
prove it: its process forks the copy for the cell after it, and only then is the ancestor given up. In every other
case the cell's process is killed and the ancestor goes on.

The supervisor never blocks on a worker: all it writes is queued, all it waits for has a deadline.
"""

from __future__ import annotations

import _socket as socket  # the part in C: the rest would be a tenth of a guest's start
import contextlib
import gc
import os
import select
import signal
import sys
import time

from . import folders, frames, hardening, limits, procfs, shelf, values, worker
from .cell_watch import BACKLOG_BYTES, Cell
from .pipes import Host, HostGone, Incoming
from .worker_process import PASS_CREDENTIALS, Lost, Process, describe_end, put_on_leash

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = ["Supervisor", "main"]


FIRST_WORD_SECONDS = 0.05
FORK_SECONDS = 10.0
PROOF_SECONDS = 3.0
TELL_SECONDS = 1.5
DRAIN_BYTES = 8 << 20
OWN_FOLDERS = "rlm-own-"


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
            if kind != frames.HELLO or not process.pid or not procfs.is_child(process.pid, parent):
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
