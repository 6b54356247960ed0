"""The state of runs after the events so far, without I/O; both displays read it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from rlm.display.text import money, seconds
from rlm.events import (
    AnswerGiven,
    BatchFinished,
    BatchStarted,
    CallFailed,
    CallFinished,
    CallRetried,
    CallStarted,
    CallWrote,
    CellFinished,
    CellOutput,
    CellStarted,
    Event,
    RootReplied,
    RunFailed,
    RunStarted,
    TurnStarted,
)
from rlm.values import Usage
from rlm.wording import counted

if TYPE_CHECKING:
    from rlm.values import Answer, CallRole

__all__ = ["BatchProgress", "Caps", "RunState", "answer_summary", "of_cap"]

_Key: TypeAlias = tuple[str, int]

KEPT_CHARS = 16_000

NOT_FAILURES = frozenset({"Cancelled", "BudgetExceeded", "DeadlineExceeded"})
"""Kinds of `CallFailed` that do not count as failures: the call was cancelled, or a limit was reached first."""


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """The calls of one running batch, or of all: their number, prompts, calls done and failed, and the start time."""

    size: int
    prompts: int
    done: int = 0
    failed: int = 0
    started_at: float = 0.0

    @property
    def repeats(self) -> int:
        """Number of prompts that equal another one of their batch and share its call."""
        return self.prompts - self.size

    def left_s(self, now: float) -> float | None:
        """Return the seconds until the last call is done at the rate so far, or None in the first second."""
        elapsed = now - self.started_at
        if not self.done or elapsed < 1:
            return None
        return elapsed * (self.size - self.done) / self.done


@dataclass(frozen=True, slots=True)
class Caps:
    """Limits of what a run and its children may spend; None means no limit."""

    usd: float | None = None
    tokens: int | None = None
    calls: int | None = None


NO_CAPS = Caps()


class _Tail:
    """The last characters of a growing text."""

    def __init__(self) -> None:
        self._pieces: deque[str] = deque()
        self._chars = 0

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def add(self, text: str) -> None:
        self._pieces.append(text[-KEPT_CHARS:])
        self._chars += len(self._pieces[-1])
        while self._chars - len(self._pieces[0]) >= KEPT_CHARS:
            self._chars -= len(self._pieces.popleft())

    def clear(self) -> None:
        self._pieces.clear()
        self._chars = 0


@dataclass(slots=True)
class RunState:
    """State of the runs that one display shows; `apply` adds the next event.

    Numbers are sums over a root run and its children, and start at zero with the next root run.

    Attributes:
        open_runs: depth of each run that has started and not ended, by its id.
        started_at: start of the first of them, in seconds since the epoch.
        doing: "root" while the root model is asked, "cell" while a cell runs, else "".
        caps: limits of the root run and its children.
        cell_calls: sub-model calls made by the running cell, or else by the last one; calls that the budget refused
            do not count.
        cell_repeats: prompts of its batches that equalled others and shared their calls.
        read_chars: length of all prompts sent to sub-models.
        retry: the last failed attempt, in words, until its call is answered.
        cost_usd: dollars spent, or None if the price of a reply is not known.
    """

    open_runs: dict[str, int] = field(default_factory=dict)
    started_at: float = 0.0
    turn: int = 0
    max_iterations: int = 0
    cell: int = 0
    doing: str = ""
    calls: int = 0
    sub_calls: int = 0
    cell_calls: int = 0
    cell_repeats: int = 0
    failed_calls: int = 0
    read_chars: int = 0
    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = 0.0
    caps: Caps = NO_CAPS
    retry: str = ""
    batches: dict[_Key, BatchProgress] = field(default_factory=dict)
    _in_flight: dict[_Key, tuple[CallRole, int | None]] = field(default_factory=dict)
    _output: _Tail = field(default_factory=_Tail)
    _written: _Tail = field(default_factory=_Tail)
    _root_call: _Key | None = None

    @property
    def in_flight(self) -> int:
        """Number of calls that wait for an answer."""
        return len(self._in_flight)

    @property
    def child_runs(self) -> int:
        """Number of open child runs."""
        return sum(depth > 0 for depth in self.open_runs.values())

    @property
    def root_runs(self) -> int:
        """Number of open runs that were not started by a cell."""
        return len(self.open_runs) - self.child_runs

    @property
    def output(self) -> str:
        """The last characters that the running cell printed."""
        return self._output.text

    @property
    def written(self) -> str:
        """The last characters of the reply that the root model is writing."""
        return self._written.text

    def batch(self) -> BatchProgress | None:
        """Return the sum of the running batches, or None if there are none."""
        batches = self.batches.values()
        if not batches:
            return None
        return BatchProgress(
            size=sum(batch.size for batch in batches),
            prompts=sum(batch.prompts for batch in batches),
            done=sum(batch.done for batch in batches),
            failed=sum(batch.failed for batch in batches),
            started_at=min(batch.started_at for batch in batches),
        )

    def apply(self, event: Event) -> None:  # noqa: PLR0912 - one arm per event
        """Add the next event."""
        match event:
            case RunStarted():
                if not self.open_runs:
                    self._begin(event)
                self.open_runs[event.run_id] = event.depth
            case AnswerGiven() | RunFailed():
                self._end(event.run_id)
            case TurnStarted(depth=0):
                self.turn, self.doing = event.turn, "root"
            case RootReplied(depth=0):
                self.doing = ""
                self._written.clear()
            case CellStarted(depth=0):
                if not self.open_runs:
                    self._begin(event)
                self.cell, self.doing = event.cell, "cell"
                self.cell_calls = self.cell_repeats = 0
                self._output.clear()
            case CellOutput(depth=0):
                self._output.add(event.text)
            case CellFinished(depth=0):
                self.doing = ""
                self.batches.clear()
            case BatchStarted():
                self.batches[event.run_id, event.batch] = BatchProgress(
                    event.distinct, event.size, started_at=event.at
                )
                self.cell_repeats += event.size - event.distinct
            case BatchFinished():
                self.batches.pop((event.run_id, event.batch), None)
            case CallStarted():
                self._call_started(event)
            case CallWrote() if self._root_call == (event.run_id, event.call):
                self._written.add(event.text)
            case CallRetried():
                if self._root_call == (event.run_id, event.call):
                    self._written.clear()
                self.retry = f"{event.error}; again in {seconds(event.wait_s)}"
            case CallFinished() | CallFailed():
                self._call_ended(event)
            case _:
                pass

    def _begin(self, event: RunStarted | CellStarted) -> None:
        fresh = RunState(started_at=event.at, caps=_caps_of(event) or self.caps)
        for name in self.__slots__:
            setattr(self, name, getattr(fresh, name))
        self.max_iterations = event.max_iterations if isinstance(event, RunStarted) else 0

    def _end(self, run_id: str) -> None:
        self.open_runs.pop(run_id, None)
        for kept in (self.batches, self._in_flight):
            for key in [key for key in kept if key[0] == run_id]:
                del kept[key]
        if not self.open_runs:
            self.doing = self.retry = ""
            self._written.clear()

    def _call_started(self, event: CallStarted) -> None:
        self.calls += 1
        self._in_flight[event.run_id, event.call] = (event.role, event.batch)
        if event.role == "sub":
            self.sub_calls += 1
            self.cell_calls += 1
            self.read_chars += sum(len(message.content) for message in event.messages)
        elif not event.depth:
            self._root_call = event.run_id, event.call
            self._written.clear()

    def _call_ended(self, event: CallFinished | CallFailed) -> None:
        role, number = self._in_flight.pop((event.run_id, event.call), ("sub", None))
        failed = isinstance(event, CallFailed) and event.kind not in NOT_FAILURES
        if role == "sub" and isinstance(event, CallFailed) and event.kind == "BudgetExceeded":
            self.cell_calls -= 1  # the call was never made
        self.failed_calls += failed
        self.retry = ""
        bill = event.reply if isinstance(event, CallFinished) else event
        self.usage = self.usage + bill.usage
        cost = bill.cost_usd
        self.cost_usd = None if cost is None or self.cost_usd is None else self.cost_usd + cost
        key = (event.run_id, number or 0)
        if batch := self.batches.get(key):
            done = min(batch.done + 1, batch.size)  # a call that was repeated in another form ends twice
            self.batches[key] = replace(batch, done=done, failed=batch.failed + failed)


def answer_summary(answer: Answer, caps: Caps = NO_CAPS) -> str:
    """Return in words the turns, calls, tokens, dollars and seconds of an answer, with the limits; unknown amounts are left out."""
    usage, cost_usd = answer.usage, answer.cost_usd
    parts = [counted(answer.turns, "turn"), of_cap(usage.calls, caps.calls, "call")]
    if usage.total_tokens or caps.tokens is not None:
        tokens = of_cap(usage.total_tokens, caps.tokens, "token")
        parts.append(f"{'about ' if usage.estimated else ''}{tokens}")
    if cost_usd is not None and caps.usd is not None:
        parts.append(f"{money(cost_usd)} of {money(caps.usd)}")
    elif cost_usd is not None and (cost_usd or usage.total_tokens):
        parts.append(money(cost_usd))
    return ", ".join([*parts, seconds(answer.seconds)])


def of_cap(number: int, cap: int | None, noun: str) -> str:
    """Return `12 calls`, or with a cap `12 of 50 calls`."""
    return counted(number, noun) if cap is None else f"{number:,} of {counted(cap, noun)}"


def _caps_of(event: RunStarted | CellStarted) -> Caps | None:
    """Return the caps of a run, or None for a cell of the user, whose event has none."""
    if isinstance(event, CellStarted):
        return None
    return Caps(event.budget_usd, event.budget_tokens, event.budget_calls)
