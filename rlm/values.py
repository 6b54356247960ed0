"""Frozen values that are passed between packages.

`Call`: one question to a model. `Reply`: its text and `Usage`. `FailedCall`: the slot of a batch without a reply.
`CellResult`: output and outcome of one cell. `HostCall`: a request of a cell to the host. `Answer`: the result of a run,
a `str` with its cost and status.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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
    "written_size",
]

Role = Literal["system", "user", "assistant"]
CallRole = Literal["root", "sub"]
FinishReason = Literal["stop", "length", "filter", "unknown"]
AnswerStatus = Literal["ok", "partial", "budget", "timeout", "cancelled"]
CellOutcome = Literal["ok", "raised", "timeout", "memory", "exited", "crashed", "protocol", "cancelled"]
StateAfter = Literal["kept", "rolled back", "lost"]

INDENTED_CHARS = 1_000_000
"""Greatest length of JSON that `render` indents: under 200 lists, the indentation of a value is 400 times its size."""
WRITTEN_CHARS = 512_000_000
"""Greatest length of a list or dict that `render` writes out; lists that share their parts can be larger than memory."""
MOST_LEVELS = 2_000
MOST_VALUES = 4_000_000


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation with a model."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call or of a sum of calls, as the provider counted them.

    Attributes:
        calls: number of calls.
        input_tokens: tokens of the prompts, cached ones included.
        cached_tokens: the part of `input_tokens` that the provider read from its prompt cache.
        output_tokens: tokens of the replies, reasoning included.
        reasoning_tokens: the part of `output_tokens` that is not in the text of the reply.
        estimated: True if the provider did not report at least one of the numbers, so that it is our estimate.
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
        """Input and output tokens."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One question to a model.

    Attributes:
        model: name of the model at its endpoint.
        messages: the prompt.
        role: "root" for the root model of a run, "sub" for a sub-model.
        run_id: the run that makes the call, or ''.
        depth: 0 for the run the user started, one more for each level of child runs.
        batch: number of the `llm_batch` within the tree, or None.
        max_output_tokens: output cap, or None for the provider's.
        temperature: sampling temperature, or None for the provider's default.
        schema: JSON Schema that the reply must meet, or None.
        extra: further parameters, passed to the provider unchanged.
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
    """Rate limits that an endpoint reported: per minute, what remains of them, and seconds until they are full again."""

    requests_per_minute: float | None = None
    requests_remaining: float | None = None
    requests_reset_s: float | None = None
    tokens_per_minute: float | None = None
    tokens_remaining: float | None = None
    tokens_reset_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The reply of a model to a `Call`.

    Attributes:
        text: the text of the reply.
        model: the name of the model that the provider reported.
        usage: tokens of the request that was answered.
        refusal: words in which the model declined to answer, or "".
        finish_reason: "stop", "length" if it was cut at the output cap, "filter", or "unknown".
        attempts: number of requests that were sent.
        latency_s: seconds that the last request took.
        cost_usd: dollars, or None if the price of the model is not known.
        stored: True if it came from the cache on disk and cost nothing.
        rate_limits: limits that the endpoint reported with it, or None.
        warnings: messages for the user, such as about a reply that was cut.
    """

    text: str
    model: str = ""
    usage: Usage = Usage(calls=1)
    refusal: str = ""
    finish_reason: FinishReason = "stop"
    attempts: int = 1
    latency_s: float = 0.0
    cost_usd: float | None = None
    stored: bool = False
    rate_limits: RateLimits | None = None
    warnings: tuple[str, ...] = ()


class FailedCall(str):  # noqa: SLOT000 - a plain __dict__ is what makes it pickle and copy like a str
    """The slot of a batch whose call failed: a falsy `str` that names the error; `error` is the exception."""

    error: Exception | None

    def __new__(cls, error: Exception | str) -> Self:
        """Build it from the error. A text is given only when a pickle or a copy is restored; `error` is then None."""
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
    """A request of a cell to the host: name and arguments of a function, as decoded from the guest's message."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Final:
    """A value that a cell gave as the answer, by `FINAL`, `FINAL_VAR` or `answer`."""

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
    """Result of one cell.

    Attributes:
        stdout: the head and the tail of what it printed, with a line that counts the characters cut between them.
        stderr: the same of its error output.
        stdout_chars: length of the whole output, in characters.
        stderr_chars: length of the whole error output, in characters.
        error: the traceback, a sentence if the cell was killed, or ''.
        outcome: how the cell ended.
        state: of the variables: "kept", "rolled back" to before the cell, or "lost" (a new guest with the same context).
        final: the answer, if the cell gave one.
        draft: the value of `answer["content"]`.
        execution_time: seconds from start to end.
        compute_time: `execution_time` without the waiting for host calls.
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
    """Answer of a run: a `str` that prints, joins, compares and pickles as one, with its value, status and cost.

    Attributes:
        value: the Python value that the model gave; the text of the answer is `render(value)`.
        status: `ok`, or `partial`, `budget`, `timeout`, `cancelled` if the run ended before the model gave an answer.
        limit: the limit that ended the run, in words, or ''.
        usage: tokens and calls of the whole tree of runs.
        cost_usd: dollars of the whole tree, or None if the price of a model is not known.
        turns: replies of the root model.
        seconds: wall time.
        run_id: the name of the run in events and journals.
        warnings: messages for the user, such as about a reply that was cut.
        citations: the parts of the context that the answer quotes; empty if they were not recorded.
        coverage: the parts of the context that were read; None if they were not recorded.
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
    """Return any value as text: a str unchanged, a list or dict as JSON if possible, all else by `str`.

    JSON of more than `INDENTED_CHARS` is not indented. An int with more digits than Python prints
    (`sys.get_int_max_str_digits`) is written in hexadecimal. A value that contains one, is nested too deeply, or is
    longer than `WRITTEN_CHARS`, is named by its type.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple, dict)):
        if written_size(value, INDENTED_CHARS, indent=2) <= INDENTED_CHARS:
            with suppress(TypeError, ValueError, RecursionError):
                return json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
        elif written_size(value, WRITTEN_CHARS) > WRITTEN_CHARS:
            return f"<{type(value).__name__} that is too large to be written out>"
        with suppress(TypeError, ValueError, RecursionError):
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        return str(value)
    except (ValueError, RecursionError):
        return (
            hex(value) if isinstance(value, int) else f"<{type(value).__name__} that cannot be written out>"
        )


def written_size(value: Any, limit: int, *, indent: int = 0) -> int:
    """Estimate how many characters a value takes as JSON, without writing it; stop counting above `limit`.

    A value of more than `MOST_LEVELS` levels, such as one that contains itself, or of more than `MOST_VALUES` values
    counts as larger than any limit.
    """
    size = 0
    values_left = MOST_VALUES
    levels: list[Iterator[Any]] = [iter((value,))]
    while levels:
        if len(levels) > MOST_LEVELS or values_left < 0:
            return max(size, limit + 1)
        margin = 2 + indent * (
            len(levels) - 1
        )  # a separator and a space, or a line break and the indentation
        for item in levels[-1]:
            values_left -= 1
            kind = type(item)
            if item is None or kind is bool or kind is float:
                size += margin + 5
            elif isinstance(item, (str, bytes, bytearray)):
                size += margin + len(item)
            elif isinstance(item, int):
                size += margin + 1 + item.bit_length() // 3
            elif isinstance(item, (list, tuple, set, frozenset, dict)):
                size += margin + 2
                levels.append(chain.from_iterable(item.items()) if isinstance(item, dict) else iter(item))
                break
            else:
                size += margin + sys.getsizeof(item)
            if size > limit:
                return size
        else:
            levels.pop()
    return size
