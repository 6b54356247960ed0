"""Emission of the events of one tree of runs: first into the journal, then to the listeners."""

from __future__ import annotations

import logging
from contextlib import aclosing, closing
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from rlm.events import AnswerGiven, CallFinished, CallRetried, CellOutput, Event, Warned

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator

    from rlm.events import Emit
    from rlm.values import Answer

__all__ = ["EventJournal", "Listeners", "OutputBacklog", "RunEvents"]

logger = logging.getLogger("rlm")

MAX_WAITING_CHARS = 16_000_000
EVENT_BYTES = 500


class EventJournal(Protocol):
    """A journal of events, as `rlm.journal.runs` has one; `problem` says why it does not take any more."""

    @property
    def problem(self) -> str:
        """Why the journal ended, or ""."""

    def write(self, event: Event) -> None:
        """Append the event."""

    async def sync(self) -> None:
        """Wait until what was written is on the disk."""


class Listeners:
    """Functions that are called with every event, until they raise."""

    def __init__(self) -> None:
        self._listeners: list[Emit] = []

    def __bool__(self) -> bool:
        return bool(self._listeners)

    def add(self, listener: Emit) -> None:
        """Add a listener: it is called with every later event."""
        self._listeners.append(listener)

    def emit(self, event: Event) -> list[str]:
        """Call every listener; one that raises is removed. Return a warning for each that was."""
        problems = []
        for listener in list(self._listeners):
            try:
                listener(event)
            except (Exception, SystemExit) as error:  # SystemExit would end the event loop of all runs
                if listener in self._listeners:  # another run may have removed it meanwhile
                    self._listeners.remove(listener)
                problems.append(f"{listener!r} is removed from the listeners: it raised {error!r}")
                logger.warning("%s", problems[-1], exc_info=error)
        return problems


class OutputBacklog:
    """Bound of the output of cells that waits for a slow reader of a stream.

    Output beyond the bound is dropped, and a `CellOutput` in its place says how much. No other event is dropped, and
    the result of a cell has its output in any case.
    """

    def __init__(self, emit: Emit, max_chars: int = MAX_WAITING_CHARS) -> None:
        self._emit = emit
        self._max_chars = max_chars
        # Each is written by one thread only: `put` by the event loop's, `taken` by the reader's.
        self._put = 0
        self._taken = 0
        self._dropped: CellOutput | None = None
        self._dropped_chars = 0

    def put(self, event: Event) -> None:
        """Pass the event on, or drop it if it is output and too much is waiting."""
        if isinstance(event, CellOutput):
            if self._put - self._taken + _weight(event) > self._max_chars:
                self._dropped = event
                self._dropped_chars += len(event.text)
                return
            self._put += _weight(event)
        if self._dropped is not None:
            note = (
                f"\n… {self._dropped_chars:,} characters dropped, because the events are read too slowly …\n"
            )
            marker = replace(self._dropped, text=note)
            self._put += _weight(marker)
            self._dropped, self._dropped_chars = None, 0
            self._emit(marker)
        self._emit(event)

    def take(self, event: Event) -> None:
        """Count an event that was read."""
        if isinstance(event, CellOutput):
            self._taken += _weight(event)

    @staticmethod
    def read(
        iterate: Callable[[Callable[[Emit], Awaitable[object]]], Iterator[Event]],
        complete: Callable[[Emit], Awaitable[object]],
    ) -> Generator[Event, None, None]:
        """Yield the events of `iterate(complete)`, with a bound of the output that waits."""
        backlogs: list[OutputBacklog] = []

        def limited(emit: Emit) -> Awaitable[object]:
            backlogs.append(OutputBacklog(emit))
            return complete(backlogs[0].put)

        with closing(iterate(limited)) as events:  # type: ignore[type-var]
            for event in events:
                backlogs[0].take(event)
                yield event

    @staticmethod
    async def aread(
        iterate: Callable[[Callable[[Emit], Awaitable[object]]], AsyncIterator[Event]],
        complete: Callable[[Emit], Awaitable[object]],
    ) -> AsyncGenerator[Event, None]:
        """Do the same on an event loop."""
        backlogs: list[OutputBacklog] = []

        def limited(emit: Emit) -> Awaitable[object]:
            backlogs.append(OutputBacklog(emit))
            return complete(backlogs[0].put)

        async with aclosing(iterate(limited)) as events:  # type: ignore[type-var]
            async for event in events:
                backlogs[0].take(event)
                yield event


def _weight(event: CellOutput) -> int:
    """Return about how many bytes of memory an event of output takes."""
    return EVENT_BYTES + len(event.text)


class RunEvents:
    """The `emit` function of one tree of runs.

    An event is in the journal before any listener acts on it, so that what was paid for is kept.

    Args:
        journal: where events are recorded, if anywhere.
        listener: the listener of this tree alone, such as a stream.
        emit: calls the listeners of all trees; returns warnings about those that failed.

    Attributes:
        warnings: messages for the user, in the order of their events.
    """

    def __init__(
        self, journal: EventJournal | None, listener: Emit, emit: Callable[[Event], list[str]]
    ) -> None:
        self.warnings: list[str] = []
        self._journal = journal
        self._listener = listener
        self._emit = emit
        self._answer: Answer | None = None
        self._journal_problem_reported = False
        self._last_retry = ""

    def __call__(self, event: Event) -> None:
        """Record the event and pass it to the listeners."""
        match event:
            case Warned():
                self.warnings.append(event.message)
            case CallRetried():
                self._last_retry = event.error
            case CallFinished():
                self._last_retry = ""
            case AnswerGiven(depth=0):
                self._explain_timeout(event)
                self._answer = event.answer
        problems = self._record(event)
        self._listener(event)
        for problem in problems + self._emit(event):
            self(Warned(run_id=event.run_id, depth=event.depth, at=event.at, message=problem))

    async def finish(self) -> None:
        """Wait until the journal is on the disk."""
        if self._journal is not None:
            await self._journal.sync()
            for problem in self._journal_problems(self._journal):
                logger.warning("%s", problem)

    def _explain_timeout(self, event: AnswerGiven) -> None:
        """Warn that a run out of time was waiting for a provider in trouble, which is then the cause."""
        if self._last_retry and event.answer.status == "timeout":
            message = f"when time ran out, a call was waiting for a retry: {self._last_retry}"
            event.answer.warnings += (message,)
            self(Warned(run_id=event.run_id, depth=event.depth, at=event.at, message=message))

    def _record(self, event: Event) -> list[str]:
        """Write the event into the journal, if there is one; return new problems of it."""
        if self._journal is None:
            return []
        self._journal.write(event)
        return self._journal_problems(self._journal)

    def _journal_problems(self, journal: EventJournal) -> list[str]:
        """Return the journal's problem the first time; add it to an answer that was already given."""
        if not journal.problem or self._journal_problem_reported:
            return []
        self._journal_problem_reported = True
        if self._answer is None:
            return [journal.problem]
        self._answer.warnings += (journal.problem,)
        logger.warning("%s", journal.problem)
        return []
