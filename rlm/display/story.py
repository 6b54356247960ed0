"""Turn events into the story of a run: entries of a kind and a text, which the plain and the live display paint."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from rlm.display.run_state import answer_summary
from rlm.display.text import last_lines, one_line, seconds
from rlm.engine.reply_parser import Prose, Thinking, parse_reply
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
    TurnStarted,
    Warned,
)
from rlm.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm.display.run_state import RunState
    from rlm.values import CellResult

__all__ = ["CLIPPED_CHARS", "Entry", "Kind", "calls_in_words", "prose_of", "retry_entry", "story_of"]

Kind: TypeAlias = Literal[
    "question", "context", "models", "turn", "prose", "code", "stdout", "stderr", "error", "cell",
    "warning", "failed prompts", "retry", "failed call", "call",
    "answered", "limit", "spent", "stopped", "failed",
]  # fmt: skip

CLIPPED_CHARS: Final = 300
"""The longest line of code, output or prose that is shown whole."""

_OF_CHILDREN: Final = frozenset({"question", "cell", "warning", "answered", "limit", "stopped", "failed"})
"""Kinds of entries that are shown of a child run; with its cells and calls too, parallel children would mix."""

_ENDINGS: Final = {
    "timeout": "timed out",
    "memory": "ran out of memory",
    "exited": "ended the interpreter",
    "cancelled": "stopped",
    "protocol": "was stopped for interfering",
}


class Entry(NamedTuple):
    """One thing that happened. A display that cannot show the kind by layout or colour writes `label` before `text`."""

    kind: Kind
    text: str
    label: str = ""

    @property
    def line(self) -> str:
        """The entry as one line, clipped and safe to print."""
        return f"{self.label}{one_line(self.text, CLIPPED_CHARS)}"


def story_of(event: Event, state: RunState, *, verbosity: int, shows_cells: bool) -> Iterator[Entry]:
    """Yield the entries that an event adds.

    Args:
        event: the event.
        state: with the event applied.
        verbosity: 0 for turns, cells and batches; 1 adds child runs and retries; 2 adds every call.
        shows_cells: yield prose, code and output; without them, the entry of a cell says what it printed.
    """
    entries = _entries_of_run(event, state, shows_cells=shows_cells)
    if not event.depth:
        yield from entries
        yield from _entries_of_calls(event, state, verbosity)
    else:
        yield from (
            entry
            for entry in entries
            if entry.kind == "warning" or (verbosity and entry.kind in _OF_CHILDREN)
        )


def _entries_of_run(event: Event, state: RunState, *, shows_cells: bool) -> Iterator[Entry]:
    match event:
        case RunStarted():
            yield Entry("question", event.question, f"asked {event.model!r}: ")
            yield Entry("context", event.context_summary)
            models = dict.fromkeys((event.model, event.recursive_model))
            yield Entry("models", f"Asked: {' and '.join(models)}.")
        case TurnStarted():
            yield Entry("turn", f"Turn {event.turn}")
        case RootReplied() if shows_cells and (prose := prose_of(event.reply.text)):
            yield Entry("prose", prose, f"turn {event.turn}: ")
        case CellStarted() if shows_cells and event.turn:
            yield Entry("code", event.code, f"turn {event.turn}: cell {event.cell}:")
        case CellFinished(result=result) if event.turn:
            if shows_cells:
                yield from _output_of(result)
            calls = "" if event.depth else calls_in_words(state)
            words = _cell_in_words(result, calls, shows_output=shows_cells)
            yield Entry("cell", words, f"turn {event.turn}: cell {event.cell} ")
        case AnswerGiven(answer=answer) if answer.status == "ok":
            yield Entry("answered", answer_summary(answer, state.caps), "answered: ")
        case AnswerGiven(answer=answer):
            yield Entry("limit", answer.limit, "stopped: ")
            yield Entry("spent", answer_summary(answer, state.caps), "spent: ")
        case RunFailed(kind="Cancelled"):
            yield Entry("stopped", "", "stopped")
        case RunFailed():
            yield Entry("failed", event.error, "failed: " if event.error else "failed")
        case Warned():
            yield Entry("warning", event.message, "warning: ")
        case _:
            pass


def _entries_of_calls(event: Event, state: RunState, verbosity: int) -> Iterator[Entry]:
    match event:
        case BatchFinished(failed=failed) if failed:
            yield Entry(
                "failed prompts", f"{counted(failed, 'prompt')} of a batch failed", f"turn {state.turn}: "
            )
        case CallRetried() if verbosity:
            yield retry_entry(event)
        case CallFailed() if verbosity:
            yield Entry("failed call", event.error, f"call {event.call} failed: ")
        case CallStarted() if verbosity > 1:
            prompt = event.messages[-1].content if event.messages else ""
            yield Entry("call", prompt, f"call {event.call} → {event.model}: ")
        case CallFinished() if verbosity > 1:
            yield Entry("call", event.reply.text, f"call {event.call} ← ")
        case _:
            pass


def retry_entry(event: CallRetried) -> Entry:
    """Return the entry that says which attempt failed, why, and when the next one starts."""
    error = one_line(event.error, CLIPPED_CHARS)
    again = f"again in {seconds(event.wait_s)}"
    return Entry("retry", f"call {event.call} failed, attempt {event.attempt}: {error}; {again}")


def _output_of(result: CellResult) -> Iterator[Entry]:
    if result.stdout:
        yield Entry("stdout", result.stdout)
    if result.stderr:
        yield Entry("stderr", result.stderr)
    if result.error:
        yield Entry("error", result.error)


def _cell_in_words(result: CellResult, calls: str, *, shows_output: bool) -> str:
    """Say in one line how a cell ended, how many calls it made, what it printed unless that is shown, and its time."""
    parts = ["ok" if result.outcome == "ok" else _failure_of(result)]
    if calls:
        parts.append(calls)
    if result.outcome != "cancelled":  # the user stopped it, and wants neither its output nor its time
        if not shows_output:
            parts.append(_printed(result))
        parts.append(seconds(result.execution_time))
    return ", ".join(parts)


def calls_in_words(state: RunState) -> str:
    """`1,000 calls`, or `10 calls for 1,000 prompts` where equal prompts shared a call; empty without calls."""
    calls, repeats = state.cell_calls, state.cell_repeats
    words = counted(calls, "call") if calls else ""
    return f"{words} for {counted(calls + repeats, 'prompt')}" if repeats and calls else words


def prose_of(reply: str) -> str:
    """Return the prose of a reply before its code or its answer, without its thinking."""
    before = takewhile(lambda segment: isinstance(segment, Prose | Thinking), parse_reply(reply).segments)
    return "".join(segment.source for segment in before if isinstance(segment, Prose)).strip()


def _failure_of(result: CellResult) -> str:
    last = last_lines(result.error, 1, CLIPPED_CHARS)[0] or [""]
    state = "" if result.state == "kept" else f" (variables {result.state})"
    words = _ENDINGS.get(result.outcome, result.outcome)
    return f"{words}{state}: {last[0]}" if last[0] else f"{words}{state}"


def _printed(result: CellResult) -> str:
    lines, before = last_lines(result.stdout, 1, 80)
    if not lines:
        return "printed nothing"
    shown = repr(lines[0]).replace("\\\\", "\\")
    return f"printed {shown}" if not before else f"printed {counted(before + 1, 'line')}, the last: {shown}"
