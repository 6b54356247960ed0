"""`map_rows`: the same question about every row of a file or a list, packed into few calls.

    report = map_rows("in.csv", "Label {{text}}", schema="label: 'spam'|'ham', score: float", output="out.csv").report

The output has every row of the input, in order, with the new columns; rows without an answer have nothing in them,
and are in `out.csv.failed.jsonl` with the reason. The answers are in `out.csv.journal` as they come: after an
interruption, `resume=True` goes on from there. `amap_rows` is the same for callers with an event loop; `stream_rows`
and `astream_rows` give the rows as they finish.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, Unpack

from rlm._async.portal import lease
from rlm.bulk.group import JobGroup, JobOptions, failed_job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from rlm.bulk.engine import AskPacks
    from rlm.bulk.group import MappedRows
    from rlm.bulk.io.formats import Row
    from rlm.bulk.report import Estimate, Progress
    from rlm.bulk.streaming import FinishedRow, RowStream
    from rlm.clients.base import Client
    from rlm.clients.function import ClientFunction
    from rlm.metering.prices import Price
    from rlm.scheduler.budget import Budget
    from rlm.settings import SchedulerSettings
    from rlm.structured.schema import SchemaSource

__all__ = [
    "StreamOptions",
    "amap_rows",
    "aretry_rows",
    "astream_rows",
    "map_rows",
    "retry_rows",
    "stream_rows",
]

P = ParamSpec("P")
T = TypeVar("T")


async def amap_rows(
    rows: Any,
    prompt: str,
    *,
    schema: SchemaSource | None = None,
    output: str | Path | None = None,
    model: str | Sequence[str] = "gpt-5-nano",
    samples: int = 1,
    escalate_to: str | None = None,
    escalate_when: str | None = None,
    rows_per_call: int | Literal["auto"] = "auto",
    max_concurrent: int | Literal["auto"] = "auto",
    temperature: float | Mapping[str, float] | None = None,
    max_output_tokens: int | None = None,
    window_chars: int = 400_000,
    column: str = "answer",
    limit: int | None = None,
    pilot: int = 0,
    confirm: Callable[[Estimate], bool] | None = None,
    skip_when: str | None = None,
    rule: Callable[[Row], Any] | None = None,
    budget: Budget | float | None = None,
    prices: Mapping[str, Price] | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    encoding: str = "utf-8-sig",
    client: Client | ClientFunction | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    scheduler: SchedulerSettings | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    ask_packs: AskPacks | None = None,
) -> MappedRows:
    """Ask the same of every row.

    Args:
        rows: a path (CSV, TSV, JSONL, JSON; Parquet and Excel with the extra `[tables]`), mappings, or a data frame.
            An iterator is read into memory; a file is not.
        prompt: a template with `{{field}}`s; without any, the whole row is asked about. `rlm.bulk.escape` makes any
            text safe to be a part of it.
        schema: what an answer looks like; an object becomes a column per property. Without one, answers are text.
        output: the file to write; its name says the format. Without one, the rows are in the result.
        model: the model; several give as many opinions, and the column `agreement`. One that is named twice is asked
            twice, at its one temperature, as with `samples`.
        samples: how often each model is asked; more than once needs a temperature above 0.
        escalate_to: a stronger model (a cascade), asked about the rows in doubt after all others; its answer stands,
            and the column `escalated` tells where.
        escalate_when: an expression over the columns of an answer, such as `confidence < 0.7 or agreement < 0.6`: rows
            for which it is true are in doubt. By default those on which opinions disagree are. Rows without an answer
            always are, and those for whose answer the expression does not work.
        rows_per_call: rows in one call, or "auto" for as many as their length suggests.
        max_concurrent: calls at once, or "auto" for as many as the endpoint turns out to take.
        temperature: passed to every `model`, or one for each model, by name; those without one keep their own.
        max_output_tokens: output cap of each call, in tokens.
        window_chars: the longest prompt, in characters.
        column: the column of an answer that is no object.
        limit: only the first rows.
        pilot: ask so many rows first, and let `confirm` decide on an estimate of the rest.
        confirm: called in a thread; False ends the job with `JobStopped`.
        skip_when: an expression such as `len(text) < 3`; rows for which it is true are not asked.
        rule: answers obvious rows without a model: gives the answer, or None for a row that is to be asked. The
            same row must always get the same answer. A row for which it raises fails alone.
        budget: dollars, or a `Budget`; never exceeded.
        prices: of models that the price list does not have, or has otherwise; a budget in dollars needs one.
        checkpoint: the journal of answers; by default the output with `.journal` added.
        resume: go on with the journal of an earlier session of this job.
        overwrite: replace an output that exists, and forget its journal.
        encoding: of text files.
        client: asks the models, instead of one for `base_url` and `api_key`.
        base_url: any OpenAI-compatible endpoint.
        api_key: its key.
        scheduler: all settings of the calls.
        on_progress: told how far it is, at most ten times a second.
        ask_packs: asks in another way than at once, such as `BatchAPI`.

    Raises:
        InputError: rows, prompt, schema and output do not fit together; nothing was spent.
        SettingsError: a setting has a value that cannot work.
        OutputError: the output exists or cannot be written.
        ConnectionFailed: there is nobody at the endpoint; nothing was spent or begun.
        JobStopped: a limit, or a failure that concerns every row; the answers so far are in the journal.
        JournalError: the journal cannot be used, or the disk is full.
    """
    async with JobGroup(
        client=client,
        base_url=base_url,
        api_key=api_key,
        budget=budget,
        prices=prices,
        max_concurrent=max_concurrent,
        scheduler=scheduler,
    ) as jobs:
        return await jobs.amap_rows(
            rows,
            prompt,
            schema=schema,
            output=output,
            model=model,
            samples=samples,
            escalate_to=escalate_to,
            escalate_when=escalate_when,
            rows_per_call=rows_per_call,
            max_concurrent=max_concurrent,
            temperature=temperature,
            max_output_tokens=max_output_tokens,
            window_chars=window_chars,
            column=column,
            limit=limit,
            pilot=pilot,
            confirm=confirm,
            skip_when=skip_when,
            rule=rule,
            checkpoint=checkpoint,
            resume=resume,
            overwrite=overwrite,
            encoding=encoding,
            on_progress=on_progress,
            ask_packs=ask_packs,
        )


class StreamOptions(JobOptions, total=False):
    """What may be said of a job by itself; `amap_rows` tells what each is."""

    prices: Mapping[str, Price] | None
    client: Client | ClientFunction | None
    base_url: str | None
    api_key: str | None
    scheduler: SchedulerSettings | None


def stream_rows(rows: Any, prompt: str, **options: Unpack[StreamOptions]) -> Iterator[FinishedRow]:
    """Ask the same of every row, and yield the rows as they finish, in the order in which they do.

    It starts with the first row that is asked for. At most a hundred finished rows wait to be taken; then the job
    waits, too. Leaving the loop early cancels the job; with a `checkpoint` or an `output`, what was answered is in
    the journal, and `resume=True` goes on from there. Takes what `map_rows` takes.

        for row in stream_rows("in.csv", "Label {{text}}", schema="label: str", checkpoint="labels.journal"):
            print(row.index, row.reason if row.failed else row.row["label"])

    Raises:
        Exception: as `map_rows`, after the rows that were finished before.
    """
    of_group, of_job = _parted(options)
    with JobGroup(**of_group) as jobs:
        yield from jobs.stream_rows(rows, prompt, **of_job)


@asynccontextmanager
async def astream_rows(rows: Any, prompt: str, **options: Unpack[StreamOptions]) -> AsyncIterator[RowStream]:
    """The same for callers with an event loop; a context manager, because tasks of its own need an end.

        async with astream_rows("in.csv", "Label {{text}}", schema="label: str") as finished:
            async for row in finished:
                ...

    An async generator could not be left early without leaving its tasks behind (PEP 789).

    Raises:
        Exception: as `amap_rows`, in the loop, after the rows that were finished before.
    """
    of_group, of_job = _parted(options)
    async with JobGroup(**of_group) as jobs, jobs.astream_rows(rows, prompt, **of_job) as finished:
        yield finished


async def aretry_rows(
    dead_letters: str | Path,
    *,
    max_output_tokens: int | None = None,
    rule: Callable[[Row], Any] | None = None,
    budget: Budget | float | None = None,
    prices: Mapping[str, Price] | None = None,
    client: Client | ClientFunction | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    scheduler: SchedulerSettings | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    ask_packs: AskPacks | None = None,
) -> MappedRows:
    """Ask the failed rows of an earlier job again, and write its output anew; all else is as the job was.

    `max_output_tokens`, where it is given, replaces that of the job, for answers that were cut.

    Raises:
        InputError: the file is not the dead letters of a job over a file.
        JobStopped: as `amap_rows`.
    """
    job, _ = failed_job(dead_letters)
    async with JobGroup(
        client=client,
        base_url=base_url,
        api_key=api_key,
        budget=budget,
        prices=prices,
        max_concurrent=job.max_concurrent,
        scheduler=scheduler,
    ) as jobs:
        return await jobs.aretry_rows(
            dead_letters,
            max_output_tokens=max_output_tokens,
            rule=rule,
            on_progress=on_progress,
            ask_packs=ask_packs,
        )


def _parted(options: StreamOptions) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the group, and of the job in it."""
    of_group = StreamOptions.__annotations__.keys() - JobOptions.__annotations__.keys()
    of_group |= {"budget", "max_concurrent"}
    return (
        {name: value for name, value in options.items() if name in of_group},
        {name: value for name, value in options.items() if name not in of_group or name == "max_concurrent"},
    )


def _blocking(function: Callable[P, Awaitable[T]]) -> Callable[P, T]:
    @wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> T:
        with lease() as portal:
            return portal.call(partial(function, *arguments, **options))

    return call


map_rows = _blocking(amap_rows)
retry_rows = _blocking(aretry_rows)
