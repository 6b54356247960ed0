"""What stands after the events so far: the pure state that both displays read."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from rlm.display.text import count, money, seconds
from rlm.events import (
    AnswerGiven,
    BatchFinished,
    BatchStarted,
    CallFailed,
    CallFinished,
    CallRetried,
    CallStarted,
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

if TYPE_CHECKING:
    from rlm.values import Answer, CallRole

__all__ = ["Batch", "Progress", "answer_summary", "summary_of"]

_Key: TypeAlias = tuple[str, int]

KEPT_OUTPUT_CHARS = 16_000


@dataclass(frozen=True, slots=True)
class Batch:
    """A running batch: how many calls it has, how many are done, how many of these failed, and since when."""

    size: int
    done: int = 0
    failed: int = 0
    started_at: float = 0.0


@dataclass(slots=True)
class Progress:
    """The state of the runs that one display shows; `apply` takes the next event.

    Numbers add up over the run and its children, and begin anew with the next run that no cell asked for.

    Attributes:
        open_runs: the runs that have begun and not ended, as a mapping from their ids to their depths.
        started_at: when the first of them began, in seconds since the epoch.
        doing: what the run is busy with: "" between the runs, "root" or "cell".
        cell_calls: how many calls of sub-models the running cell, or else the last one, has led to.
        read_chars: the length of all prompts that sub-models were given.
        retry: the last failed attempt, in words, until its call is answered.
        cost_usd: dollars spent, or None where a reply had no known price.
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
    failed_calls: int = 0
    read_chars: int = 0
    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = 0.0
    retry: str = ""
    batches: dict[_Key, Batch] = field(default_factory=dict)
    _in_flight: dict[_Key, tuple[CallRole, int | None]] = field(default_factory=dict)
    _output: deque[str] = field(default_factory=deque)
    _output_chars: int = 0

    @property
    def in_flight(self) -> int:
        """How many calls wait for their answer."""
        return len(self._in_flight)

    @property
    def child_runs(self) -> int:
        """How many child runs are open."""
        return sum(depth > 0 for depth in self.open_runs.values())

    @property
    def root_runs(self) -> int:
        """How many runs are open that no cell asked for."""
        return len(self.open_runs) - self.child_runs

    @property
    def output(self) -> str:
        """The end of what the running cell has printed."""
        return "".join(self._output)

    def batch(self) -> Batch | None:
        """The sum of the batches that run, since the first of them began."""
        batches = self.batches.values()
        if not batches:
            return None
        return Batch(
            size=sum(batch.size for batch in batches),
            done=sum(batch.done for batch in batches),
            failed=sum(batch.failed for batch in batches),
            started_at=min(batch.started_at for batch in batches),
        )

    def apply(self, event: Event) -> None:  # noqa: PLR0912 - one arm per event
        """Take the next event."""
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
            case CellStarted(depth=0):
                if not self.open_runs:
                    self._begin(event)
                self.cell, self.cell_calls, self.doing = event.cell, 0, "cell"
                self._output.clear()
                self._output_chars = 0
            case CellOutput(depth=0):
                self._keep(event.text)
            case CellFinished(depth=0):
                self.doing = ""
                self.batches.clear()
            case BatchStarted():
                self.batches[event.run_id, event.batch] = Batch(event.size, started_at=event.at)
            case BatchFinished():
                self.batches.pop((event.run_id, event.batch), None)
            case CallStarted():
                self._call_started(event)
            case CallRetried():
                self.retry = f"{event.error}; again in {seconds(event.wait_s)}"
            case CallFinished() | CallFailed():
                self._call_ended(event)
            case _:
                pass

    def summary(self, now: float) -> str:
        """What was done and spent so far, in words."""
        return summary_of(self.turn, self.usage, self.cost_usd, now - self.started_at)

    def _begin(self, event: RunStarted | CellStarted) -> None:
        fresh = Progress(started_at=event.at)
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

    def _keep(self, text: str) -> None:
        self._output.append(text[-KEPT_OUTPUT_CHARS:])
        self._output_chars += len(self._output[-1])
        while self._output_chars - len(self._output[0]) >= KEPT_OUTPUT_CHARS:
            self._output_chars -= len(self._output.popleft())

    def _call_started(self, event: CallStarted) -> None:
        self.calls += 1
        self._in_flight[event.run_id, event.call] = (event.role, event.batch)
        if event.role == "sub":
            self.sub_calls += 1
            self.cell_calls += 1
            self.read_chars += sum(len(message.content) for message in event.messages)

    def _call_ended(self, event: CallFinished | CallFailed) -> None:
        _, number = self._in_flight.pop((event.run_id, event.call), ("sub", None))
        failed = isinstance(event, CallFailed)
        self.failed_calls += failed
        self.retry = ""
        if isinstance(event, CallFinished):
            self.usage = self.usage + event.reply.usage
            cost = event.reply.cost_usd
            self.cost_usd = None if cost is None or self.cost_usd is None else self.cost_usd + cost
        key = (event.run_id, number or 0)
        if batch := self.batches.get(key):
            self.batches[key] = replace(batch, done=batch.done + 1, failed=batch.failed + failed)


def summary_of(turns: int, usage: Usage, cost_usd: float | None, elapsed_s: float) -> str:
    """Turns, calls, tokens, dollars and time, as far as there are any."""
    parts = [count(turns, "turn"), count(usage.calls, "call")]
    if usage.total_tokens:
        parts.append(f"{'about ' if usage.estimated else ''}{count(usage.total_tokens, 'token')}")
    if cost_usd is not None and (cost_usd or usage.total_tokens):
        parts.append(money(cost_usd))
    return ", ".join([*parts, seconds(elapsed_s)])


def answer_summary(answer: Answer) -> str:
    """The same of an answer."""
    return summary_of(answer.turns, answer.usage, answer.cost_usd, answer.seconds)
