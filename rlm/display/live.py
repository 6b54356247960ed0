"""A live view on a terminal: what is done scrolls away above, what is going on stays at the bottom.

Above: the question, each turn's words, code and output, warnings, how it ended. They stay in the scrollback. At
the bottom: the end of the running cell's output, how far its batch is, and one line with turn, calls, tokens,
spent and time.

Events only enter a queue. A thread of its own takes them out and draws, ten times a second while something runs,
so that a slow terminal slows no run and an error in drawing reaches nobody.
"""

from __future__ import annotations

import atexit
import threading
import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TextIO, TypeAlias

from rlm.display.paint import Painter
from rlm.display.progress import Progress
from rlm.display.region import Region
from rlm.display.story import frame_of, story_of
from rlm.events import AnswerGiven, CellFinished, Event, RunFailed

__all__ = ["LiveView"]

_Item: TypeAlias = Event | threading.Event | None
"""An event, somebody who waits until all before it is shown, or the end."""

FRAME_S = 0.1
"""Seconds between two frames."""

SETTLE_S = 0.5
"""How long the end of a run waits for the view to show it, so that what the caller prints next comes below it."""


class LiveView:
    """The live view on one terminal.

    Args:
        file: the terminal.
        verbosity: 0 shows the head of long cells and outputs and the first run only; 1 shows cells whole, child
            runs and retries; 2 also every call.
    """

    def __init__(self, file: TextIO, *, verbosity: int = 0) -> None:
        self._file = file
        self._verbosity = verbosity
        self._queue: SimpleQueue[_Item] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def __call__(self, event: Event) -> None:
        """Take one event; the last one of a run waits a moment until it is on the screen."""
        if self._closed:
            return
        if self._thread is None:
            self._start()
        self._queue.put(event)
        if not event.depth and _is_last(event):
            self.settle()

    def settle(self) -> None:
        """Wait until everything so far is on the screen, `SETTLE_S` at most."""
        if self._thread is not None and self._thread.is_alive():
            shown = threading.Event()
            self._queue.put(shown)
            shown.wait(SETTLE_S)

    def close(self) -> None:
        """Show what is left, take the frame away and end the thread. Idempotent."""
        self._closed = True
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join(SETTLE_S)
            atexit.unregister(self.close)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._show, name="rlm-display", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def _show(self) -> None:
        """Draw until `close`; then, or when the terminal is gone, only empty the queue."""
        with suppress(OSError, ValueError):
            _Screen(self._file, self._verbosity).follow(self._queue)
            return
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()


class _Screen:
    """What the thread of a view knows; it is never touched from another."""

    def __init__(self, file: TextIO, verbosity: int) -> None:
        self._region = Region(file)
        self._painter = Painter(file)
        self._verbosity = verbosity
        self._progress = Progress()

    def follow(self, queue: SimpleQueue[_Item]) -> None:
        """Draw what comes out of the queue until it says None."""
        while True:
            items = _next_items(queue, wait=not self._is_busy)
            above = "".join(
                self._told(item) for item in items if not isinstance(item, (threading.Event, type(None)))
            )
            self._draw(above)
            for item in items:
                if isinstance(item, threading.Event):
                    item.set()
                elif item is None:
                    self._region.clear()
                    return

    @property
    def _is_busy(self) -> bool:
        return bool(self._progress.doing or self._progress.open_runs)

    def _told(self, event: Event) -> str:
        """Take the event in; what it adds to the lines that stay."""
        self._progress.apply(event)
        columns = self._region.size()[0] - 1
        blocks = story_of(event, self._progress, verbosity=self._verbosity, columns=columns)
        return "".join(self._painter.paint(block, columns) for block in blocks)

    def _draw(self, above: str) -> None:
        columns, rows = self._region.size()
        frame = frame_of(self._progress, columns=columns - 1, rows=rows, now=time.time())
        self._region.draw([self._painter.frame_line(line, columns - 1) for line in frame], above)


def _is_last(event: Event) -> bool:
    """Whether the caller goes on after this event: a run's end, or that of a cell which the user ran."""
    return isinstance(event, (AnswerGiven, RunFailed)) or (isinstance(event, CellFinished) and not event.turn)


def _next_items(queue: SimpleQueue[_Item], *, wait: bool) -> list[_Item]:
    """What comes within one frame's time; with `wait`, from the first item on. Who waits ends the frame at once."""
    items = [queue.get()] if wait else []
    until = time.monotonic() + FRAME_S
    while not items or not isinstance(items[-1], (threading.Event, type(None))):
        try:
            items.append(queue.get(timeout=max(0.0, until - time.monotonic())))
        except Empty:
            break
    return items
