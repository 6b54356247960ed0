"""`JobGroup`: several jobs over rows at once, on one gate, one budget, one cache and one pool of connections.

    async with JobGroup(budget=5.0) as jobs, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(jobs.amap_rows, "a.csv", "Label {{text}}", output="a-out.csv"))
        tasks.start_soon(partial(jobs.amap_rows, "b.csv", "Rate {{text}}", output="b-out.csv"))

    with JobGroup(max_concurrent=20) as jobs:
        jobs.map_rows("a.csv", "Label {{text}}", output="a-out.csv")

Whatever the jobs do, there are never more calls at once than the group allows, and their sum never passes its budget.
When it is used up, all jobs of the group stop, with what they have paid for in their journals. A job by itself, as
`rlm.bulk.map_rows` makes it, is a group of one.

Equal calls of jobs at once are each made, so that a limit or the end of one job is no failure of another. With
`SchedulerSettings(cache="on")`, a call that equals a finished one is not made again.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypedDict, TypeVar, Unpack, cast

import anyio
import anyio.to_thread

from rlm._async import preload
from rlm._async.closing import RunningWork
from rlm._async.portal import lease, leave_to_parent
from rlm.bulk.checkpoint import read_job
from rlm.bulk.engine import AskPacks, run_job
from rlm.bulk.io.formats import FileSource, Row, Source, as_source
from rlm.bulk.job import Job
from rlm.bulk.streaming import ROWS_AHEAD, FinishedRow, RowStream, TellRow
from rlm.clients.base import check_reachable
from rlm.clients.function import as_client
from rlm.clients.openai import AsyncOpenAIClient
from rlm.errors import InputError, JobStopped, SettingsError
from rlm.metering.prices import Price, load_price_list
from rlm.metering.prices import price as price_of
from rlm.scheduler.budget import Budget, Ledger
from rlm.scheduler.scheduler import Scheduler
from rlm.settings import SchedulerSettings
from rlm.structured.schema import SchemaSource, schema_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
    from types import TracebackType

    from rlm._async.portal import Portal
    from rlm.bulk.report import Estimate, Progress, Report
    from rlm.clients.base import Client
    from rlm.clients.function import ClientFunction

__all__ = ["JobGroup", "JobOptions", "MappedRows", "RetryOptions", "failed_job"]

T = TypeVar("T")

DEAD_LETTERS_END: Final = ".failed.jsonl"
NOT_OF_THE_JOB: Final = frozenset({"ask_packs", "budget", "confirm", "encoding", "on_progress", "rule"})
"""Options that say how a job is run, and not what it is."""


@dataclass(frozen=True, slots=True)
class MappedRows:
    """What came of a job: its report, and, to iterate over, its rows.

    Where an output was named, they are read from it, each time anew, a few at a time; those of CSV are text.

    Attributes:
        report: how the job ended.
        rows: the rows, where no output was named.
    """

    report: Report
    rows: Sequence[Row] = ()

    def __iter__(self) -> Iterator[Row]:
        """The rows.

        Raises:
            InputError: the output cannot be read any more.
        """
        output = self.report.output
        return iter(self.rows) if output is None else FileSource(output).rows()

    def __len__(self) -> int:
        return len(self.rows) if self.report.output is None else self.report.rows


class RetryOptions(TypedDict, total=False):
    """What may be said of any job of a group; `rlm.bulk.amap_rows` tells what each is."""

    rule: Callable[[Row], Any] | None
    budget: Budget | float | None
    max_output_tokens: int | None
    on_progress: Callable[[Progress], None] | None
    ask_packs: AskPacks | None


class JobOptions(RetryOptions, total=False):
    """What may be said of a job over rows; `rlm.bulk.amap_rows` tells what each is."""

    schema: SchemaSource | None
    output: str | Path | None
    model: str | Sequence[str]
    samples: int
    escalate_to: str | None
    escalate_when: str | None
    rows_per_call: int | Literal["auto"]
    max_concurrent: int | Literal["auto"]
    temperature: float | Mapping[str, float] | None
    window_chars: int
    column: str
    limit: int | None
    pilot: int
    confirm: Callable[[Estimate], bool] | None
    skip_when: str | None
    checkpoint: str | Path | None
    resume: bool
    overwrite: bool
    encoding: str


class JobGroup:
    """Jobs that share everything they spend; a context manager, with `async with` for callers with an event loop.

    Opened with `with`, it may be used from many threads at once. An `ask_packs`, such as `BatchAPI`, shares the
    budget, and has its own way to the provider.

    Args:
        client: asks the models, instead of one for `base_url` and `api_key`; it is left open.
        base_url: any OpenAI-compatible endpoint.
        api_key: its key.
        budget: dollars, or a `Budget`; never exceeded by all jobs together.
        prices: of models that the price list does not have, or has otherwise; a budget in dollars needs one.
        max_concurrent: calls at once over all jobs, or "auto" for as many as the endpoint turns out to take.
        scheduler: all settings of the calls; it then replaces `max_concurrent`.

    Raises:
        SettingsError: a setting has a value that cannot work.
        AuthenticationFailed: there is neither a client, nor a key, nor an endpoint of one's own.
    """

    def __init__(
        self,
        *,
        client: Client | ClientFunction | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        budget: Budget | float | None = None,
        prices: Mapping[str, Price] | None = None,
        max_concurrent: int | Literal["auto"] = "auto",
        scheduler: SchedulerSettings | None = None,
    ) -> None:
        self._own_client = None
        if client is None:
            client = self._own_client = AsyncOpenAIClient(base_url=base_url, api_key=api_key)
        self._client = as_client(client)
        self._ledger = Ledger(_budget(budget))
        self._prices = dict(prices or {})
        self._settings = scheduler or SchedulerSettings(max_concurrent=max_concurrent)
        self._scheduler: Scheduler | None = None
        self._portal: Portal | None = None
        self._is_there = False
        self._work: RunningWork
        self._process: int
        self._running = 0
        self._all_ended = anyio.Event()
        self._all_ended.set()

    def map_rows(self, rows: Any, prompt: str, **options: Unpack[JobOptions]) -> MappedRows:
        """`rlm.bulk.map_rows` as a job of this group; its `budget` is a part of the group's.

        Raises:
            RuntimeError: the group is not open, or was opened with `async with`: use `amap_rows`.
            Exception: as `rlm.bulk.map_rows`.
        """
        return self._blocking(partial(self.amap_rows, rows, prompt, **options))

    async def amap_rows(self, rows: Any, prompt: str, **options: Unpack[JobOptions]) -> MappedRows:
        """The same for callers with an event loop.

        Raises:
            RuntimeError: the group is not open.
            Exception: as `rlm.bulk.amap_rows`.
        """
        return await self._on_own_loop(partial(self._map, rows, prompt, options))

    def stream_rows(self, rows: Any, prompt: str, **options: Unpack[JobOptions]) -> Iterator[FinishedRow]:
        """`rlm.bulk.stream_rows` as a job of this group; it starts with the first row that is asked for.

        Raises:
            RuntimeError: as `map_rows`.
            Exception: as `rlm.bulk.map_rows`.
        """
        portal = self._require_portal()
        room = anyio.Semaphore(ROWS_AHEAD)

        async def produce(put: Callable[[FinishedRow], None]) -> None:
            async def tell(row: FinishedRow) -> None:
                await room.acquire()
                put(row)

            await self._map(rows, prompt, options, tell_row=tell)

        finished = cast("Generator[FinishedRow]", portal.iterate(produce))
        with closing(finished):
            for row in finished:
                portal.post(room.release)
                yield row

    @asynccontextmanager
    async def astream_rows(
        self, rows: Any, prompt: str, **options: Unpack[JobOptions]
    ) -> AsyncIterator[RowStream]:
        """`rlm.bulk.astream_rows` as a job of this group.

        Raises:
            RuntimeError: the group is not open, or was opened with `with`: use `stream_rows`.
            Exception: as `rlm.bulk.amap_rows`, in the loop over the rows.
        """
        if self._portal is not None:
            raise RuntimeError(
                "this group was opened with `with`: use stream_rows, or open it with `async with`"
            )

        async def job(tell_row: TellRow) -> Report:
            return (await self._map(rows, prompt, options, tell_row=tell_row)).report

        with closing(RowStream()) as stream:
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(stream.run, job)
                    yield stream
                    tasks.cancel_scope.cancel()
            except BaseExceptionGroup as errors:
                error = errors.exceptions[0]  # the job fails in the loop: this is the caller's own
                raise error from error.__cause__

    def retry_rows(self, dead_letters: str | Path, **options: Unpack[RetryOptions]) -> MappedRows:
        """`rlm.bulk.retry_rows` as a job of this group.

        Raises:
            RuntimeError: as `map_rows`.
            Exception: as `rlm.bulk.retry_rows`.
        """
        return self._blocking(partial(self.aretry_rows, dead_letters, **options))

    async def aretry_rows(self, dead_letters: str | Path, **options: Unpack[RetryOptions]) -> MappedRows:
        """The same for callers with an event loop.

        Raises:
            RuntimeError: the group is not open.
            Exception: as `rlm.bulk.aretry_rows`.
        """
        return await self._on_own_loop(partial(self._retry, dead_letters, options))

    def cost_summary(self) -> dict[str, Any]:
        """What all jobs have spent so far, as a plain dict; without what earlier sessions of them did."""
        return self._ledger.cost_summary()

    def __enter__(self) -> Self:
        self._portal = lease()
        try:
            self._portal.call(self.__aenter__)
        except BaseException:
            self._portal.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        portal, self._portal = self._portal, None
        assert portal is not None, "left without having been entered"  # noqa: S101 - tells mypy
        with portal:
            portal.call(self.__aexit__, kind, error, traceback)

    async def __aenter__(self) -> Self:
        await anyio.to_thread.run_sync(preload.load, load_price_list)  # which takes half a second
        endpoint = getattr(self._client, "endpoint", None)
        price = partial(price_of, overrides=self._prices, endpoint=endpoint)
        self._scheduler = Scheduler(self._client, self._settings, price=price)
        self._work = RunningWork("this group", RuntimeError)
        self._process = os.getpid()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        scheduler, self._scheduler = self._scheduler, None
        if os.getpid() != self._process:
            leave_to_parent(scheduler, self._own_client)
            return
        with anyio.CancelScope(shield=True):
            await self._work.end()
            if scheduler is not None and scheduler.cache is not None:
                await scheduler.cache.aclose()
            if self._own_client is not None:
                await self._own_client.aclose()

    def _blocking(self, function: Callable[[], Awaitable[T]]) -> T:
        return self._require_portal().call(function)

    def _require_portal(self) -> Portal:
        if self._portal is None:
            raise RuntimeError(
                "open the group with `with JobGroup(...) as jobs` before its jobs; "
                "one that was opened with `async with` has `amap_rows` and its like"
            )
        return self._portal

    async def _on_own_loop(self, function: Callable[[], Awaitable[T]]) -> T:
        if self._portal is not None:
            return await self._portal.acall(function)
        return await function()

    async def _map(
        self, rows: Any, prompt: str, options: JobOptions, *, tell_row: TellRow | None = None
    ) -> MappedRows:
        job = _job(prompt, options)
        source = as_source(rows, encoding=options.get("encoding", "utf-8-sig"))
        return await self._run(job, source, options, confirm=options.get("confirm"), tell_row=tell_row)

    async def _retry(self, dead_letters: str | Path, options: RetryOptions) -> MappedRows:
        job, source = failed_job(dead_letters)
        if (cap := options.get("max_output_tokens")) is not None:
            job = replace(job, max_output_tokens=cap)
        return await self._run(job, source, options)

    async def _run(
        self,
        job: Job,
        source: Source,
        options: RetryOptions,
        *,
        confirm: Callable[[Estimate], bool] | None = None,
        tell_row: TellRow | None = None,
    ) -> MappedRows:
        if self._scheduler is None:
            raise RuntimeError(
                "this group is not open: its jobs belong into `async with JobGroup(...) as jobs`"
            )
        if os.getpid() != self._process:
            raise RuntimeError("this group was opened by another process: open one in this one")
        if len(set(job.opinions)) < len(job.opinions) and self._settings.cache != "off":
            raise SettingsError(
                f"this job asks {job.models[0]} the same several times, and cache={self._settings.cache!r} would answer "
                "it with the first sample"
            )
        plant = partial(
            self._scheduler.tree,
            run_id="bulk",
            budget=_budget(options.get("budget")),
            models=job.stages,
            within=self._ledger,
        )
        kept: list[Row] = []
        try:
            with self._work.track(), self._one_more_job(tell_row), _journal_of(job) as journal:
                report = await run_job(
                    job,
                    source,
                    plant,
                    journal=journal,
                    rule=options.get("rule"),
                    confirm=confirm,
                    on_progress=options.get("on_progress"),
                    keep_row=kept.append if job.output is None and tell_row is None else None,
                    tell_row=tell_row,
                    ask_packs=options.get("ask_packs"),
                    check_reachable=None if options.get("ask_packs") else self._check_reachable,
                )
        except JobStopped:
            if self._ledger.is_exhausted:
                # Raised at once, it may cancel the others, whose calls are paid for.
                await self._all_ended.wait()
            raise
        return MappedRows(report, kept)

    async def _check_reachable(self) -> None:
        """Once for all jobs."""
        if not self._is_there:
            await check_reachable(self._client)
            self._is_there = True

    @contextmanager
    def _one_more_job(self, tell_row: TellRow | None) -> Iterator[None]:
        """A job that others may wait for, unless it waits itself for whoever takes its rows."""
        if tell_row is not None:
            yield
            return
        if not self._running:
            self._all_ended = anyio.Event()
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._all_ended.set()


def failed_job(dead_letters: str | Path) -> tuple[Job, Source]:
    """The job that asks the failed rows of an earlier one again, and its rows.

    Raises:
        InputError: the file is not the dead letters of a job over a file.
        JournalError: the journal of that job cannot be read.
    """
    path = Path(dead_letters)
    if not path.name.endswith(DEAD_LETTERS_END):
        raise InputError(f"{path} is not named like the failed rows of a job: OUTPUT{DEAD_LETTERS_END}")
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; a job writes it where rows have failed")
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
    return job, as_source(record.options["input"], encoding=record.options["encoding"])


@contextmanager
def _journal_of(job: Job) -> Iterator[Path]:
    """Where its answers are kept; for a job that names no place, until it ends."""
    if job.journal is not None:
        yield job.journal
        return
    with tempfile.TemporaryDirectory(prefix="rlm-bulk-") as folder:
        yield Path(folder, "journal")


def _job(prompt: str, options: JobOptions) -> Job:
    """The job that was asked for.

    Raises:
        SettingsError: an option has a value that cannot work.
        SchemaError: the schema is not understood.
        TypeError: there is no such option.
    """
    own: dict[str, Any] = {name: value for name, value in options.items() if name not in NOT_OF_THE_JOB}
    model, schema = own.pop("model", None), own.pop("schema", None)
    if model is not None:
        own["models"] = (model,) if isinstance(model, str) else tuple(model)
    for name in ("output", "checkpoint"):
        if own.get(name) is not None:
            own[name] = str(own[name])
    if isinstance(temperatures := own.get("temperature"), Mapping):
        own["temperature"] = dict(temperatures)
    return Job(prompt=prompt, schema=None if schema is None else dict(schema_of(schema).json), **own)


def _budget(budget: Budget | float | None) -> Budget | None:
    return budget if budget is None or isinstance(budget, Budget) else Budget(dollars=budget)
