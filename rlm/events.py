"""Everything that can happen in a run: a closed union of frozen dataclasses.

The terminal, the journal and `stream()` all read these; a new one is in the journal by being in the union. Each event
names its run (`run_id`), its `depth` (0 for the run the user started) and when it happened (`at`, seconds since the
epoch). `Event` is the union.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from rlm.values import Answer, CallRole, CellResult, Message, Reply, Usage

__all__ = [
    "AnswerGiven",
    "BatchFinished",
    "BatchStarted",
    "CallFailed",
    "CallFinished",
    "CallRetried",
    "CallStarted",
    "CallWrote",
    "CellFinished",
    "CellOutput",
    "CellStarted",
    "ContextLoading",
    "Emit",
    "Event",
    "RootReplied",
    "RunFailed",
    "RunStarted",
    "TurnStarted",
    "Warned",
    "ignore",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Happening:
    run_id: str
    depth: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextLoading(_Happening):
    """A file of the context is being read, emitted about every 0.1 s; a run begins when all are read.

    Sizes are in bytes; `total_bytes` is 0 when it is not known, such as that of a pipe. `run_id` is '' when a session is
    opened.
    """

    name: str
    read_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(_Happening):
    """A run began; `parent_id` is the run whose cell asked for it, or ''.

    The budget is that of its whole tree, in dollars, tokens and calls; None is no limit.
    """

    question: str
    context_summary: str
    model: str
    recursive_model: str
    max_iterations: int
    parent_id: str = ""
    budget_usd: float | None = None
    budget_tokens: int | None = None
    budget_calls: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnStarted(_Happening):
    """The root model is about to be asked; `turn` counts from 1."""

    turn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RootReplied(_Happening):
    """The root model's whole reply of one turn."""

    turn: int
    reply: Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class CellStarted(_Happening):
    """A cell is about to run; `cell` counts from 1 within the run."""

    turn: int
    cell: int
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CellOutput(_Happening):
    """A piece of what a running cell printed, as it came."""

    cell: int
    stream: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CellFinished(_Happening):
    """A cell ended, in whatever way `result.outcome` says."""

    turn: int
    cell: int
    result: CellResult


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStarted(_Happening):
    """A cell asked for `size` calls at once; `batch` numbers it within the tree.

    `distinct` of them are really made: equal prompts are asked once.
    """

    batch: int
    size: int
    distinct: int
    max_concurrent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFinished(_Happening):
    """A batch ended; `failed` of its slots hold an error. Calls that were stopped or never made do not count."""

    batch: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStarted(_Happening):
    """A call was taken on; `call` numbers it within the tree, `batch` is its batch or None."""

    call: int
    role: CallRole
    model: str
    messages: tuple[Message, ...]
    batch: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallWrote(_Happening):
    """A piece of a root model's reply, as it was written; a retried call begins its text anew."""

    call: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRetried(_Happening):
    """An attempt of a call failed and the next one follows in `wait_s` seconds."""

    call: int
    attempt: int
    error: str
    wait_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFinished(_Happening):
    """A call was answered."""

    call: int
    reply: Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFailed(_Happening):
    """A call got no answer; `error` is the message, `kind` the exception's name, or "Cancelled".

    `usage` and `cost_usd` are what its attempts were billed all the same.
    """

    call: int
    kind: str
    error: str
    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned(_Happening):
    """Something the user should know, such as a reply that was cut at the output cap."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerGiven(_Happening):
    """The run ended with an answer, whole or partial."""

    answer: Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFailed(_Happening):
    """The run ended with an error instead of an answer."""

    kind: str
    error: str


Event: TypeAlias = (
    ContextLoading
    | RunStarted
    | TurnStarted
    | RootReplied
    | CellStarted
    | CellOutput
    | CellFinished
    | BatchStarted
    | BatchFinished
    | CallStarted
    | CallWrote
    | CallRetried
    | CallFinished
    | CallFailed
    | Warned
    | AnswerGiven
    | RunFailed
)

Emit: TypeAlias = Callable[[Event], None]


def ignore(event: Event) -> None:
    """An `Emit` for callers who do not listen."""
