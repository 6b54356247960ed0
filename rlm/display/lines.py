"""Events as plain lines: for pipes, logs and terminals that cannot redraw.

    [  0.0 s] asked 'gpt-5' of a str of 465,123 characters: Which clauses let the tenant leave early?
    [  2.1 s] turn 1: cell 1 ok, printed 3 lines, the last: 'chapters: 48'
    [ 14.0 s] turn 2: 430 of 1,000 calls
    [ 31.5 s] turn 2: cell 2 ok, 1,000 calls, printed nothing
    [ 33.0 s] answered: 3 turns, 1,003 calls, 812,345 tokens, $0.0934, 33 s

Every line is complete in itself. With several runs at once, each names its run.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TextIO

from rlm.display.progress import Progress, answer_summary
from rlm.display.text import count, first_lines, last_lines, one_line, seconds
from rlm.events import (
    AnswerGiven,
    BatchFinished,
    CallFailed,
    CallFinished,
    CallRetried,
    CallStarted,
    CellFinished,
    CellStarted,
    Event,
    RootReplied,
    RunFailed,
    RunStarted,
    Warned,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rlm.values import CellResult

__all__ = ["PlainLines", "calls_in_words", "cell_in_words", "prose_of"]

_ENDINGS = {
    "timeout": "timed out",
    "memory": "ran out of memory",
    "exited": "ended the interpreter",
    "cancelled": "stopped",
    "protocol": "was stopped for interfering",
}

BATCH_NEWS_S = 10.0
"""How many seconds a batch may be silent before a line says how far it is."""

SHOWN_CHARS = 300
SHOWN_LINES = 200

_THOUGHTS = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL)
_CODE_OR_FINAL = re.compile(r"^[ \t]*(?:```|~~~|FINAL(?:_VAR)?\()", re.MULTILINE)


class PlainLines:
    """Writes lines to a file as events come.

    Args:
        file: where the lines go; one that is closed or broken silences the display.
        verbosity: 0 for turns, cells and batches; 1 adds whole cells, child runs and retries; 2 adds every call.
    """

    def __init__(self, file: TextIO, *, verbosity: int = 0) -> None:
        self._file: TextIO | None = file
        self._verbosity = verbosity
        self._progress = Progress()
        self._last_line_at = 0.0

    def __call__(self, event: Event) -> None:
        """Write what there is to say about one event."""
        if self._file is None:
            return
        self._progress.apply(event)
        try:
            for line in self._lines(event):
                self._write(event, line)
        except (OSError, ValueError):  # a broken pipe, a full disk, a closed file
            self._file = None

    def close(self) -> None:
        """Stop writing; the file stays open."""
        self._file = None

    def _write(self, event: Event, line: str) -> None:
        if self._file is None:
            return
        elapsed = event.at - self._progress.started_at
        run = f" {event.run_id[-4:]}" if self._progress.root_runs > 1 else ""
        self._file.write(f"[{seconds(elapsed):>7}]{run} {line}\n")
        self._file.flush()
        self._last_line_at = event.at

    def _lines(self, event: Event) -> Iterator[str]:
        if event.depth and not self._verbosity and not isinstance(event, Warned):
            return
        yield from self._run_lines(event)
        yield from self._call_lines(event)

    def _run_lines(self, event: Event) -> Iterator[str]:
        child = "child run: " if event.depth else ""
        match event:
            case RunStarted():
                about = one_line(event.context_summary, SHOWN_CHARS)
                yield f"{child}asked {event.model!r}: {one_line(event.question, SHOWN_CHARS)}"
                yield f"{child}{about}"
            case RootReplied() if self._verbosity and (prose := prose_of(event.reply.text)):
                yield f"{child}turn {event.turn}: {one_line(prose, SHOWN_CHARS)}"
            case CellStarted() if self._verbosity and event.turn:
                yield f"{child}turn {event.turn}: cell {event.cell}:"
                yield from _quoted(event.code)
            case CellFinished() if event.turn:
                calls = "" if event.depth else calls_in_words(self._progress)
                words = cell_in_words(event.result, calls, shown=bool(self._verbosity))
                yield f"{child}turn {event.turn}: cell {event.cell} {words}"
                if self._verbosity:
                    yield from _quoted(_output_of(event.result))
            case AnswerGiven(answer=answer):
                ending = (
                    "answered"
                    if answer.status == "ok"
                    else f"stopped ({one_line(answer.limit, SHOWN_CHARS)})"
                )
                yield f"{child}{ending}: {answer_summary(answer, self._progress.caps)}"
            case RunFailed(kind="Cancelled"):
                yield f"{child}stopped"
            case RunFailed():
                why = f": {one_line(event.error, SHOWN_CHARS)}" if event.error else ""
                yield f"{child}failed{why}"
            case Warned():
                yield f"warning: {one_line(event.message, SHOWN_CHARS)}"
            case _:
                pass

    def _call_lines(self, event: Event) -> Iterator[str]:
        match event:
            case CallStarted() if self._verbosity > 1:
                prompt = event.messages[-1].content if event.messages else ""
                yield f"call {event.call} to {event.model!r}: {one_line(prompt, SHOWN_CHARS)}"
            case CallFinished() if self._verbosity > 1:
                yield f"call {event.call} answered: {one_line(event.reply.text, SHOWN_CHARS)}"
            case CallFailed() if self._verbosity:
                yield f"call {event.call} failed: {one_line(event.error, SHOWN_CHARS)}"
            case CallRetried() if self._verbosity or event.at - self._last_line_at >= BATCH_NEWS_S:
                error = one_line(event.error, SHOWN_CHARS)
                yield f"call {event.call} failed, attempt {event.attempt}: {error}; again in {seconds(event.wait_s)}"
            case BatchFinished(failed=failed) if failed:
                yield f"turn {self._progress.turn}: {count(failed, 'prompt')} of a batch failed"
            case _:
                pass
        batch = self._progress.batch()
        if isinstance(event, CallFinished) and batch and event.at - self._last_line_at >= BATCH_NEWS_S:
            words = f"{batch.done:,} of {count(batch.size, 'call')}"
            repeats = f" for {count(batch.prompts, 'prompt')}" if batch.repeats else ""
            left_s = batch.left_s(event.at)
            left = f", {seconds(left_s)} left" if left_s else ""
            yield f"turn {self._progress.turn}: {words}{repeats}{left}"


def cell_in_words(result: CellResult, calls: str, *, shown: bool) -> str:
    """How a cell ended and what it did, as one line; where its output is `shown` anyway, not what it printed."""
    ending = "ok" if result.outcome == "ok" else _failure_of(result)
    parts = [ending, calls] if calls else [ending]
    if not shown and result.outcome != "cancelled":  # nobody waited for what it printed, nor for its time
        parts.append(_printed(result))
    if result.outcome != "cancelled":
        parts.append(seconds(result.execution_time))
    return ", ".join(parts)


def calls_in_words(progress: Progress) -> str:
    """The calls that a cell led to, if any; with its prompts, where equal ones were asked once."""
    calls, repeats = progress.cell_calls, progress.cell_repeats
    words = count(calls, "call") if calls else ""
    return f"{words} for {count(calls + repeats, 'prompt')}" if repeats and calls else words


def prose_of(reply: str) -> str:
    """What a reply says before its code or its answer, without its thoughts."""
    text = _THOUGHTS.sub("", reply)
    start = _CODE_OR_FINAL.search(text)
    return (text[: start.start()] if start else text).strip()


def _failure_of(result: CellResult) -> str:
    last = last_lines(result.error, 1, SHOWN_CHARS)[0] or [""]
    state = "" if result.state == "kept" else f" (variables {result.state})"
    words = _ENDINGS.get(result.outcome, result.outcome)
    return f"{words}{state}: {last[0]}" if last[0] else f"{words}{state}"


def _printed(result: CellResult) -> str:
    lines, before = last_lines(result.stdout, 1, 80)
    if not lines:
        return "printed nothing"
    shown = repr(lines[0]).replace("\\\\", "\\")
    return f"printed {shown}" if not before else f"printed {count(before + 1, 'line')}, the last: {shown}"


def _output_of(result: CellResult) -> str:
    return "\n".join(part.rstrip("\n") for part in (result.stdout, result.stderr, result.error) if part)


def _quoted(text: str) -> Iterable[str]:
    lines, more = first_lines(text, SHOWN_LINES, SHOWN_CHARS)
    yield from (f"  | {line}" for line in lines)
    if more:
        yield f"  | ... {count(more, 'more line')}"
