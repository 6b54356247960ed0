"""Events of a run: a closed union of frozen dataclasses, `Event`.

The terminal, the journal and `stream()` read them; an event of the union needs no other code to be in the journal. Each
has the `run_id` of its run, the `depth` of that run (0 for the one the user started) and the time `at` which it happened,
in seconds since the epoch.
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
class _RunEvent:
    run_id: str
    depth: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextLoading(_RunEvent):
    """A file of the context is being read, emitted about every 0.1 s; a run begins when all are read.

    Sizes are in bytes; `total_bytes` is 0 when it is not known, such as that of a pipe. `run_id` is '' when a session is
    opened.
    """

    name: str
    read_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(_RunEvent):
    """A run started. `parent_id` is the run whose cell started it, or ''.

    The budget is that of the whole tree, in dollars, tokens and calls; None means no limit.
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
class TurnStarted(_RunEvent):
    """The root model is about to be called; `turn` counts from 1."""

    turn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RootReplied(_RunEvent):
    """The root model's whole reply of one turn."""

    turn: int
    reply: Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class CellStarted(_RunEvent):
    """A cell is about to run; `cell` counts from 1 within the run."""

    turn: int
    cell: int
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CellOutput(_RunEvent):
    """A running cell printed `text` to `stream`, which is "stdout" or "stderr"."""

    cell: int
    stream: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CellFinished(_RunEvent):
    """A cell ended; `result.outcome` says how."""

    turn: int
    cell: int
    result: CellResult


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStarted(_RunEvent):
    """A cell started a batch of `size` calls; `batch` numbers it within the tree, from 1.

    `distinct` calls are made, because equal prompts are sent once; `max_concurrent` of them at the same time.
    """

    batch: int
    size: int
    distinct: int
    max_concurrent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFinished(_RunEvent):
    """A batch ended; `failed` of its slots hold an error. Calls that were cancelled or not made are not counted."""

    batch: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStarted(_RunEvent):
    """The scheduler accepted a call; `call` numbers it within the tree, `batch` is the number of its batch or None."""

    call: int
    role: CallRole
    model: str
    messages: tuple[Message, ...]
    batch: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallWrote(_RunEvent):
    """A root model wrote the next part of its reply; the text of a retried call starts again from the beginning."""

    call: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRetried(_RunEvent):
    """Attempt number `attempt` of a call failed; the next one follows in `wait_s` seconds."""

    call: int
    attempt: int
    error: str
    wait_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFinished(_RunEvent):
    """A call ended with a reply."""

    call: int
    reply: Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFailed(_RunEvent):
    """A call ended without a reply; `error` is the message, `kind` the name of the exception, or "Cancelled".

    `usage` and `cost_usd` are what the provider billed for its attempts.
    """

    call: int
    kind: str
    error: str
    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned(_RunEvent):
    """A message for the user, such as about a reply that was cut at the output cap."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerGiven(_RunEvent):
    """The run ended with an answer, complete or partial."""

    answer: Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFailed(_RunEvent):
    """The run ended with an error; `kind` is the name of the exception, or "Cancelled"."""

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
    """Do nothing; the `Emit` of callers without a listener."""
