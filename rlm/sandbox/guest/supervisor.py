"""The trusted process of the guest: holds the context as it was loaded, runs no cell, and starts and kills the workers.

After loading it forks the first worker from itself. From then on there are at most two workers:

    checkpoint   stopped (SIGSTOP), with the variables from after the last cell
    next worker  a fork of it, ready to run the next cell

A cell that ends well must prove that its process can go on: the process forks the worker for the next cell, and that
runs a cell of the supervisor's (`rehearsal`). Only then is it the new checkpoint, and the old checkpoint is killed.
After any other end (timeout, memory, crash, exit, broken protocol) the cell's process is killed, and the next worker is
forked from the checkpoint that was kept, with a rehearsal too. If that fails twice, or if SILENT_ENDS cells in a row end
without a sign of life, the checkpoint is given up: the next worker has the context and no variables, and the result of
its cell says that they are lost.

The supervisor never blocks on a worker: what it writes is queued, and each wait has a deadline. Workers are killed by
SIGKILL alone, which a cell can neither block nor handle.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time

from . import decoding, folders, frames, hardening, limits, procfs, shared_memory, values, worker
from .cell_watch import BACKLOG_BYTES, CellWatch, drain_output
from .pipes import HostGone, HostPipe, PipeReader
from .rehearsal import rehearse
from .worker_process import WorkerLost, WorkerProcess, describe_end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = ["Supervisor", "main"]

FIRST_REQUEST_SECONDS = 0.05
FORK_SECONDS = 10.0
PROOF_SECONDS = 3.0
SECOND_PROOF_SECONDS = 1.5
STATUS_SECONDS = 3.0
SILENT_ENDS = 3
LAST_REAP_SECONDS = 0.2
INSPECT_SECONDS = 1.5
KILL_ROUNDS = 100
OWN_FOLDERS = "rlm-own-"


def main(incoming: int, outgoing: int) -> NoReturn:
    """Serve the host until it closes the pipe, then kill every worker and exit."""
    supervisor: Supervisor | None = None
    status = 0
    try:
        host = HostPipe(incoming, outgoing)
        settings = receive_settings(host)
        supervisor = Supervisor(host, settings)
        host.send(frames.READY, settings.pop("facts"))
        supervisor.serve()
    except HostGone:
        pass
    except BaseException:  # noqa: BLE001 - the border of this process: the log is the only place left for it
        import traceback

        traceback.print_exc()
        status = 70
    finally:
        if supervisor is not None:
            supervisor.kill_everything()
        os._exit(status)


def receive_settings(host: HostPipe) -> dict[str, Any]:
    """Wait for START, isolate this process, and add the facts for READY to the settings."""
    kind, payload = host.next_message()
    if kind != frames.START:
        raise values.WireError("the first frame from the host must be START")
    settings: dict[str, Any] = decoding.decode(payload)
    settings["owns_scratch"] = not settings["scratch"]
    settings["scratch"], settings["scratch_lock"] = enter_scratch(settings["scratch"])
    settings["counts_processes"] = settings["bounds_processes"] = settings["quota"] = False
    missing: dict[str, str] = {}
    levels = ["own process", "clean environment", "limits", *hardening.isolate(settings, missing)]
    open_memory(settings)
    hardening.adopt_orphans()
    settings["facts"] = {
        "python": sys.version.split()[0],
        "platform": sys.platform,
        "levels": levels,
        "missing": missing,
    }
    return settings


def open_memory(settings: dict[str, Any]) -> None:
    """Replace the descriptor of the shared memory by a writer, or by None if there is none or it cannot be used."""
    descriptor, limit = settings["shared_memory"], settings["memory_bytes"]
    writer = None if descriptor < 0 else shared_memory.open_shared_memory(descriptor, limit)
    if descriptor >= 0 and writer is None:
        os.close(descriptor)  # else the workers, which run cells, would inherit it
    settings["shared_memory"] = writer
    settings["shared_bytes"] = 0 if writer is None else limit


def enter_scratch(given: str) -> tuple[str, int | None]:
    """Change to the folder that cells may write to: the host's, or a new one, which is returned with its lock."""
    if given:
        scratch, lock = given, None
    else:
        folders.remove_abandoned(OWN_FOLDERS)
        scratch, lock = folders.make(OWN_FOLDERS)
    os.chdir(scratch)
    for name in ("HOME", "TMPDIR", "TEMP", "TMP"):
        os.environ[name] = scratch
    if "tempfile" in sys.modules:
        vars(sys.modules["tempfile"])["tempdir"] = None  # `make` has used it: it would keep the old folder
    return scratch, lock


