"""`JobGroup`: several jobs over rows at once, with one concurrency limit, budget, cache and connection pool.

    async with JobGroup(budget=5.0) as jobs, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(jobs.amap_rows, "a.csv", "Label {{text}}", output="a-out.csv"))
        tasks.start_soon(partial(jobs.amap_rows, "b.csv", "Rate {{text}}", output="b-out.csv"))

    with JobGroup(max_concurrent=20) as jobs:
        jobs.map_rows("a.csv", "Label {{text}}", output="a-out.csv")

When the budget is used up, all jobs of the group stop, with the answers they have paid for in their journals. A single
job, as `rlm.bulk.map_rows` runs it, is a group of one.

Equal calls of jobs at the same time are each made, so that a limit or the end of one job does not fail another. With
`SchedulerSettings(cache="on")`, a call that equals a finished one is not made again.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, Unpack, cast

import anyio
import anyio.to_thread

from rlm._async import preload
from rlm._async.closing import RunningWork
from rlm._async.groups import ungrouped
from rlm._async.portal import lease, leave_to_parent
from rlm.bulk.checkpoint import read_job
from rlm.bulk.engine import run_job
from rlm.bulk.io.formats import FileSource, as_source
from rlm.bulk.options import JobControls, JobOptions, RetryOptions, controls_of, job_of, refuse_unknown
from rlm.bulk.streaming import ROWS_AHEAD, FinishedRow, OnRow, RowStream
from rlm.clients.base import check_reachable
from rlm.clients.function import as_client
from rlm.clients.openai import AsyncOpenAIClient
from rlm.errors import InputError, JobStopped, SettingsError
from rlm.metering.prices import Price, load_price_list
from rlm.metering.prices import price as price_of
from rlm.scheduler.budget import Budget
from rlm.scheduler.ledger import Ledger
from rlm.scheduler.scheduler import Scheduler
from rlm.settings import SchedulerSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
    from types import TracebackType

    from rlm._async.portal import Portal
    from rlm.bulk.io.rows import Row, Source
    from rlm.bulk.job import Job
    from rlm.bulk.report import JobReport
    from rlm.clients.base import Client
    from rlm.clients.function import ClientFunction

__all__ = ["JobGroup", "MappedRows", "failed_job"]

FAILED_SUFFIX: Final = ".failed.jsonl"


@dataclass(frozen=True, slots=True)
class MappedRows:
    """Report and rows of a finished job; iterate over it for the rows.

    The rows of a job with an output are read from the file each time, a few at a time; those of CSV are text.

    Attributes:
        report: the report of the job.
        rows: the rows of a job without an output.
    """

    report: JobReport
    rows: Sequence[Row] = ()

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows.

        Raises:
            InputError: the output cannot be read any more.
        """
        output = self.report.output
        return iter(self.rows) if output is None else FileSource(output).rows()

    def __len__(self) -> int:
        return len(self.rows) if self.report.output is None else self.report.rows


