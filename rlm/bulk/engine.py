"""A job over rows, from reading them to the finished output.

    survey   every row is read once before anything is spent: broken lines, missing fields, the number of rows
    pilot    the first rows are asked; an estimate of the whole job is shown, and may be declined
    ask      rows → packs → calls; each answer is in the journal before its worker makes another call
    escalate rows without an answer, or with one in doubt, go to a stronger model, if the job names one
    write    the rows are read again and written with their results, in order, while others are still asked

An interruption at any moment loses at most the calls in flight. The answers are in the journal, by the content they are
about, so a resumed job asks only the rest, and writes everything.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread

from rlm._async.groups import ungrouped
from rlm.bulk.answers import AnswerResolver
from rlm.bulk.asking import ask_at_once
from rlm.bulk.checkpoint import Checkpoint, forget
from rlm.bulk.io.formats import FileSource
from rlm.bulk.job import JobRecord
from rlm.bulk.output import BackgroundWriter, OutputWriter, RowResult, check_output
from rlm.bulk.progress import ProgressReporter, SessionCounts
from rlm.bulk.report import JobEstimate, JobReport
from rlm.bulk.streaming import OnRow, RowJoiner
from rlm.bulk.survey import RowPlanner, SkippedByRule, Survey
from rlm.errors import (
    AuthenticationFailed,
    CallError,
    CircuitOpen,
    InputError,
    JobStopped,
    LimitReached,
    QuotaExhausted,
    UnknownModel,
)
from rlm.structured.leftovers import Item, Settled
from rlm.structured.map import MapSettings, fill_packs
from rlm.wording import counted

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator

    from rlm.bulk.asking import TreeFactory
    from rlm.bulk.io.rows import Row, Source
    from rlm.bulk.job import Job, PerCall
    from rlm.bulk.options import JobControls

__all__ = ["run_job"]

ROWS_AT_ONCE: Final = 500
CHARS_AT_ONCE: Final = 4_000_000
SYNC_SECONDS: Final = 1.0
CACHED_KEYS: Final = 200_000
"""Rows between the reader and the writer whose keys are kept instead of computed again."""
STOPS: Final = (AuthenticationFailed, CircuitOpen, QuotaExhausted, UnknownModel)
"""Failures that concern every row, and so end the job."""


async def run_job(
    job: Job,
    source: Source,
    make_tree: TreeFactory,
    controls: JobControls,
    *,
    journal: Path,
    keep_row: Callable[[Row], None] | None = None,
    on_row: OnRow | None = None,
    check_reachable: Callable[[], Awaitable[None]] | None = None,
) -> JobReport:
    """Run one session of a job to its end.

    Args:
        job: the prompt, the models and the files.
        source: the rows; they are read more than once.
        make_tree: makes the scheduler's tree, with the budget of the job.
        controls: functions of the caller.
        journal: the checkpoint.
        keep_row: called with each finished row, in order.
        on_row: called with each row as it finishes.
        check_reachable: called after all other checks and before the first call; its errors are raised.

    Raises:
        InputError: rows, prompt, schema and output do not fit together; nothing was spent. Or the input has changed
            while the job ran; the answers are in the journal.
        OutputError: the output exists, or cannot be written; the answers are in the journal.
        JobStopped: a limit, or a failure that concerns every row; the answers so far are in the journal.
        JournalError: the journal cannot be used, or the disk is full.
    """
    running = _RunningJob(job, source, make_tree, controls, on_row)
    check_output(job, source)
    stamp = _stamp(source)
    survey = await anyio.to_thread.run_sync(running.survey)
    record = _record(job, source)
    if check_reachable is not None:
        await check_reachable()
    if job.overwrite and not (job.resume or job.retry):
        forget(journal)
    with Checkpoint(journal, record, resume=job.resume or job.retry, retry=job.retry) as checkpoint:
        running.checkpoint = checkpoint
        columns = (*survey.fields, *running.resolver.columns)
        with OutputWriter(
            running.rows(), running.result_of, columns=columns, job=job, keep_row=keep_row
        ) as writer:
            await running.ask(survey, BackgroundWriter(writer))
            if _stamp(source) != stamp:
                raise InputError(
                    f"{source.name} has changed while the job ran, so its rows and answers may not belong together; "
                    "the answers are kept: resume"
                )
            await anyio.to_thread.run_sync(writer.finish)
            if writer.dead_letters is not None:
                checkpoint.keep()
            return running.report(writer)


class _RunningJob:
    """One session of a job."""

    def __init__(
        self, job: Job, source: Source, make_tree: TreeFactory, controls: JobControls, on_row: OnRow | None
    ) -> None:
        self.checkpoint: Checkpoint
        self.resolver = AnswerResolver(job)
        self._job = job
        self._source = source
        self._confirm = controls.confirm
        self._ask_packs = controls.ask_packs or ask_at_once
        self._planner = RowPlanner(job, controls.rule)
        self._joiner = None if on_row is None else RowJoiner(on_row, self._result_of_key)
        self._stages = job.stages
        self._opinions = len(job.opinions)
        self._counts = SessionCounts()
        self._progress = ProgressReporter(self._counts, controls.on_progress)
        self._tree = make_tree(emit=self._progress.listen)
        self._progress.ledger, self._progress.in_flight_limit = self._tree.ledger, self._current_limit
        self._writer: BackgroundWriter
        self._keys: dict[int, int] = {}
        self._started_at = time.monotonic()
        self._synced_at = anyio.current_time()

    def rows(self) -> Iterator[Row]:
        """Return the rows of the job from the start."""
        return islice(self._source.rows(), self._job.limit)

    def survey(self) -> Survey:
        """Read every row once; blocks."""
        survey = self._planner.survey(self.rows(), self._source.name)
        self.resolver.check(survey.fields, self._source.name)
        return survey

    async def ask(self, survey: Survey, writer: BackgroundWriter) -> None:
        """Ask about every row that has no answer yet, those of the pilot first, while `writer` writes."""
        self._writer = writer
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(writer.run)
            try:
                await self._ask_all(survey)
            except Exception as error:  # noqa: BLE001 - raised below, outside of the task group
                failure = error
            tasks.cancel_scope.cancel()
        await self._sync()
        self._progress.report(at_once=True)
        failure = failure or writer.failure
        if failure is None and not self.checkpoint.resumed:
            failure = self._counts.unreached()
        if isinstance(failure, (LimitReached, CallError)):
            raise JobStopped(f"stopped: {failure}; {self._how_to_go_on()}", cause=failure) from failure
        if failure is not None:
            raise failure

    def result_of(self, number: int, row: Row, is_final: bool) -> RowResult | None:
        """Return the result of a row, or None while it is open and `is_final` is False."""
        key = self._keys.get(number)
        if key is None:
            plan = self._planner.plan(row)
            if isinstance(plan, SkippedByRule):
                return self.resolver.of_rule(plan.mapped)
            key = plan.key
        result = self.resolver.of_models(key, self.checkpoint.mapped, is_final=is_final)
        if result is not None:
            self._keys.pop(number, None)
        return result

    def report(self, writer: OutputWriter) -> JobReport:
        """Return the report of the finished job."""
        tally, ledger, earlier_usd = writer.tally, self._tree.ledger, self.checkpoint.cost_usd
        cost_usd = ledger.cost_usd
        return JobReport(
            rows=tally.rows,
            answered=tally.rows - tally.failed,
            by_rule=tally.by_rule,
            failed=tally.failed,
            failures=dict(tally.failures.most_common()),
            asked=self._counts.settled,
            resumed=self.checkpoint.resumed,
            stored=ledger.cost_summary()["stored_replies"],
            usage=self.checkpoint.usage + ledger.usage,
            cost_usd=None if cost_usd is None or earlier_usd is None else cost_usd + earlier_usd,
            seconds=time.monotonic() - self._started_at,
            labels=tally.labels.table(),
            agreement=tally.agreement,
            in_doubt=tally.in_doubt,
            unjudged=tally.unjudged,
            problem=tally.problem,
            output=None if self._job.output is None else Path(self._job.output),
            dead_letters=writer.dead_letters,
            journal=self.checkpoint.path,
        )

    # Asking ----------------------------------------------------------------------------------------------------

    async def _ask_all(self, survey: Survey) -> None:
        if 0 < self._job.pilot < survey.rows:
            self._progress.total = self._job.pilot * self._opinions
            await self._ask_rows(self._job.pilot)
            await self._confirm_rest(survey)
        self._progress.total = survey.rows * self._opinions
        await self._ask_rows(self._job.limit)
        await self._emit_rest()

    async def _ask_rows(self, limit: int | None) -> None:
        self._counts.start_pass()
        opinions = range(self._opinions)
        if self._ask_packs is ask_at_once:
            for stage in opinions:
                await self._ask_stage(stage, limit)
        else:
            await self._ask_concurrently(opinions, limit)
        for stage in range(self._opinions, len(self._stages)):
            await self._ask_stage(stage, limit)

    async def _ask_concurrently(self, stages: Iterable[int], limit: int | None) -> None:
        """Ask stages that may take a day each. When one stops, the others finish: their batches may be paid for."""
        stops: list[JobStopped | LimitReached] = []

        async def ask(stage: int) -> None:
            try:
                await self._ask_stage(stage, limit)
            except (JobStopped, LimitReached) as stop:
                stops.append(stop)

        with ungrouped():
            async with anyio.create_task_group() as tasks:
                for stage in stages:
                    tasks.start_soon(ask, stage)
        if stops:
            raise stops[-1]

    async def _ask_stage(self, stage: int, limit: int | None) -> None:
        """Ask for one opinion or escalation, in as many passes over the rows as `ask_packs` wants."""
        job, model, task = self._job, self._stages[stage], self._planner.task
        per_call: PerCall | None = job.rows_per_call
        is_first = True

        async def record(settled: Settled) -> None:
            await self._record(stage, settled)

        while per_call is not None:
            settings = MapSettings(
                model=model,
                per_call=per_call,
                max_concurrent=self._most_concurrent(),
                window_chars=job.window_chars,
                max_output_tokens=job.max_output_tokens,
                temperature=job.temperature_of(model),
                stops_at=STOPS,
            )
            async with (
                aclosing(self._items(stage, limit, is_first=is_first)) as items,
                aclosing(fill_packs(items, settings.pack_budget(task))) as packs,
            ):
                per_call = await self._ask_packs(
                    self._tree, packs, task, record, settings, checkpoint=self.checkpoint, stage=stage
                )
            is_first = False

    async def _items(
        self, stage: int, limit: int | None, *, is_first: bool
    ) -> AsyncGenerator[list[Item], None]:
        """Yield the items to ask in this stage; a thread reads a few hundred rows at a time.

        Rows count for the progress in the first pass only; rows in doubt then add to its total.
        """
        is_opinion = stage < self._opinions
        is_free, adds_to_total = is_opinion and is_first, not is_opinion and is_first
        joiner = self._joiner if stage >= self._opinions - 1 else None
        if joiner is not None:
            joiner.restart()
        rows = islice(self._source.rows(), limit)
        number = 0
        while chunk := await anyio.to_thread.run_sync(_next_rows, rows):
            items = []
            for number, row in enumerate(chunk, number + 1):  # noqa: B020 - goes on where the last chunk ended
                plan = self._planner.plan(row)
                if isinstance(plan, SkippedByRule):
                    self._counts.free += is_free
                    if joiner is not None:
                        await joiner.emit(number, row, self.resolver.of_rule(plan.mapped))
                    continue
                if len(self._keys) < CACHED_KEYS:
                    self._keys[number] = plan.key
                if self._needs(stage, plan.key) and self.checkpoint.claim(stage, plan.key):
                    items.append(Item(plan.key, plan.content))
                    self._progress.total += adds_to_total
                else:
                    self._counts.free += is_free
                if joiner is not None:
                    await joiner.add(number, row, plan.key)
            yield items

    def _needs(self, stage: int, key: int) -> bool:
        return stage < self._opinions or self.resolver.is_in_doubt(key, self.checkpoint.mapped)

    async def _record(self, stage: int, settled: Settled) -> None:
        """Write the answers of a call to the journal, count them, and emit the rows that they finish."""
        pairs = [(item.key, mapped) for item, mapped in settled.items]
        self.checkpoint.record(stage, pairs, settled.reply)
        if stage < self._opinions:
            self._counts.add(pairs, settled.reply)
        else:
            mapped_at = self.checkpoint.mapped
            rescued = sum(
                not mapped.failed and self.resolver.has_no_opinion(key, mapped_at) for key, mapped in pairs
            )
            self._counts.add_escalated(pairs, settled.reply, rescued=rescued)
        if not self.checkpoint.resumed:
            self._counts.require_hope(escalates=self._job.escalate_to is not None)
        self._progress.report()
        if anyio.current_time() - self._synced_at > SYNC_SECONDS:
            await self._sync()
        self._writer.wake()
        if self._writer.failure is not None:
            raise self._writer.failure
        if self._joiner is not None:
            for key, _ in pairs:
                await self._joiner.settle(key)

    async def _emit_rest(self) -> None:
        """Emit the rows that were too many to be held."""
        if self._joiner is None:
            return
        rest = self._joiner.not_emitted(self.rows())
        while chunk := await anyio.to_thread.run_sync(lambda: list(islice(rest, ROWS_AT_ONCE))):
            for number, row in chunk:
                result = self.result_of(number, row, is_final=True)
                if result is not None:
                    await self._joiner.emit(number, row, result)

    async def _confirm_rest(self, survey: Survey) -> None:
        """Show the estimate after the pilot.

        Raises:
            JobStopped: the caller declined.
        """
        counts = self._counts
        if self._confirm is None or not counts.opinions:
            return
        left = survey.rows - self._job.pilot
        cost_usd = self._tree.ledger.cost_usd
        # Rows that an earlier session has asked would make the pilot look cheap.
        asked = counts.opinions / self._opinions if self.checkpoint.resumed else self._job.pilot
        factor = left / asked
        estimate = JobEstimate(
            pilot_rows=self._job.pilot,
            pilot_failed=counts.failed,
            pilot_usd=cost_usd,
            rows_left=left,
            usd=None if cost_usd is None else cost_usd * factor,
            seconds=counts.latency_s * factor / self._current_limit(),
        )
        asked_at = anyio.current_time()
        goes_on = await anyio.to_thread.run_sync(self._confirm, estimate, abandon_on_cancel=True)
        self._progress.exclude(anyio.current_time() - asked_at)
        if not goes_on:
            raise JobStopped(f"stopped after the {estimate}; {self._how_to_go_on()}")

    def _most_concurrent(self) -> int:
        """Return how many calls may ever be in flight at once."""
        highest, wanted = self._tree.max_in_flight, self._job.max_concurrent
        return highest if wanted == "auto" else min(wanted, highest)

    def _current_limit(self) -> int:
        """Return how many calls may be in flight now."""
        return min(
            self._most_concurrent(), *(self._tree.in_flight_limit(model) for model in set(self._stages))
        )

    def _result_of_key(self, key: int) -> RowResult | None:
        return self.resolver.of_models(key, self.checkpoint.mapped)

    async def _sync(self) -> None:
        self._synced_at = anyio.current_time()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.checkpoint.sync)

    def _how_to_go_on(self) -> str:
        if not self._counts.settled:
            return "no row was answered in this session"
        if self._job.journal is None:
            return "a job with neither an output nor a checkpoint keeps nothing"
        kept = counted(self._counts.settled, "answer")
        return f"{kept} of this session kept in {self.checkpoint.path}: resume to go on"


def _next_rows(rows: Iterator[Row]) -> list[Row]:
    """Return the next rows: some hundreds, or fewer if they are long."""
    chunk: list[Row] = []
    chars = 0
    for row in islice(rows, ROWS_AT_ONCE):
        chunk.append(row)
        chars += sum(len(value) for value in row.values() if isinstance(value, str))
        if chars >= CHARS_AT_ONCE:
            break
    return chunk


def _stamp(source: Source) -> tuple[int, int, int] | None:
    """Return a value that differs when the file with the rows has changed, or None for rows from memory."""
    return source.stamp() if isinstance(source, FileSource) else None


def _record(job: Job, source: Source) -> JobRecord:
    """Return the description of the job for its journal, with its input if that is a file."""
    record = job.record()
    if isinstance(source, FileSource):
        options: dict[str, Any] = {"input": str(source.path.absolute()), "encoding": source.encoding}
        record = JobRecord(record.task, {**record.options, **options})
    return record
