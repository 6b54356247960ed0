"""Live view on a terminal: finished steps scroll away above, the running step stays at the bottom.

Above: the question, each turn's prose, code and output, warnings, and the ending. They stay in the scrollback. At the
bottom: the end of the running cell's output, the progress of its batch, and one line with turn, calls, tokens,
dollars and time.

Events only enter a queue. A separate thread takes them out and draws, ten times a second while a run is open, so that
a slow terminal slows no run and an error in drawing reaches no caller.
"""

from __future__ import annotations

import atexit
import threading
import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Final, TextIO, TypeAlias

from rlm.display.frame import frame_of
from rlm.display.paint import Painter
from rlm.display.region import Region
from rlm.display.run_state import RunState
from rlm.display.story import story_of
from rlm.events import AnswerGiven, CellFinished, Event, RunFailed

__all__ = ["LiveView"]

_Item: TypeAlias = Event | threading.Event | None
"""An event of a run, a flag to set once everything before it is drawn, or None for the end."""

FRAME_S: Final = 0.1
"""Seconds between two frames."""

SETTLE_S: Final = 0.5
"""Seconds that the end of a run waits for the view to draw it, so that the caller's next line comes below it."""


class LiveView:
    """Display that draws on one terminal.

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
        """Queue one event; at the end of a run, wait up to `SETTLE_S` until it is on the screen."""
        if self._closed:
            return
        if self._thread is None:
            self._start()
        self._queue.put(event)
        if not event.depth and _is_last(event):
            self._settle()

    def close(self) -> None:
        """Draw the rest, remove the frame and end the thread. Idempotent."""
        self._closed = True
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join(SETTLE_S)
            atexit.unregister(self.close)

    def _settle(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            drawn = threading.Event()
            self._queue.put(drawn)
            drawn.wait(SETTLE_S)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="rlm-display", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def _run(self) -> None:
        """Draw until `close`. If the terminal is gone, only empty the queue, so that no caller waits for it."""
        with suppress(OSError, ValueError):
            _Screen(self._file, self._verbosity).follow(self._queue)
            return
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()


class _Screen:
    """State of the view's thread; no other thread touches it."""

    def __init__(self, file: TextIO, verbosity: int) -> None:
        self._region = Region(file)
        self._painter = Painter(file, verbosity=verbosity)
        self._verbosity = verbosity
        self._state = RunState()

    def follow(self, queue: SimpleQueue[_Item]) -> None:
        """Draw the events of the queue until it yields None."""
        while True:
            items = _next_items(queue, wait=not self._is_busy)
            self._draw("".join(self._painted(item) for item in items if not isinstance(item, _NOT_EVENTS)))
            for item in items:
                if isinstance(item, threading.Event):
                    item.set()
                elif item is None:
                    self._region.clear()
                    return

    @property
    def _is_busy(self) -> bool:
        return bool(self._state.doing or self._state.open_runs)

    def _painted(self, event: Event) -> str:
        """Apply the event and return the lines that it adds above the frame."""
        self._state.apply(event)
        columns = self._region.size()[0] - 1
        story = story_of(event, self._state, verbosity=self._verbosity, shows_cells=True)
        return "".join(self._painter.paint(entry, event.depth, columns) for entry in story)

    def _draw(self, above: str) -> None:
        columns, rows = self._region.size()
        frame = frame_of(self._state, columns=columns - 1, rows=rows, now=time.time())
        self._region.draw([self._painter.frame_line(line, columns - 1) for line in frame], above)


_NOT_EVENTS: Final = (threading.Event, type(None))


def _is_last(event: Event) -> bool:
    """Return True if the caller goes on after this event: the end of a run, or of a cell that the user ran."""
    return isinstance(event, (AnswerGiven, RunFailed)) or (isinstance(event, CellFinished) and not event.turn)


def _next_items(queue: SimpleQueue[_Item], *, wait: bool) -> list[_Item]:
    """Collect the items of one frame's time; with `wait`, from the first item on. A flag or None ends it at once."""
    items = [queue.get()] if wait else []
    until = time.monotonic() + FRAME_S
    while not items or not isinstance(items[-1], _NOT_EVENTS):
        try:
            items.append(queue.get(timeout=max(0.0, until - time.monotonic())))
        except Empty:
            break
    return items
