"""The process that runs cells: one namespace, and a fork before every cell.

A worker waits on its channel. FORK makes a copy of it, with a channel and output of its own; the copy runs one cell,
and is then asked to fork in its turn. A cell shares the process with this code and can change all of it. What must hold
even then is enforced by the supervisor and the kernel: time, memory, who is killed when, and what reaches the host.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import warnings

from . import decoding, frames, hardening, limits
from .channel import Channel
from .descriptors import adopt, close_with_copies, copy_up, receive_with_descriptors
from .echo import show
from .repair import (
    FORKS_WORKERS,
    allow_copies_without_mode,
    cancel_timers,
    make_repair,
    restore_handlers,
    suspend_handlers,
)
from .repl import Repl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = ["Worker", "start"]

EXIT_BROKEN = 70


def start(descriptors: list[int], context: Any, settings: dict[str, Any]) -> NoReturn:
    """Become the first worker, in a process that the supervisor has just forked; never return into its code."""
    try:
        sys.displayhook = show
        sys.argv = [""]
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # Ctrl-C goes to the whole terminal group; the host decides
        channel, death_pipe = adopt(descriptors)
        hardening.confine(settings)
        allow_copies_without_mode()
        worker = Worker(Channel(channel), death_pipe, context, settings)
        worker.keep_pristine()
        gc.collect()
        gc.freeze()  # as in the supervisor, for what this process has added
        worker.say_hello()
        worker.serve()
    finally:
        os._exit(EXIT_BROKEN)


class Worker:
    """One process of the chain of forks."""

    def __init__(self, channel: Channel, death_pipe: int, context: Any, settings: dict[str, Any]) -> None:
        self._channel = channel
        self._death_pipe = death_pipe
        self._settings = settings
        self._repl = Repl(self._call, context, settings)
        self._last_child = 0
        self._handlers: dict[int, Any] = {}
        self._no_input = copy_up(0)

    def keep_pristine(self) -> None:
        """Copy what cells share with this code, to be put back after each: see `repair`."""
        self._repl.repair = make_repair()

    def _call(self, *call: Any) -> Any:
        """Make a host call on the channel of the process that runs now: the functions in cells outlive forks."""
        return self._channel.call(*call)

    def say_hello(self) -> None:
        """Tell the supervisor that this process is ready."""
        self._channel.send(frames.HELLO, os.getpid())

    def serve(self) -> NoReturn:
        """Serve the supervisor's requests until the process is killed or the channel ends."""
        while True:
            kind, number, payload, descriptors = self._receive()
            if kind == frames.FORK:
                self._fork(descriptors)
            elif kind == frames.REAP:
                self._channel.send(frames.STATUS, self._reap(number))
            elif kind == frames.RUN:
                self._run(decoding.decode(payload))
            elif kind == frames.INSPECT:
                with limits.cell_limits():
                    answer = self._repl.inspect(decoding.decode(payload))
                self._channel.send(frames.INSPECTED, 0, answer)

    def _receive(self) -> tuple[int, int, bytes, list[int]]:
        """Return the next request and the descriptors sent with it; skip replies that a cell did not wait for."""
        descriptors: list[int] = []
        while True:
            message = self._channel.next_message()
            if message is None:
                data, received = receive_with_descriptors(self._channel.descriptor)
                self._channel.feed(data)
                descriptors += received
            elif message[0] != frames.REPLY:
                return (*message, descriptors)

    def _fork(self, descriptors: list[int]) -> None:
        """Fork the worker for the next cell. The copy continues from here on the new channel."""
        if self._last_child:
            self._reap(self._last_child)
        random = sys.modules.get("random")
        state = random.getstate() if random is not None else None
        with warnings.catch_warnings():
            # Python warns of forks beside threads. Those that a cell left hold no lock that the copy needs.
            warnings.simplefilter("ignore", DeprecationWarning)
            FORKS_WORKERS.append(True)
            try:
                pid = fork()
            finally:
                FORKS_WORKERS.clear()
        if pid:
            self._last_child = pid
            for descriptor in descriptors:
                os.close(descriptor)
            return
        self._last_child = 0
        if random is not None:
            random.setstate(
                state
            )  # Python reseeds `random` in a forked child; a cell's seed must hold for the next
        self._become_next(descriptors)

    def _become_next(self, descriptors: list[int]) -> None:
        old, old_death_pipe = self._channel.descriptor, self._death_pipe
        descriptor, self._death_pipe = adopt(descriptors)
        os.dup2(self._no_input, 0)  # a cell may have closed it
        self._channel = Channel(descriptor, self._settings["shared_bytes"])
        close_with_copies(old, old_death_pipe)
        self.say_hello()

    def _reap(self, pid: int) -> int:
        """Wait for an ended child and return its wait status; 0 if a cell has reaped it already.

        All other children that have ended are reaped too: a cell made them with this process as their parent.
        """
        try:
            status = os.waitpid(pid, 0)[1]
        except ChildProcessError:
            status = 0
        reap_ended()
        if pid == self._last_child:
            self._last_child = 0
        return status

    def _run(self, cell: dict[str, Any]) -> None:
        self._channel.open_to_cells()
        try:
            restore_handlers(self._handlers)
            try:
                with limits.cell_limits():
                    outcome = self._repl.execute(cell)
            finally:
                cancel_timers()
                self._handlers = suspend_handlers()
            is_rehearsal = cell.get("rehearsal")
            report = self._repl.rehearsal_report(outcome) if is_rehearsal else self._repl.report(outcome)
        finally:
            self._channel.close_to_cells()
        self._channel.send(frames.DONE, report.keeps_state, report.parts)


def fork() -> int:
    """Fork; at the limit of processes, reap the dead children of cells, which count, and try once more."""
    try:
        return os.fork()
    except BlockingIOError:
        reap_ended()
        return os.fork()


def reap_ended() -> None:
    """Collect all children that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