class Supervisor:
    """Serves the host: loads the context, runs cells on workers, and keeps a checkpoint to go back to."""

    def __init__(self, host: HostPipe, settings: dict[str, Any]) -> None:
        self._host = host
        self._settings = settings
        self._memory: shared_memory.ContextWriter | None = settings.pop("shared_memory")
        self._parent_memory: int = settings.pop("parent_memory")
        self._scratch_lock: int | None = settings.pop("scratch_lock")
        self._context: Any = None
        self._checkpoint: WorkerProcess | None = None
        self._next: WorkerProcess | None = None
        self._is_lost = False  # variables are, and no result has said so
        self._silent_ends = 0

    # --- requests of the host --------------------------------------------------------------------------------

    def serve(self) -> None:
        """Serve the requests of the host, one at a time."""
        if self._parent_memory < 0 and not self._host.has_frames_within(FIRST_REQUEST_SECONDS):
            self._prepare_next()  # else LOAD has come, most likely, and would throw these workers away
        while True:
            first = self._host.next_frame()
            if first[0] in (frames.REPLY, frames.CANCEL):
                continue  # sent by the host before it had read that the cell has ended
            if first[0] == frames.LOAD:  # decoded while it arrives, never in memory as a whole message
                self._load(first[3], more=first[1])
                continue
            self._host.arrived.appendleft(first)
            kind, payload = self._host.next_message()
            if kind == frames.RUN:
                self._run(payload)
            elif kind == frames.LOAD:
                self._load(payload, more=False)
            elif kind == frames.LOAD_SHARED:
                self._load_shared(**decoding.decode(payload))
            elif kind == frames.INSPECT:
                self._inspect(payload)
            elif kind == frames.RESET:
                self._drop_workers()
                self._host.send(frames.LOADED, None)

    def _load(self, first: bytes, *, more: bool) -> None:
        self._forget()
        message = PipeReader(self._host, first, more=more)
        self._context = decoding.decode_from(message)
        message.finish()
        self._report_loaded(None)

    def _load_shared(self, offset: int, length: int, max_values: int) -> None:
        """Load the context from the parent's shared memory. A cell wrote it, so it may be no value at all."""
        memory, self._parent_memory = self._parent_memory, -1
        self._forget()
        problem = None
        try:
            # Twice the limit: while a long text is joined, it is in memory twice.
            with limits.memory_limit(2 * self._settings["memory_bytes"]):
                self._context = shared_memory.read_context(memory, offset, length, max_values)
        except MemoryError:
            problem = "it takes more memory than a guest may have"
        except (values.WireError, OSError) as error:
            problem = f"{type(error).__name__}: {error}"
        finally:
            os.close(memory)  # before any worker is forked, which would inherit it
        self._report_loaded(problem)

    def _forget(self) -> None:
        self._drop_workers()
        self._context = None
        if self._parent_memory >= 0:
            os.close(self._parent_memory)
            self._parent_memory = -1

    def _report_loaded(self, problem: str | None) -> None:
        gc.collect()
        gc.freeze()  # a collection in a worker would write to the context's pages, and so copy them
        self._prepare_next()
        self._host.send(frames.LOADED, problem)

    def _run(self, payload: bytes) -> None:
        """Run one cell and send ENDED, however the cell ends."""
        began = time.monotonic()
        if self._silent_ends >= SILENT_ENDS:
            self._drop_workers()
            self._is_lost = True
        process = self._take_next()
        watch = CellWatch(
            self._host,
            process,
            self._memory,
            self._settings,
            checkpoint=0 if self._checkpoint is None else self._checkpoint.pid,
            timeout=decoding.decode(payload)["timeout"],
        )
        outcome, error = watch.run(payload)
        if outcome == "":
            try:
                next_worker = self._fork_next(process)
                drain_output(self._host, process)
                self._commit(process, next_worker)
            except WorkerLost as reason:
                outcome, error = "protocol", f"the cell left its process unable to go on: {reason}"
        if outcome == "":
            for data in watch.report:
                self._host.outbox.put(data)
            self._silent_ends = 0
        else:
            drain_output(self._host, process)
            end = self._roll_back(process)
            is_silent = outcome == "protocol" or (outcome == "gone" and watch.is_silent)
            self._silent_ends = self._silent_ends + 1 if is_silent else 0
            if watch.overfilled:
                folders.empty_folder(self._settings["scratch"])
            if outcome == "gone":
                outcome, error = end
        state = "lost" if self._is_lost else "rolled back" if outcome else "kept"
        self._is_lost = False
        self._host.send(
            frames.ENDED,
            {
                "outcome": outcome,
                "error": error,
                "state": state,
                "wall": time.monotonic() - began,
                "compute": watch.clock.seconds(),
            },
        )
        if self._memory is not None:
            self._memory.clear()  # after ENDED, with which the host drops the calls that the cell did not wait for

    def _inspect(self, payload: bytes) -> None:
        """Have a worker describe its variables, then kill it: describing them may run code of a cell's classes."""
        process = self._take_next()
        answer: list[bytes] = []
        try:
            for data in frames.message_frames(frames.INSPECT, 0, [payload]):
                process.send(data)
            deadline = time.monotonic() + INSPECT_SECONDS
            size, more = 0, True
            while more:
                kind, more, _, piece = process.next_frame(deadline - time.monotonic())
                size += len(piece)
                if kind != frames.INSPECTED or size > self._settings["answer_bytes"] + BACKLOG_BYTES:
                    raise WorkerLost("no description")  # noqa: TRY301 - as when it sends nothing
                answer.append(frames.frame(frames.INSPECTED, 0, piece, more=more))
        except WorkerLost:
            answer = list(frames.message_frames(frames.INSPECTED, 0, values.encode(("silent", None))))
        finally:
            self._roll_back(process)
        for data in answer:
            self._host.outbox.put(data)

    # --- commit and rollback ---------------------------------------------------------------------------------

    def _fork_next(self, process: WorkerProcess) -> WorkerProcess:
        """Have the process that ran the cell fork the next worker: its rehearsal proves that the process can go on."""
        self._kill_leftovers(process)  # a fork bomb may have used up the process numbers
        process.outbox.drop_queued()  # replies that the cell did not wait for
        return self._fork(process, PROOF_SECONDS)

    def _commit(self, process: WorkerProcess, next_worker: WorkerProcess) -> None:
        """Make the process that ran the cell the checkpoint, and end the old one.

        If the cell left threads or timers, which may end the process at any time, its next worker, a fork without them,
        becomes the checkpoint instead; raises `WorkerLost` if that cannot fork another one.

        The checkpoint is stopped, and with it all threads that the cell left. What such a thread forked between the first
        `_kill_leftovers` and the stop is killed by the second.
        """
        if not procfs.is_alone(process.pid):
            try:
                after_next = self._fork(next_worker, PROOF_SECONDS)
            except WorkerLost:
                self._end(next_worker)
                raise
            self._end(process)
            process, next_worker = next_worker, after_next
        old = self._checkpoint
        self._checkpoint, self._next = process, next_worker
        process.send_signal(signal.SIGSTOP)
        if old is not None:
            self._end(old)
        self._kill_leftovers(process)

    def _roll_back(self, process: WorkerProcess) -> tuple[str, str]:
        """Kill the process that ran the cell; return outcome and sentence for the case that it ended by itself."""
        process.send_signal(signal.SIGKILL)
        self._kill_leftovers(process)
        status = self._status_of(process)
        process.close()
        self._reap()
        return describe_end(status)

    def _status_of(self, process: WorkerProcess) -> int:
        """Return the wait status of an ended worker, which only its parent, the checkpoint, can learn."""
        if self._checkpoint is None:
            return 0
        try:
            self._checkpoint.send_signal(signal.SIGCONT)
            self._checkpoint.send(frames.frame(frames.REAP, process.pid))
            kind, _, number, _ = self._checkpoint.next_frame(STATUS_SECONDS)
        except WorkerLost:
            self._give_up_checkpoint()
            return 0
        self._stop_checkpoint()
        # A cell can send any number; a wait status has 16 bits.
        return number & 0xFFFF if kind == frames.STATUS else 0

    def _give_up_checkpoint(self) -> None:
        if self._checkpoint is not None:
            self._end(self._checkpoint)
            self._checkpoint, self._is_lost = None, True

    # --- workers ---------------------------------------------------------------------------------------------

    def _prepare_next(self) -> None:
        """Fork the worker for the next cell now, so that the cell need not wait for it."""
        self._next = self._take_next()

    def _take_next(self) -> WorkerProcess:
        """Return a worker that is ready for a cell.

        A checkpoint that cannot fork any more is given up, and a worker with nothing but the context takes its place.
        """
        process, self._next = self._next, None
        if process is None:
            process = self._fork_from_checkpoint()
        if process is None:
            self._checkpoint = self._start_first()
            process = self._fork(self._checkpoint)
        self._stop_checkpoint()
        return process

    def _fork_from_checkpoint(self) -> WorkerProcess | None:
        """Fork a worker from the checkpoint; if that fails twice, give it up and return None."""
        for seconds in (PROOF_SECONDS, SECOND_PROOF_SECONDS):
            if self._checkpoint is not None:
                self._checkpoint.send_signal(signal.SIGCONT)
                with contextlib.suppress(WorkerLost):
                    return self._fork(self._checkpoint, seconds)
        self._give_up_checkpoint()
        return None

    def _stop_checkpoint(self) -> None:
        """Stop the checkpoint: threads of old cells in it must not run beside the cell that runs now."""
        if self._checkpoint is not None:
            self._checkpoint.send_signal(signal.SIGSTOP)

    def _start_first(self) -> WorkerProcess:
        """Fork a worker from this process, which has the context and no variables."""
        process, theirs = WorkerProcess.create()
        pid = os.fork()
        if pid == 0:
            self._close_in_worker(process)
            if not self._settings["bounds_processes"]:
                hardening.lower_priority()
            worker.start(theirs, self._context, self._settings)
        process.wait_ready(theirs, os.getpid(), FORK_SECONDS)
        return process

    def _close_in_worker(self, process: WorkerProcess) -> None:
        """Close what only the supervisor may have: a cell could else write to the host or hold the lock."""
        self._host.close()
        process.close()
        if self._memory is not None:
            self._memory.close()
        for descriptor in (self._parent_memory, self._scratch_lock):
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)

    def _fork(self, parent: WorkerProcess, seconds: float = FORK_SECONDS) -> WorkerProcess:
        """Have a worker fork, and the new one rehearse; raises `WorkerLost` if that fails or takes too long."""
        deadline = time.monotonic() + seconds
        process, theirs = WorkerProcess.create()
        try:
            parent.send_descriptors(frames.frame(frames.FORK), theirs, seconds)
        except WorkerLost:
            process.close()
            for descriptor in theirs:
                os.close(descriptor)
            raise
        process.wait_ready(theirs, parent.pid, seconds)
        try:
            rehearse(process, deadline - time.monotonic())
        except WorkerLost:
            self._end(process)
            raise
        return process

    # --- killing ---------------------------------------------------------------------------------------------

    def _kill_leftovers(self, process: WorkerProcess) -> None:
        """Kill what the cell started and left running.

        Every descendant of this process that is no worker is the cell's. A process may fork between the listing and
        its death, so this goes on until a listing shows nothing alive; the rounds are bounded, since a fork bomb that
        no limit holds could win for ever.
        """
        spared = {process.pid}
        spared.update(other.pid for other in (self._checkpoint, self._next) if other is not None)
        for _ in range(KILL_ROUNDS):
            found = [pid for pid in procfs.descendants(os.getpid()) if pid not in spared]
            living = [pid for pid in found if not procfs.is_zombie(pid)]
            for pid in living:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._reap()
            if not living:
                return

    def _end(self, process: WorkerProcess) -> None:
        process.send_signal(signal.SIGKILL)
        process.close()
        self._reap()

    def _drop_workers(self) -> None:
        for process in (self._next, self._checkpoint):
            if process is not None:
                self._kill_leftovers(process)
                self._end(process)
        self._next = self._checkpoint = None
        self._is_lost, self._silent_ends = False, 0

    def _reap(self) -> None:
        """Collect the children that have ended: a zombie takes a process number, of which there are few."""
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    def _reap_all(self) -> None:
        """Wait a moment for the killed workers: the process that adopts this one's children may never reap them."""
        deadline = time.monotonic() + LAST_REAP_SECONDS
        with contextlib.suppress(ChildProcessError):
            while time.monotonic() < deadline:
                if not os.waitpid(-1, os.WNOHANG)[0]:
                    time.sleep(0.001)

    def kill_everything(self) -> None:
        """Kill the workers and all they started, and remove a scratch folder of the supervisor's own."""
        self._drop_workers()
        self._reap_all()
        if self._settings["owns_scratch"]:
            folders.empty_folder(self._settings["scratch"])
            os.chdir("/")
            with contextlib.suppress(OSError):
                os.rmdir(self._settings["scratch"])  # noqa: PTH106 - a mount is removed by the process outside it
