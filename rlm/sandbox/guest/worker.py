"""The process that runs cells: one namespace, and a fork before every cell.

A worker waits on its channel. FORK makes a copy of it, with a channel and an output of its own; the copy runs one
cell and then waits in its turn. Everything here may be attacked by the cell it runs, since it shares the process
with it. What must hold even then is the supervisor's: time, memory, life and death, and what reaches the host.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import warnings

from . import frames, hardening, limits, values
from .channel import Channel
from .descriptors import adopt, close_all_of, receive_with_descriptors
from .echo import show
from .repair import cancel_timers, forgive_refused_modes, restore_handlers, set_handlers_aside
from .repl import Repl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = ["Worker", "start"]


def start(descriptors: list[int], context: Any, settings: dict[str, Any]) -> NoReturn:
    """Become the first worker, in a process the supervisor has just forked; never returns to it."""
    try:
        sys.displayhook = show
        sys.argv = [""]
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        *ends, leash = adopt(descriptors)
        hardening.confine(settings)
        forgive_refused_modes()
        worker = Worker(Channel(*ends), leash, context, settings)
        gc.collect()
        gc.freeze()
        worker._channel.send(frames.HELLO, os.getpid())  # noqa: SLF001 - its own module
        worker.serve()
    finally:
        os._exit(70)


class Worker:
    """One process of the fork chain."""

    def __init__(self, channel: Channel, leash: int, context: Any, settings: dict[str, Any]) -> None:
        self._channel = channel
        self._leash = leash
        self._settings = settings
        self._repl = Repl(self._call, context, settings)
        self._last_child = 0
        self._handlers: dict[int, Any] = {}

    def _call(self, *call: Any) -> Any:
        return self._channel.call(*call)

    def serve(self) -> NoReturn:
        """Do what the supervisor asks, for ever."""
        while True:
            kind, number, payload, descriptors = self._receive()
            if kind == frames.FORK:
                self._fork(descriptors)
            elif kind == frames.REAP:
                self._channel.send(frames.STATUS, self._reap(number))
            elif kind == frames.RUN:
                self._run(values.decode(payload))
            elif kind == frames.ASK:
                with limits.limited():
                    told = self._repl.tell(values.decode(payload))
                self._channel.send(frames.TOLD, 0, told)

    def _receive(self) -> tuple[int, int, bytes, list[int]]:
        """The next message with the descriptors that came along; nobody else reads while no cell runs.

        Replies to calls that a cell did not wait for are passed over.
        """
        descriptors: list[int] = []
        while True:
            message = self._channel.message()
            if message is None:
                data, came_along = receive_with_descriptors(self._channel.incoming)
                self._channel.take_in(data)
                descriptors += came_along
            elif message[0] != frames.REPLY:
                return (*message, descriptors)

    def _fork(self, descriptors: list[int]) -> None:
        """Make the process for the next cell. The copy goes on from here with the new channel."""
        if self._last_child:
            self._reap(self._last_child)
        dice = sys.modules.get("random")
        rolled = dice.getstate() if dice is not None else None
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # a thread that a cell left is no reason to warn
            pid = fork_or_bury()
        if pid:
            self._last_child = pid
            for descriptor in descriptors:
                os.close(descriptor)
            return
        self._last_child = 0
        if dice is not None:
            dice.setstate(rolled)  # a fork reseeds it
        self._become(descriptors)

    def _become(self, descriptors: list[int]) -> None:
        old, old_leash = self._channel.incoming, self._leash
        incoming, outgoing, self._leash = adopt(descriptors)
        self._channel = Channel(incoming, outgoing, self._settings["shelf_bytes"])
        close_all_of(old, old_leash)
        self._channel.send(frames.HELLO, os.getpid())

    def _reap(self, pid: int) -> int:
        try:
            status = os.waitpid(pid, 0)[1]
        except ChildProcessError:
            status = 0
        if pid == self._last_child:
            self._last_child = 0
        return status

    def _run(self, cell: dict[str, Any]) -> None:
        self._channel.open_to_cells()
        try:
            restore_handlers(self._handlers)
            try:
                with limits.limited():
                    outcome = self._repl.execute(cell)
            finally:
                cancel_timers()
                self._handlers = set_handlers_aside()
            report = self._repl.report(outcome)
        finally:
            self._channel.close_to_cells()
        self._channel.send(frames.DONE, report.keeps_state, report.parts)


def fork_or_bury() -> int:
    """Fork; where there is no room for a process, take leave of a cell's dead children first, which take up room."""
    try:
        return os.fork()
    except BlockingIOError:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        return os.fork()
