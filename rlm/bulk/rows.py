"""`map_rows`: the same question about every row of a file or a list, packed into few calls.

    report = map_rows("in.csv", "Label {{text}}", schema="label: 'spam'|'ham', score: float", output="out.csv").report

The output has every row of the input, in order, with the new columns; rows without an answer have nothing in them,
and are in `out.csv.failed.jsonl` with the reason. The answers are in `out.csv.journal` as they come: after an
interruption, `resume=True` goes on from there. `amap_rows` is the same for callers with an event loop.
"""

from __future__ import annotations

import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

import anyio
import anyio.to_thread

from rlm.bulk.checkpoint import read_job
from rlm.bulk.formats import Row, Source, as_source
from rlm.bulk.jobs import AskPacks, Job, run_job
from rlm.clients.openai import AsyncOpenAIClient
from rlm.errors import InputError, SettingsError
from rlm.portal import lease
from rlm.prices import Price, has_price_list
from rlm.prices import price as price_of
from rlm.scheduler.budget import Budget
from rlm.scheduler.scheduler import Scheduler
from rlm.schemas import SchemaSource, schema_of
from rlm.settings import SchedulerSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence

    from rlm.bulk.report import Estimate, Progress, Report
    from rlm.clients.base import Client

__all__ = ["MappedRows", "amap_rows", "aretry_rows", "map_rows", "retry_rows"]

P = ParamSpec("P")
T = TypeVar("T")

DEAD_LETTERS_END = ".failed.jsonl"


@dataclass(frozen=True, slots=True)
class MappedRows:
    """What came of a job: its report, and its rows where no output was named for them."""

    report: Report
    rows: Sequence[Row] = ()

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


