"""Size of a job before it is started: rows, tokens, calls and dollars; asks no model.

Tokens are those of the requests as they are sent: the prompt around a row, the schema in it and beside it, and the
tokens that the chat format adds to each message.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from heapq import heapify, heappushpop
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, Unpack

from rlm.bulk.checkpoint import key_of
from rlm.bulk.io.formats import as_source
from rlm.bulk.job import Job
from rlm.bulk.templates import Template, read_template
from rlm.errors import InputError
from rlm.metering import tokens
from rlm.metering.prices import Price
from rlm.metering.prices import price as price_of
from rlm.metering.tokens import CHARS_PER_TOKEN
from rlm.structured.map import MapSettings, PlainModels, pack_call
from rlm.structured.packs import Task, content_chars
from rlm.structured.schema import Schema, schema_of
from rlm.values import Usage
from rlm.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rlm.values import Call

__all__ = ["Count", "CountOptions", "RequestCounter", "count_rows", "request_tokens"]

TOKENS_AROUND_A_MESSAGE: Final = 4
TOKENS_BEFORE_A_REPLY: Final = 3
LONGEST_SHOWN: Final = 5


class CountOptions(TypedDict, total=False):
    """Options of a job that decide its size; see `Job`."""

    schema: str | Mapping[str, Any] | type | Schema | None
    models: tuple[str, ...]
    rows_per_call: int | Literal["auto"]
    window_chars: int
    limit: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Size of a job.

    Attributes:
        rows: rows of the input.
        distinct: distinct rows; equal ones are asked once.
        tokens: sum over all rows, each by itself.
        longest: number (from 1) and tokens of the longest rows, the longest first.
        calls: calls that the job would make, without retries.
        input_tokens: sum over all calls.
        output_tokens: an estimate from the schema.
        cost_usd: dollars by model, None if a price is not known; the Batch API costs half.
        exact: True if tokens were counted with the model's own vocabulary, and not estimated.
    """

    rows: int
    distinct: int
    tokens: int
    longest: tuple[tuple[int, int], ...]
    calls: int
    input_tokens: int
    output_tokens: int
    cost_usd: Mapping[str, float | None]
    exact: bool

    def __str__(self) -> str:
        equal = f"{self.distinct:,} distinct, " if self.distinct < self.rows else ""
        longest = ", ".join(f"row {number:,} with {size:,}" for number, size in self.longest)
        lines = [
            (
                f"{counted(self.rows, 'row')}, {equal}{counted(self.tokens, 'token')}, "
                f"{self.tokens / self.rows:,.1f} each; longest: {longest}"
            ),
            (
                f"{counted(self.calls, 'call')}: {counted(self.input_tokens, 'token')} in, "
                f"about {self.output_tokens:,} out"
            ),
        ]
        for model, cost in self.cost_usd.items():
            price = (
                "price not known"
                if cost is None
                else f"about ${cost:,.4f}, ${cost / 2:,.4f} by the Batch API"
            )
            lines.append(f"{model}: {price}")
        if not self.exact:
            lines.append(
                "Tokens are estimated; those of OpenAI's models are exact with pip install 'rlm-cells[tokens]'."
            )
        return "\n".join(lines)


def count_rows(
    rows: Any,
    prompt: str = "",
    *,
    prices: Mapping[str, Price] | None = None,
    encoding: str = "utf-8-sig",
    count_tokens: Callable[[str], int] | None = None,
    **options: Unpack[CountOptions],
) -> Count:
    """Count rows, tokens, calls and dollars of a job.

    Args:
        rows: as for `map_rows`.
        prompt: the template; without one, the whole row is counted.
        prices: prices of models ahead of the built-in list.
        encoding: of text files.
        count_tokens: tokenizer of your own: returns the number of tokens of a text.
        options: as for `Job`; tokens are counted for the first of `models`, dollars for each.

    Raises:
        InputError: rows and prompt do not fit together, or there are no rows.
    """
    job = Job(prompt=prompt, **options)
    counter = RequestCounter(job, count_tokens)
    settings = MapSettings(model=job.models[0], per_call=job.rows_per_call, window_chars=job.window_chars)
    pack_size = settings.pack_budget(counter.task)
    longest: list[tuple[int, int]] = [(0, 0)] * LONGEST_SHOWN
    heapify(longest)
    number = calls = total = input_tokens = 0
    pack: list[dict[str, Any]] = []
    keys: set[int] = set()
    for number, row in enumerate(islice(as_source(rows, encoding=encoding).rows(), job.limit), 1):
        content = counter.template.content(row)
        size = counter.of_content(content)
        total += size
        heappushpop(longest, (size, -number))
        if (key := key_of(content)) in keys:
            continue
        keys.add(key)
        if not pack_size.fits(content_chars(content)):
            input_tokens += counter.of_call(pack)
            calls += 1
            pack = []
            pack_size.reset()
        pack_size.add(content_chars(content))
        pack.append(content)
    if not number:
        raise InputError("there are no rows to count")
    input_tokens += counter.of_call(pack)
    output_tokens = int(len(keys) * counter.task.answer_chars / CHARS_PER_TOKEN)
    usage = Usage(calls=calls + 1, input_tokens=input_tokens, output_tokens=output_tokens)
    return Count(
        rows=number,
        distinct=len(keys),
        tokens=total,
        longest=tuple((-place, size) for size, place in sorted(longest, reverse=True) if size),
        calls=calls + 1,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cost_usd={model: price_of(model, usage, overrides=prices or {}) for model in job.models},
        exact=count_tokens is not None or tokens.is_exact(job.models[0]),
    )


def request_tokens(call: Call, count: Callable[[str], int]) -> int:
    """Return the tokens of a request as the provider counts them: messages, their frames, and the schema."""
    messages = sum(count(message.content) + TOKENS_AROUND_A_MESSAGE for message in call.messages)
    schema = count(json.dumps(call.schema)) if call.schema else 0
    return messages + schema + TOKENS_BEFORE_A_REPLY


class RequestCounter:
    """Counts the tokens of requests about the rows of a job.

    Attributes:
        template: the template of the prompt; an empty one for a job without a prompt.
        task: instruction and schema of the packs.
    """

    def __init__(self, job: Job, count_tokens: Callable[[str], int] | None) -> None:
        self.template = read_template(job.prompt) if job.prompt else Template("", ())
        schema = None if job.schema is None else schema_of(job.schema)
        self.task = Task(self.template.instruction, schema, single=self.template.render)
        self._count = count_tokens or tokens.encoder_for(job.models[0]).count
        self._settings = MapSettings(model=job.models[0])

    def of_content(self, content: Mapping[str, Any]) -> int:
        """Return the tokens of the content of one row alone."""
        return self._count(json.dumps(content, ensure_ascii=False, default=str))

    def of_call(self, contents: Sequence[Mapping[str, Any]]) -> int:
        """Return the tokens of one call about these rows."""
        return request_tokens(pack_call(self.task, contents, self._settings, PlainModels()), self._count)
