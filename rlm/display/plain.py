"""Paint events as plain lines: for pipes, logs and terminals that cannot redraw.

    [  0.0 s] asked 'gpt-5': Which clauses let the tenant leave early?
    [  0.0 s] `context` is a str of 465,123 characters.
    [  2.1 s] turn 1: cell 1 ok, printed 3 lines, the last: 'chapters: 48'
    [ 14.0 s] turn 2: 430 of 1,000 calls
    [ 31.5 s] turn 2: cell 2 ok, 1,000 calls, printed nothing
    [ 33.0 s] answered: 3 turns, 1,003 calls, 812,345 tokens, $0.0934, 33 s

Every line is complete in itself. With several runs at once, each line names its run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TextIO

from rlm.display.run_state import RunState
from rlm.display.story import CLIPPED_CHARS, Entry, retry_entry, story_of
from rlm.display.text import first_lines, seconds
from rlm.events import CallFinished, CallRetried
from rlm.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm.events import Event

__all__ = ["PlainLines"]

NEWS_S: Final = 10.0
"""Seconds without a line after which a running batch or a retried call gets one."""

QUOTED_LINES: Final = 200


class PlainLines:
    """Display that writes lines to a file.

    Args:
        file: receives the lines; a closed file or broken pipe silences the display.
        verbosity: 0 for turns, cells and batches; 1 adds whole cells, child runs and retries; 2 adds every call.
    """

    def __init__(self, file: TextIO, *, verbosity: int = 0) -> None:
        self._file: TextIO | None = file
        self._verbosity = verbosity
        self._state = RunState()
        self._last_line_at = 0.0

    def __call__(self, event: Event) -> None:
        """Write the lines of one event."""
        if self._file is None:
            return
        self._state.apply(event)
        prefix = "child run: " if event.depth else ""
        try:
            for entry in self._entries(event):
                for line in _lines_of(entry):
                    self._write(event, f"{prefix if entry.kind != 'warning' else ''}{line}")
        except (OSError, ValueError):  # a broken pipe, a full disk, a closed file
            self._file = None

    def close(self) -> None:
        """Stop writing; the file stays open."""
        self._file = None

    def _entries(self, event: Event) -> Iterator[Entry]:
        yield from story_of(event, self._state, verbosity=self._verbosity, shows_cells=bool(self._verbosity))
        if not event.depth and event.at - self._last_line_at >= NEWS_S:
            if isinstance(event, CallRetried):
                yield retry_entry(event)
            elif isinstance(event, CallFinished):
                yield from self._batch_news(event.at)

    def _batch_news(self, now: float) -> Iterator[Entry]:
        if batch := self._state.batch():
            repeats = f" for {counted(batch.prompts, 'prompt')}" if batch.repeats else ""
            left_s = batch.left_s(now)
            left = f", {seconds(left_s)} left" if left_s else ""
            words = f"{batch.done:,} of {counted(batch.size, 'call')}{repeats}{left}"
            yield Entry("context", words, f"turn {self._state.turn}: ")

    def _write(self, event: Event, line: str) -> None:
        if self._file is None:
            return
        elapsed = event.at - self._state.started_at
        run = f" {event.run_id[-4:]}" if self._state.root_runs > 1 else ""
        self._file.write(f"[{seconds(elapsed):>7}]{run} {line}\n")
        self._file.flush()
        self._last_line_at = event.at


def _lines_of(entry: Entry) -> Iterator[str]:
    match entry.kind:
        case "turn" | "models":
            return  # the label of another entry names it
        case "code" | "stdout" | "stderr" | "error":
            if entry.label:
                yield entry.label
            lines, more = first_lines(entry.text, QUOTED_LINES, CLIPPED_CHARS)
            yield from (f"  | {line}" for line in lines)
            if more:
                yield f"  | ... {counted(more, 'more line')}"
        case _:
            yield entry.line