async def amap_rows(
    rows: Any,
    prompt: str,
    *,
    schema: SchemaSource | None = None,
    output: str | Path | None = None,
    model: str | Sequence[str] = "gpt-5-nano",
    samples: int = 1,
    rows_per_call: int | Literal["auto"] = "auto",
    max_concurrency: int = 50,
    temperature: float | None = None,
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
    client: Client | None = None,
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
        prompt: a template with `{{field}}`s; without any, the whole row is asked about.
        schema: what an answer looks like; an object becomes a column per property. Without one, answers are text.
        output: the file to write; its name says the format. Without one, the rows are in the result.
        model: the model; several give as many opinions, and the column `agreement`.
        samples: how often each model is asked; more than once needs a temperature above 0.
        rows_per_call: rows in one call, or "auto" for as many as their length suggests.
        max_concurrency: calls at once.
        temperature: passed to the models.
        max_output_tokens: output cap of each call, in tokens.
        window_chars: the longest prompt, in characters.
        column: the column of an answer that is no object.
        limit: only the first rows.
        pilot: ask so many rows first, and let `confirm` decide on an estimate of the rest.
        confirm: called in a thread; False ends the job with `JobStopped`.
        skip_when: an expression such as `len(text) < 3`; rows for which it is true are not asked.
        rule: answers obvious rows without a model: gives the answer, or None for a row that is to be asked. The
            same row must always get the same answer.
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
        JobStopped: a limit, or a failure that concerns every row; the answers so far are in the journal.
        JournalError: the journal cannot be used, or the disk is full.
    """
    job = Job(
        prompt=prompt,
        schema=None if schema is None else dict(schema_of(schema).json),
        models=(model,) if isinstance(model, str) else tuple(model),
        samples=samples,
        rows_per_call=rows_per_call,
        max_concurrency=max_concurrency,
        temperature=temperature,
        max_output_tokens=max_output_tokens,
        window_chars=window_chars,
        column=column,
        limit=limit,
        pilot=pilot,
        skip_when=skip_when,
        output=None if output is None else str(output),
        checkpoint=None if checkpoint is None else str(checkpoint),
        overwrite=overwrite,
        resume=resume,
    )
    source = as_source(rows, encoding=encoding)
    settings = scheduler or SchedulerSettings(max_concurrent=max_concurrency)
    if samples > 1 and settings.cache != "off":
        raise SettingsError(
            f"samples={samples} asks the same again, and cache={settings.cache!r} would answer it with the first sample"
        )
    async with _client(client, job, base_url, api_key) as asked:
        shared = await _scheduler(asked, settings, prices, ask_packs)
        return await _run(
            job,
            source,
            shared,
            _budget(budget),
            rule=rule,
            confirm=confirm,
            on_progress=on_progress,
            ask_packs=ask_packs,
        )


async def aretry_rows(
    dead_letters: str | Path,
    *,
    rule: Callable[[Row], Any] | None = None,
    budget: Budget | float | None = None,
    prices: Mapping[str, Price] | None = None,
    client: Client | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    scheduler: SchedulerSettings | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    ask_packs: AskPacks | None = None,
) -> MappedRows:
    """Ask the failed rows of an earlier job again, and write its output anew; all else is as the job was.

    Raises:
        InputError: the file is not the dead letters of a job over a file.
        JobStopped: as `amap_rows`.
    """
    path = Path(dead_letters)
    if not path.name.endswith(DEAD_LETTERS_END):
        raise InputError(f"{path} is not named like the failed rows of a job: OUTPUT{DEAD_LETTERS_END}")
    output = path.with_name(path.name.removesuffix(DEAD_LETTERS_END))
    journal = output.with_name(f"{output.name}.journal")
    record = read_job(journal)
    if "input" not in record.options:
        raise InputError(
            f"{journal}: the rows of this job came from a program: run that again with resume=True"
        )
    names = {field.name for field in fields(Job)}
    options = {name: value for name, value in record.options.items() if name in names}
    job = Job(
        **{
            **options,
            "models": tuple(options["models"]),
            "schema": record.task["schema"],
            "output": str(output),
            "checkpoint": str(journal),
            "pilot": 0,
            "retry": True,
        }
    )
    source = as_source(record.options["input"], encoding=record.options["encoding"])
    settings = scheduler or SchedulerSettings(max_concurrent=job.max_concurrency)
    async with _client(client, job, base_url, api_key) as asked:
        shared = await _scheduler(asked, settings, prices, ask_packs)
        return await _run(
            job, source, shared, _budget(budget), rule=rule, on_progress=on_progress, ask_packs=ask_packs
        )


def _blocking(function: Callable[P, Awaitable[T]]) -> Callable[P, T]:
    @wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> T:
        with lease() as portal:
            return portal.call(partial(function, *arguments, **options))

    return call


map_rows = _blocking(amap_rows)
retry_rows = _blocking(aretry_rows)


async def _run(
    job: Job,
    source: Source,
    scheduler: Scheduler,
    budget: Budget | None,
    *,
    rule: Callable[[Row], Any] | None,
    on_progress: Callable[[Progress], None] | None,
    confirm: Callable[[Estimate], bool] | None = None,
    ask_packs: AskPacks | None = None,
) -> MappedRows:
    tree = scheduler.tree(run_id="bulk", budget=budget, models=job.models)
    kept: list[Row] = []
    try:
        with tempfile.TemporaryDirectory(prefix="rlm-bulk-") as scratch:
            report = await run_job(
                job,
                source,
                tree,
                journal=job.journal or Path(scratch) / "journal",
                rule=rule,
                confirm=confirm,
                on_progress=on_progress,
                keep_row=kept.append if job.output is None else None,
                ask_packs=ask_packs,
            )
    finally:
        if scheduler.cache is not None:
            with anyio.CancelScope(shield=True):
                await scheduler.cache.aclose()
    return MappedRows(report, kept)


@asynccontextmanager
async def _client(
    client: Client | None, job: Job, base_url: str | None, api_key: str | None
) -> AsyncIterator[Client]:
    """The caller's client, or one of our own, which is closed."""
    if client is not None:
        yield client
        return
    async with AsyncOpenAIClient(job.models[0], base_url=base_url, api_key=api_key) as own:
        yield own


async def _scheduler(
    client: Client,
    settings: SchedulerSettings,
    prices: Mapping[str, Price] | None,
    ask_packs: AskPacks | None,
) -> Scheduler:
    await anyio.to_thread.run_sync(has_price_list)  # loading it takes half a second
    factor = 1.0 if ask_packs is None else getattr(ask_packs, "price_factor", 1.0)
    price = partial(
        price_of, overrides=prices or {}, endpoint=getattr(client, "endpoint", None), factor=factor
    )
    return Scheduler(client, settings, price=price)


def _budget(budget: Budget | float | None) -> Budget | None:
    return budget if budget is None or isinstance(budget, Budget) else Budget(dollars=budget)
