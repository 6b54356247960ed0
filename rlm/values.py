"""The frozen values that cross rooms.

A `Call` is one request to a model and a `Reply` its answer with its `Usage`; a `FailedCall` stands where a batch
has no answer. A `CellResult` is what one cell left behind. A `HostCall` is what a cell asks of the host. An
`Answer` is what a run gives its caller: a `str` that knows how it came about.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Answer",
    "AnswerStatus",
    "Call",
    "CallRole",
    "CellOutcome",
    "CellResult",
    "FailedCall",
    "Final",
    "FinishReason",
    "HostCall",
    "Message",
    "RateLimits",
    "Reply",
    "Role",
    "StateAfter",
    "Usage",
    "Variable",
    "render",
]

Role = Literal["system", "user", "assistant"]
CallRole = Literal["root", "sub"]
FinishReason = Literal["stop", "length", "filter", "unknown"]
AnswerStatus = Literal["ok", "partial", "budget", "timeout", "cancelled"]
CellOutcome = Literal["ok", "raised", "timeout", "memory", "exited", "crashed", "protocol", "cancelled"]
StateAfter = Literal["kept", "rolled back", "lost"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a dialogue with a model."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Usage:
    """What one call, or a sum of calls, used, in the provider's own count of tokens.

    `cached_tokens` is the part of `input_tokens` read from the provider's prompt cache, `reasoning_tokens` the
    part of `output_tokens` that was not shown. `estimated` says that at least one of the numbers is ours,
    because the provider reported none.
    """

    calls: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            calls=self.calls + other.calls,
            input_tokens=self.input_tokens + other.input_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
            estimated=self.estimated or other.estimated,
        )

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request to a model.

    `role` says whether the root model of a run is asked or a sub-model; `depth` is 0 for the first run and one
    more for each child run below it; `batch` is the number of the batch it belongs to, if any. `schema` is a JSON Schema the reply must meet, `extra` holds parameters
    passed to the provider as they are.
    """

    model: str
    messages: tuple[Message, ...]
    role: CallRole = "sub"
    run_id: str = ""
    depth: int = 0
    batch: int | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    schema: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """What an endpoint says of its limits: per minute, what remains, and seconds until it is full again."""

    requests_per_minute: float | None = None
    requests_remaining: float | None = None
    requests_reset_s: float | None = None
    tokens_per_minute: float | None = None
    tokens_remaining: float | None = None
    tokens_reset_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A model's answer to a `Call`.

    `model` is the name the provider answered with. `attempts` counts the requests it took, `latency_s` is the
    time of the last of them in seconds. `cost_usd` is None where the model has no known price. `stored` says
    that it came from the cache on disk and cost nothing.
    """

    text: str
    model: str = ""
    usage: Usage = Usage(calls=1)
    finish_reason: FinishReason = "stop"
    attempts: int = 1
    latency_s: float = 0.0
    cost_usd: float | None = None
    stored: bool = False
    rate_limits: RateLimits | None = None
    warnings: tuple[str, ...] = ()


class FailedCall(str):  # noqa: SLOT000 - a plain __dict__ is what makes it pickle and copy like a str
    """The slot of a batch whose call failed: a falsy `str` whose text names the error, which is `error`."""

    error: Exception | None

    def __new__(cls, error: Exception | str) -> Self:
        """Build it from the error; from a text only where a pickle or a copy is restored."""
        if isinstance(error, str):
            self = super().__new__(cls, error)
            self.error = None
        else:
            self = super().__new__(cls, f"[failed: {type(error).__name__}: {error}]")
            self.error = error
        return self

    def __bool__(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class HostCall:
    """What a cell asks of the host: the function's name and its arguments, as decoded from the wire."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Final:
    """A value that a cell gave as the answer, and the way it did: `FINAL`, `FINAL_VAR` or `answer`."""

    value: Any
    source: Literal["FINAL", "FINAL_VAR", "answer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One name of the guest's namespace: its type, size (`len`, or None) and the head of its `repr`."""

    name: str
    type_name: str
    length: int | None
    preview: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """What one cell left behind.

    `stdout` and `stderr` are bounded by the session: head and tail, with a line that counts what was cut;
    `stdout_chars` and `stderr_chars` are the true lengths. `error` is the traceback, or a sentence when the
    cell was killed, or ''. `state` says what became of the variables: `kept`, `rolled back` to before the cell,
    or `lost` (a fresh guest with the same context). `draft` is what `answer["content"]` held. Times are in
    seconds; `compute_time` leaves out the time spent waiting for host calls.
    """

    stdout: str = ""
    stderr: str = ""
    stdout_chars: int = 0
    stderr_chars: int = 0
    error: str = ""
    outcome: CellOutcome = "ok"
    state: StateAfter = "kept"
    final: Final | None = None
    draft: Any = None
    execution_time: float = 0.0
    compute_time: float = 0.0


class Answer(str):  # noqa: SLOT000 - a plain __dict__ is what makes it pickle and copy like a str
    """The answer of a run: a `str` that prints, joins, compares and pickles as one, and knows how it came about.

    Attributes:
        value: the Python value the model gave; the text of the answer is its rendering.
        status: `ok`, or `partial`, `budget`, `timeout`, `cancelled` where the run ended before the model did.
        limit: which limit ended the run, in words, or ''.
        usage: tokens and calls of the whole tree of runs.
        cost_usd: dollars, or None where a model has no known price.
        turns: how many times the root model was asked.
        seconds: wall time.
        run_id: the run's name in events and journals.
        warnings: what the user should know, such as a truncated reply.
        citations: what of the context the answer quotes, where the run recorded it.
        coverage: what of the context was read, where the run recorded it.
    """

    value: Any
    status: AnswerStatus
    limit: str
    usage: Usage
    cost_usd: float | None
    turns: int
    seconds: float
    run_id: str
    warnings: tuple[str, ...]
    citations: tuple[Any, ...]
    coverage: Any

    def __new__(
        cls,
        value: Any = "",
        *,
        status: AnswerStatus = "ok",
        limit: str = "",
        usage: Usage = Usage(),
        cost_usd: float | None = None,
        turns: int = 0,
        seconds: float = 0.0,
        run_id: str = "",
        warnings: tuple[str, ...] = (),
        citations: tuple[Any, ...] = (),
        coverage: Any = None,
    ) -> Self:
        """Build an answer from any value; its text is `render(value)`."""
        self = super().__new__(cls, render(value))
        self.value = value
        self.status = status
        self.limit = limit
        self.usage = usage
        self.cost_usd = cost_usd
        self.turns = turns
        self.seconds = seconds
        self.run_id = run_id
        self.warnings = warnings
        self.citations = citations
        self.coverage = coverage
        return self


def render(value: Any) -> str:
    """A value as text, whatever it is: a str as it is, a list or dict as JSON where that is possible, else by `str`.

    An int of more digits than Python writes out (`sys.get_int_max_str_digits`) is written in hexadecimal; what
    holds one, or is nested too deeply, is named by its type.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple, dict)):
        with suppress(TypeError, ValueError, RecursionError):
            return json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
    try:
        return str(value)
    except (ValueError, RecursionError):
        return (
            hex(value) if isinstance(value, int) else f"<{type(value).__name__} that cannot be written out>"
        )