class JobGroup:
    """Jobs that share a budget and a concurrency limit; a context manager, async for callers with an event loop.

    Opened with `with`, it may be used from many threads at once. An `ask_packs`, such as `BatchAPI`, shares the
    budget, and has its own connection to the provider.

    Args:
        client: asks the models, instead of one for `base_url` and `api_key`; the group does not close it.
        base_url: any OpenAI-compatible endpoint.
        api_key: its key.
        budget: dollars, or a `Budget`; never exceeded by all jobs together.
        prices: prices of models ahead of the built-in list; a budget in dollars needs one for each model.
        max_concurrent: calls in flight over all jobs, or "auto" for as many as the endpoint turns out to take.
        scheduler: all settings of the calls; it then replaces `max_concurrent`.

    Raises:
        SettingsError: a setting has a value that cannot work.
        AuthenticationFailed: there is neither a client, nor a key, nor a `base_url`.
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
        self._is_reachable = False
        self._work: RunningWork
        self._process: int
        self._running = 0
        self._all_ended = anyio.Event()
        self._all_ended.set()

    def map_rows(self, rows: Any, prompt: str, **options: Unpack[JobOptions]) -> MappedRows:
        """Run `rlm.bulk.map_rows` as a job of this group; its `budget` is a part of the group's.

        Raises:
            RuntimeError: the group is not open, or was opened with `async with`: use `amap_rows`.
            Exception: as `rlm.bulk.map_rows`.
        """
        return self._require_portal().call(partial(self._map, rows, prompt, options))

    async def amap_rows(self, rows: Any, prompt: str, **options: Unpack[JobOptions]) -> MappedRows:
        """Run `map_rows` for callers with an event loop.

        Raises:
            RuntimeError: the group is not open.
            Exception: as `rlm.bulk.amap_rows`.
        """
        job = partial(self._map, rows, prompt, options)
        return await (job() if self._portal is None else self._portal.acall(job))

    def stream_rows(self, rows: Any, prompt: str, **options: Unpack[JobOptions]) -> Iterator[FinishedRow]:
        """Run `rlm.bulk.stream_rows` as a job of this group; it starts when the first row is requested.

        Raises:
            RuntimeError: as `map_rows`.
            Exception: as `rlm.bulk.map_rows`.
        """
        portal = self._require_portal()
        free = anyio.Semaphore(ROWS_AHEAD)

        async def produce(put: Callable[[FinishedRow], None]) -> None:
            async def on_row(row: FinishedRow) -> None:
                await free.acquire()
                put(row)

            await self._map(rows, prompt, options, on_row)

        finished = cast("Generator[FinishedRow]", portal.iterate(produce))
        with closing(finished):
            for row in finished:
                portal.post(free.release)
                yield row

    @asynccontextmanager
    async def astream_rows(
        self, rows: Any, prompt: str, **options: Unpack[JobOptions]
    ) -> AsyncIterator[RowStream]:
        """Run `rlm.bulk.astream_rows` as a job of this group.

        Raises:
            RuntimeError: the group is not open, or was opened with `with`: use `stream_rows`.
            Exception: as `rlm.bulk.amap_rows`, in the loop over the rows.
        """
        if self._portal is not None:
            raise RuntimeError(
                "this group was opened with `with`: use stream_rows, or open it with `async with`"
            )

        async def job(on_row: OnRow) -> JobReport:
            return (await self._map(rows, prompt, options, on_row)).report

        # RowStream raises the job's errors, so the error of the group is the caller's.
        with closing(RowStream()) as stream, ungrouped():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.run, job)
                yield stream
                tasks.cancel_scope.cancel()

    def retry_rows(self, dead_letters: str | Path, **options: Unpack[RetryOptions]) -> MappedRows:
        """Run `rlm.bulk.retry_rows` as a job of this group.

        Raises:
            RuntimeError: as `map_rows`.
            Exception: as `rlm.bulk.retry_rows`.
        """
        return self._require_portal().call(partial(self._retry, dead_letters, options))

    async def aretry_rows(self, dead_letters: str | Path, **options: Unpack[RetryOptions]) -> MappedRows:
        """Run `retry_rows` for callers with an event loop.

        Raises:
            RuntimeError: the group is not open.
            Exception: as `rlm.bulk.aretry_rows`.
        """
        job = partial(self._retry, dead_letters, options)
        return await (job() if self._portal is None else self._portal.acall(job))

    def cost_summary(self) -> dict[str, Any]:
        """Return what all jobs have spent in this group so far, without earlier sessions of them."""
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
        assert portal is not None, "left without having been entered"  # noqa: S101 - for mypy
        with portal:
            portal.call(self.__aexit__, kind, error, traceback)

    async def __aenter__(self) -> Self:
        await anyio.to_thread.run_sync(preload.load, load_price_list)  # takes half a second
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

    def _require_portal(self) -> Portal:
        if self._portal is None:
            raise RuntimeError(
                "open the group with `with JobGroup(...) as jobs` before its jobs; "
                "a group opened with `async with` has `amap_rows`, `astream_rows` and `aretry_rows`"
            )
        return self._portal

    async def _map(
        self, rows: Any, prompt: str, options: JobOptions, on_row: OnRow | None = None
    ) -> MappedRows:
        refuse_unknown(options, JobOptions)
        job, controls = job_of(prompt, options), controls_of(options)
        return await self._run(job, as_source(rows, encoding=controls.encoding), controls, on_row)

    async def _retry(self, dead_letters: str | Path, options: RetryOptions) -> MappedRows:
        refuse_unknown(options, RetryOptions)
        job, source = failed_job(dead_letters)
        if (cap := options.get("max_output_tokens")) is not None:
            job = replace(job, max_output_tokens=cap)
        return await self._run(job, source, controls_of(options))

    async def _run(
        self, job: Job, source: Source, controls: JobControls, on_row: OnRow | None = None
    ) -> MappedRows:
        make_tree = partial(
            self._require_scheduler(job).tree,
            run_id="bulk",
            budget=_budget(controls.budget),
            models=job.stages,
            within=self._ledger,
        )
        kept: list[Row] = []
        try:
            with self._work.track(), self._counted(on_row), _journal_of(job) as journal:
                report = await run_job(
                    job,
                    source,
                    make_tree,
                    controls,
                    journal=journal,
                    keep_row=kept.append if job.output is None and on_row is None else None,
                    on_row=on_row,
                    check_reachable=None if controls.ask_packs else self._check_reachable,
                )
        except JobStopped:
            if self._ledger.is_exhausted:
                # Raised at once, this could cancel the other jobs, whose calls are paid for.
                await self._all_ended.wait()
            raise
        return MappedRows(report, kept)

    def _require_scheduler(self, job: Job) -> Scheduler:
        """Return the scheduler, if it can run this job now.

        Raises:
            RuntimeError: the group is not open, or belongs to another process.
            SettingsError: the cache would answer every sample with the first one.
        """
        if self._scheduler is None:
            raise RuntimeError(
                "this group is not open: its jobs belong into `async with JobGroup(...) as jobs`"
            )
        if os.getpid() != self._process:
            raise RuntimeError("this group belongs to the process that was forked: open another one here")
        if len(set(job.opinions)) < len(job.opinions) and self._settings.cache != "off":
            raise SettingsError(
                f"this job asks {job.models[0]} the same several times, and cache={self._settings.cache!r} would answer "
                "it with the first sample"
            )
        return self._scheduler

    async def _check_reachable(self) -> None:
        """Check the endpoint, once for all jobs."""
        if not self._is_reachable:
            await check_reachable(self._client)
            self._is_reachable = True

    @contextmanager
    def _counted(self, on_row: OnRow | None) -> Iterator[None]:
        """Count a running job, for which others may wait; not one that may wait forever for its consumer."""
        if on_row is not None:
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
    """Return the job that asks the failed rows of an earlier one again, and its rows.

    Raises:
        InputError: the file does not hold the failed rows of a job over a file.
        JournalError: the journal of that job cannot be read.
    """
    path = Path(dead_letters)
    if not path.name.endswith(FAILED_SUFFIX):
        raise InputError(f"{path} is not named like the failed rows of a job: OUTPUT{FAILED_SUFFIX}")
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; a job writes it if rows have failed")
    output = path.with_name(path.name.removesuffix(FAILED_SUFFIX))
    journal = output.with_name(f"{output.name}.journal")
    record = read_job(journal)
    if "input" not in record.options:
        raise InputError(
            f"{journal}: the rows of this job came from a program: run that again with resume=True"
        )
    source = as_source(record.options["input"], encoding=record.options["encoding"])
    return record.failed_rows_job(output, journal), source


@contextmanager
def _journal_of(job: Job) -> Iterator[Path]:
    """Yield the path of the journal, which is a temporary one for a job that names none."""
    if job.journal is not None:
        yield job.journal
        return
    with tempfile.TemporaryDirectory(prefix="rlm-bulk-") as folder:
        yield Path(folder, "journal")


def _budget(budget: Budget | float | None) -> Budget | None:
    return budget if budget is None or isinstance(budget, Budget) else Budget(dollars=budget)
