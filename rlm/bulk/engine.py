"""A job over rows: look at all of them, ask about those that have no answer yet, write all of them out.

    survey   every row is read once before anything is spent: broken lines, missing fields, how many there are
    pilot    the first rows are asked; what the whole will cost and take is told, and may be declined
    ask      rows → packs → calls; each answer is in the journal before its worker asks again
    escalate what has no answer, or one in doubt, goes to a stronger model, where the job names one
    write    the rows are read again and joined with their answers, in their order, while others are still asked

An interruption at any moment loses at most the calls in flight. The answers are in the journal, by what was asked,
so a resumed job asks only what is missing, and writes everything.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio
import anyio.to_thread
from anyio import lowlevel

from rlm import errors
from rlm._async.groups import ungrouped
from rlm.bulk.answers import Answers
from rlm.bulk.checkpoint import PASSING, Checkpoint, JobRecord, Memory, forget
from rlm.bulk.io.formats import FileSource, Row, Source, require
from rlm.bulk.output import Answer, Writing
from rlm.bulk.report import Estimate, Progress, Report
from rlm.bulk.streaming import Finishing, TellRow
from rlm.bulk.survey import Decided, Questions, Survey
from rlm.errors import (
    AuthenticationFailed,
    CallError,
    CircuitOpen,
    InputError,
    JobStopped,
    LimitReached,
    OutputError,
    QuotaExhausted,
    UnknownModel,
)
from rlm.events import CallFinished, CallRetried
from rlm.structured.map import Item, Mapped, MapSettings, Settled, fill_packs, map_packs
from rlm.wording import counted

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence

    from rlm.bulk.job import Job, PerCall
    from rlm.events import Emit, Event
    from rlm.scheduler.scheduler import Tree
    from rlm.structured.packs import Task
    from rlm.values import Reply

__all__ = ["AskPacks", "PlantTree", "ask_at_once", "run_job"]

ROWS_AT_ONCE: Final = 500
CHARS_AT_ONCE: Final = 4_000_000
SYNC_SECONDS: Final = 1.0
ROWS_TO_WRITE: Final = 20
"""Rows that are written at a time: a fraction of a millisecond, so that no call waits for it."""
KEYS_AT_HAND: Final = 200_000
"""Rows between the one that is read and the one that is written whose keys are not computed again."""
PROGRESS_SECONDS: Final = 0.1
ALL_FAILED: Final = 20
"""Failures without a single answer before them that end a job: the model cannot do what is asked."""
STOPS: Final = (AuthenticationFailed, CircuitOpen, QuotaExhausted, UnknownModel)


class PlantTree(Protocol):
    """How the tree of a job is made."""

    def __call__(self, *, emit: Emit) -> Tree:
        """A tree that tells `emit` what happens."""


class AskPacks(Protocol):
    """How packs are asked: at once, or by a Batch API in its own time."""

    def __call__(
        self,
        tree: Tree,
        packs: AsyncGenerator[list[Item], None],
        task: Task,
        sink: Callable[[Settled], Awaitable[None]],
        settings: MapSettings,
        *,
        memory: Memory,
    ) -> Awaitable[PerCall | None]:
        """As `map_packs`; but what it releases in `memory` is asked in another pass, with packs of the size it gives.

        The opinions of a job are asked side by side, each by calls of its own.
        """


async def ask_at_once(
    tree: Tree,
    packs: AsyncGenerator[list[Item], None],
    task: Task,
    sink: Callable[[Settled], Awaitable[None]],
    settings: MapSettings,
    *,
    memory: Memory,
) -> None:
    """Ask packs as calls, many at once; leaves nothing for another pass.

    Raises:
        InputError: batches of an earlier session are not collected, and what they ask would be paid for twice.
    """
    if number := len(memory.batches()):
        raise InputError(
            f"{number} {'batch' if number == 1 else 'batches'} of an earlier session {'is' if number == 1 else 'are'} "
            "not collected, and would be paid for twice: resume with the Batch API (--batch-api)"
        )
    await map_packs(tree, packs, task, sink, settings)


async def run_job(
    job: Job,
    source: Source,
    plant: PlantTree,
    *,
    journal: Path,
    rule: Callable[[Row], Any] | None = None,
    confirm: Callable[[Estimate], bool] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    keep_row: Callable[[Row], None] | None = None,
    tell_row: TellRow | None = None,
    ask_packs: AskPacks | None = None,
    check_reachable: Callable[[], Awaitable[None]] | None = None,
) -> Report:
    """Do a job.

    Args:
        job: what is asked.
        source: the rows; they are read more than once.
        plant: makes the tree that asks the models, within its budget, and tells the listener what happens.
        journal: where the answers are kept.
        rule: answers obvious rows without a model: gives the answer, or None for a row that is to be asked.
        confirm: is shown the estimate after the pilot, in a thread; False ends the job.
        on_progress: is told how far it is, at most ten times a second.
        keep_row: is given each finished row, in order.
        tell_row: is given each finished row as it finishes.
        ask_packs: asks the packs, instead of calls at once.
        check_reachable: called after all other checks and before the first call; its errors are raised.

    Raises:
        InputError: rows, prompt, schema and output do not fit together; nothing was spent. Or the input has changed
            while the job ran; the answers are in the journal.
        OutputError: the output exists, or cannot be written; the answers are in the journal.
        JobStopped: a limit, or a failure that concerns every row; the answers so far are in the journal.
        JournalError: the journal cannot be used, or the disk is full.
    """
    run = _Run(job, source, plant, rule=rule, on_progress=on_progress, tell_row=tell_row)
    _check_output(job, source)
    stamp = _stamp(source)
    survey = await anyio.to_thread.run_sync(run.survey)
    record = JobRecord(job.task(), _options(job, source))
    if check_reachable is not None:
        await check_reachable()
    if job.overwrite and not (job.resume or job.retry):
        forget(journal)
    with Checkpoint(
        journal,
        record,
        resume=job.resume or job.retry,
        retry=job.retry,
    ) as checkpoint:
        run.checkpoint = checkpoint
        with Writing(
            run.rows(), run.answer_of, columns=run.columns(survey), job=job, keep_row=keep_row
        ) as writing:
            run.writing = writing
            await run.ask(survey, confirm, ask_packs or ask_at_once)
            if _stamp(source) != stamp:
                raise InputError(
                    f"{source.name} has changed while the job ran, so its rows and answers may not belong together; "
                    "the answers are kept: resume"
                )
            await anyio.to_thread.run_sync(writing.finish)
            if writing.dead_letters is not None:
                checkpoint.keep()
            return run.report()


@dataclass(slots=True)
class _Counts:
    """What this session has settled; `free` rows of a pass needed no asking, `passing` failures say nothing of rows.

    `votes` are those settled by opinions, `failed` those of them without an answer so far, `escalations_failed` what
    the model for rows in doubt did not answer.
    """

    settled: int = 0
    settled_before: int = 0
    votes: int = 0
    failed: int = 0
    escalations_failed: int = 0
    free: int = 0
    latency_s: float = 0.0
    last_failure: tuple[str, str] = ("", "")
    passing: bool = True

    def add(self, settled: Sequence[tuple[int, Mapped]], reply: Reply | None) -> None:
        """A call about opinions has settled this."""
        self._add(settled, reply)
        self.votes += len(settled)
        self.failed += sum(mapped.failed for _, mapped in settled)

    def add_escalated(
        self, settled: Sequence[tuple[int, Mapped]], reply: Reply | None, *, rescued: int
    ) -> None:
        """A call about rows in doubt has settled this, and so many of them had no answer before."""
        self._add(settled, reply)
        self.failed -= rescued
        self.escalations_failed += sum(mapped.failed for _, mapped in settled)

    def _add(self, settled: Sequence[tuple[int, Mapped]], reply: Reply | None) -> None:
        self.settled += len(settled)
        self.latency_s += reply.latency_s if reply is not None else 0.0
        for _, mapped in settled:
            if mapped.failed:
                self.last_failure = (mapped.kind, mapped.reason)
                self.passing = self.passing and mapped.kind in PASSING


class _Run:
    """One session of a job."""

    def __init__(
        self,
        job: Job,
        source: Source,
        plant: PlantTree,
        *,
        rule: Callable[[Row], Any] | None,
        on_progress: Callable[[Progress], None] | None,
        tell_row: TellRow | None,
    ) -> None:
        self.checkpoint: Checkpoint
        self.writing: Writing
        self._job = job
        self._source = source
        self._tree = plant(emit=self._hear)
        self._on_progress = on_progress
        self._finishing = None if tell_row is None else Finishing(tell_row)
        self._questions = Questions(job, rule)
        self._answers = Answers(job)
        self._stages = job.stages
        self._votes = len(job.opinions)
        self._counts = _Counts()
        self._keys: dict[int, int] = {}
        self._more_to_write = anyio.Event()
        self._write_failure: Exception | None = None
        self._started = self._synced_at = anyio.current_time()
        self._started_at = time.monotonic()
        self._told_at = float("-inf")
        self._trouble = ""
        self._total = 0

    # Before anything is spent ----------------------------------------------------------------------------------

    def survey(self) -> Survey:
        """Read every row once; in a thread."""
        survey = self._questions.survey(self.rows(), self._source.name)
        self._answers.check(survey.fields, self._source.name)
        return survey

    def columns(self, survey: Survey) -> tuple[str, ...]:
        """The columns of the output."""
        return (*survey.fields, *self._answers.columns)

    def rows(self) -> Iterator[Row]:
        """The rows that the job is about, from the start."""
        return islice(self._source.rows(), self._job.limit)

    # Asking ----------------------------------------------------------------------------------------------------

    async def ask(
        self, survey: Survey, confirm: Callable[[Estimate], bool] | None, ask_packs: AskPacks
    ) -> None:
        """Ask about every row that has no answer yet; first about those of the pilot."""
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._write_along)
            try:
                await self._ask_all(survey, confirm, ask_packs)
            except Exception as error:  # noqa: BLE001 - raised again below, so that it leaves in no group
                failure = error
            tasks.cancel_scope.cancel()
        await self._sync()
        self._tell(at_once=True)
        failure = failure or self._write_failure or self._unreached()
        if isinstance(failure, (LimitReached, CallError)):
            raise JobStopped(f"stopped: {failure}; {self._how_to_go_on()}", cause=failure) from failure
        if failure is not None:
            raise failure

    async def _ask_all(
        self, survey: Survey, confirm: Callable[[Estimate], bool] | None, ask_packs: AskPacks
    ) -> None:
        if 0 < self._job.pilot < survey.rows:
            self._total = self._job.pilot * self._votes
            await self._ask_rows(self._job.pilot, ask_packs)
            await self._confirm(survey, confirm)
        self._total = survey.rows * self._votes
        await self._ask_rows(self._job.limit, ask_packs)
        await self._tell_the_rest()

    async def _ask_rows(self, limit: int | None, ask_packs: AskPacks) -> None:
        self._counts.free = 0
        self._counts.settled_before = self._counts.settled
        votes = range(self._votes)
        if ask_packs is ask_at_once:
            for stage in votes:
                await self._ask_stage(stage, limit, ask_packs)
        else:
            await self._ask_side_by_side(votes, limit, ask_packs)
        for stage in range(self._votes, len(self._stages)):
            await self._ask_stage(stage, limit, ask_packs)

    async def _ask_side_by_side(self, stages: Iterable[int], limit: int | None, ask_packs: AskPacks) -> None:
        """Each may take a day. One that stops lets the others come to their own end, which may be paid for."""
        stops: list[JobStopped | LimitReached] = []

        async def ask(stage: int) -> None:
            try:
                await self._ask_stage(stage, limit, ask_packs)
            except (JobStopped, LimitReached) as stop:
                stops.append(stop)

        with ungrouped():
            async with anyio.create_task_group() as tasks:
                for stage in stages:
                    tasks.start_soon(ask, stage)
        if stops:
            raise stops[-1]

    async def _ask_stage(self, stage: int, limit: int | None, ask_packs: AskPacks) -> None:
        per_call: PerCall | None = self._job.rows_per_call
        is_again = False
        while per_call is not None:
            items = self._items(stage, limit, is_again=is_again)
            per_call = await self._one_pass(stage, items, ask_packs, per_call=per_call)
            is_again = True

    async def _one_pass(
        self,
        stage: int,
        unsettled: AsyncGenerator[list[Item], None],
        ask_packs: AskPacks,
        *,
        per_call: PerCall,
    ) -> PerCall | None:
        job, model = self._job, self._stages[stage]
        settings = MapSettings(
            model=model,
            per_call=per_call,
            max_concurrent=self._widest(),
            window_chars=job.window_chars,
            max_output_tokens=job.max_output_tokens,
            temperature=job.temperature_of(model),
            stops_at=STOPS,
        )

        async def keep(settled: Settled) -> None:
            await self._keep(stage, settled)

        async with (
            aclosing(unsettled) as items,
            aclosing(fill_packs(items, settings.room(self._questions.task))) as packs,
        ):
            memory = self.checkpoint.memory(stage)
            return await ask_packs(self._tree, packs, self._questions.task, keep, settings, memory=memory)

    def _widest(self) -> int:
        """How many calls may ever be in flight at once."""
        widest, wanted = self._tree.widest, self._job.max_concurrent
        return widest if wanted == "auto" else min(wanted, widest)

    def _width(self) -> int:
        """How many calls may be in flight now."""
        return min(self._widest(), *(self._tree.width(model) for model in set(self._stages)))

    async def _items(
        self, stage: int, limit: int | None, *, is_again: bool
    ) -> AsyncGenerator[list[Item], None]:
        """What is to be asked; rows are read a few hundred at a time, in a thread, and counted the first time."""
        rows = islice(self._source.rows(), limit)
        is_free = stage < self._votes and not is_again
        is_more = stage >= self._votes and not is_again  # how many are in doubt is not known before
        finishing = self._finishing if stage >= self._votes - 1 else None
        if finishing is not None:
            finishing.begin()
        first = 1
        while chunk := await anyio.to_thread.run_sync(_take, rows):
            items = []
            for number, row in enumerate(chunk, first):
                question = self._questions.about(row)
                if isinstance(question, Decided):
                    self._counts.free += is_free
                    if finishing is not None:
                        await finishing.tell(number, row, self._answers.of_rule(question.mapped))
                    continue
                if len(self._keys) < KEYS_AT_HAND:
                    self._keys[number] = question.key
                if self._is_asked(stage, question.key) and self.checkpoint.claim(stage, question.key):
                    items.append(Item(question.key, question.content))
                    self._total += is_more
                else:
                    self._counts.free += is_free
                if finishing is None:
                    continue
                if (answer := self._settled(question.key)) is None:
                    finishing.hold(question.key, number, row)
                else:
                    await finishing.tell(number, row, answer)
            first += len(chunk)
            yield items

    def _is_asked(self, stage: int, key: int) -> bool:
        return stage < self._votes or self._answers.are_in_doubt(key, self.checkpoint.outcome)

    async def _keep(self, stage: int, settled: Settled) -> None:
        pairs = [(item.key, mapped) for item, mapped in settled.items]
        self.checkpoint.record(stage, pairs, settled.reply)
        if stage < self._votes:
            self._counts.add(pairs, settled.reply)
        else:
            outcome = self.checkpoint.outcome
            rescued = sum(
                not mapped.failed and self._answers.are_missing(key, outcome) for key, mapped in pairs
            )
            self._counts.add_escalated(pairs, settled.reply, rescued=rescued)
        self._refuse_hopeless()
        self._tell()
        now = anyio.current_time()
        if now - self._synced_at > SYNC_SECONDS:
            await self._sync()
        self._more_to_write.set()
        if self._write_failure is not None:
            raise self._write_failure
        if self._finishing is not None:
            for key, _ in pairs:
                await self._tell_rows_of(key, self._finishing)

    async def _tell_rows_of(self, key: int, finishing: Finishing) -> None:
        answer = self._settled(key)
        if answer is not None:
            for number, row in finishing.release(key):
                await finishing.tell(number, row, answer)

    async def _tell_the_rest(self) -> None:
        """Tell the rows that were too many to be held."""
        if self._finishing is None:
            return
        rest = self._finishing.untold(self.rows())
        while chunk := await anyio.to_thread.run_sync(lambda: list(islice(rest, ROWS_AT_ONCE))):
            for number, row in chunk:
                answer = self.answer_of(number, row, is_final=True)
                if answer is not None:
                    await self._finishing.tell(number, row, answer)

    async def _write_along(self) -> None:
        """Write what is settled at the head of the rows, a few at a time, while others are asked."""
        try:
            while True:
                await self._more_to_write.wait()
                self._more_to_write = anyio.Event()
                while self.writing.advance(ROWS_TO_WRITE):
                    await lowlevel.checkpoint()
        except Exception as error:  # noqa: BLE001 - for the caller of `ask`, who hears of it with the next answer
            self._write_failure = error

    async def _sync(self) -> None:
        self._synced_at = anyio.current_time()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.checkpoint.sync)

    def _refuse_hopeless(self) -> None:
        counts = self._counts
        tries = counts.failed if self._job.escalate_to is None else counts.escalations_failed
        if tries >= ALL_FAILED and counts.failed == counts.votes and not self.checkpoint.resumed:
            kind, reason = counts.last_failure
            failed = f"stopped: none of the first {counts.votes:,} rows got an answer; the last one failed by {kind}: {reason}"
            if counts.passing:
                cause = getattr(errors, kind)(reason)
                raise JobStopped(f"{failed}. The endpoint is in trouble: resume when it answers", cause=cause)
            raise JobStopped(f"{failed}. Change the prompt, the schema or the model, and begin anew")

    def _unreached(self) -> JobStopped | None:
        """Why there is nothing to write: the endpoint was never reached, as far as the answers tell."""
        counts = self._counts
        if (
            not counts.settled
            or counts.failed < counts.votes
            or not counts.passing
            or self.checkpoint.resumed
        ):
            return None
        kind, reason = counts.last_failure
        return JobStopped(
            f"stopped: no row got an answer; the last one failed by {kind}: {reason}. Resume to ask them again",
            cause=getattr(errors, kind)(reason),
        )

    async def _confirm(self, survey: Survey, confirm: Callable[[Estimate], bool] | None) -> None:
        counts = self._counts
        if confirm is None or not counts.votes:
            return
        left = survey.rows - self._job.pilot
        cost_usd = self._tree.ledger.cost_usd
        # What a session before has asked would make the pilot look cheap.
        asked_of = counts.votes / self._votes if self.checkpoint.resumed else self._job.pilot
        share = left / asked_of
        estimate = Estimate(
            pilot_rows=self._job.pilot,
            pilot_failed=counts.failed,
            pilot_usd=cost_usd,
            rows_left=left,
            usd=None if cost_usd is None else cost_usd * share,
            seconds=counts.latency_s * share / self._width(),
        )
        asked_at = anyio.current_time()
        goes_on = await anyio.to_thread.run_sync(confirm, estimate, abandon_on_cancel=True)
        self._started += anyio.current_time() - asked_at  # to think is not to be slow
        if not goes_on:
            raise JobStopped(f"stopped after the {estimate}; {self._how_to_go_on()}")

    def _tell(self, *, at_once: bool = False) -> None:
        now = anyio.current_time()
        if self._on_progress is None or (now - self._told_at < PROGRESS_SECONDS and not at_once):
            return
        self._told_at = now
        counts = self._counts
        self._on_progress(
            Progress(
                rows=counts.free + counts.settled - counts.settled_before,
                total=self._total,
                settled=counts.settled,
                failed=counts.failed,
                seconds=now - self._started,
                tokens=self._tree.ledger.usage.total_tokens,
                concurrency=self._width(),
                cost_usd=self._tree.ledger.cost_usd,
                budget_usd=self._tree.ledger.budget.dollars,
                trouble=self._trouble,
            )
        )

    def _hear(self, event: Event) -> None:
        """Tell of calls that are to be asked again, so that a provider in trouble is no mute wait."""
        match event:
            case CallRetried():
                self._trouble = event.error
                self._tell()
            case CallFinished():
                self._trouble = ""
            case _:
                pass

    def _how_to_go_on(self) -> str:
        if not self._counts.settled:
            return "no row was answered in this session"
        if self._job.journal is None:
            return "nothing is kept of a job with neither an output nor a checkpoint"
        kept = counted(self._counts.settled, "answer")
        return f"{kept} of this session kept in {self.checkpoint.path}: resume to go on"

    # Writing ---------------------------------------------------------------------------------------------------

    def answer_of(self, number: int, row: Row, is_final: bool) -> Answer | None:
        """What is written for a row, or None where it is not settled yet and may still be."""
        key = self._keys.get(number)
        if key is None:
            question = self._questions.about(row)
            if isinstance(question, Decided):
                return self._answers.of_rule(question.mapped)
            key = question.key
        answer = self._settled(key, is_final=is_final)
        if answer is not None:
            self._keys.pop(number, None)
        return answer

    def _settled(self, key: int, *, is_final: bool = False) -> Answer | None:
        return self._answers.of_models(key, self.checkpoint.outcome, is_final=is_final)

    def report(self) -> Report:
        """How the job ended."""
        tally, ledger, earlier = self.writing.tally, self._tree.ledger, self.checkpoint.cost_usd
        cost_usd = ledger.cost_usd
        return Report(
            rows=tally.rows,
            answered=tally.rows - tally.failed,
            by_rule=tally.by_rule,
            failed=tally.failed,
            failures=dict(tally.failures.most_common()),
            asked=self._counts.settled,
            resumed=self.checkpoint.resumed,
            stored=ledger.cost_summary()["stored_replies"],
            usage=self.checkpoint.usage + ledger.usage,
            cost_usd=None if cost_usd is None or earlier is None else cost_usd + earlier,
            seconds=time.monotonic() - self._started_at,
            labels=tally.labels.table(),
            agreement=tally.agreement,
            in_doubt=tally.in_doubt,
            unjudged=tally.unjudged,
            problem=tally.problem,
            output=None if self._job.output is None else Path(self._job.output),
            dead_letters=self.writing.dead_letters,
            journal=self.checkpoint.path,
        )


def _take(rows: Iterator[Row]) -> list[Row]:
    """The next rows: some hundreds, or fewer where they are long."""
    taken: list[Row] = []
    chars = 0
    for row in islice(rows, ROWS_AT_ONCE):
        taken.append(row)
        chars += sum(len(value) for value in row.values() if isinstance(value, str))
        if chars >= CHARS_AT_ONCE:
            break
    return taken


def _stamp(source: Source) -> tuple[int, int, int] | None:
    """Something that is another when the rows have changed, where they are in a file."""
    return source.stamp() if isinstance(source, FileSource) else None


def _check_output(job: Job, source: Source) -> None:
    """Make sure, before anything is spent, that the output can be written.

    Raises:
        OutputError: it exists, is a folder, is or would replace the input, or its folder does not exist.
    """
    _check_distinct(job, source)
    if job.output is None:
        return
    output = Path(job.output)
    require(output)
    if output.is_dir():
        raise OutputError(f"{output} is a folder: name a file for the output")
    if not output.absolute().parent.is_dir():
        raise OutputError(f"{output} cannot be written: there is no folder {output.absolute().parent}")
    if output.exists() and not (job.overwrite or job.resume or job.retry):
        raise OutputError(
            f"{output} exists: name another file, or overwrite it (--overwrite), or go on with its job (--resume)"
        )


def _check_distinct(job: Job, source: Source) -> None:
    """Make sure that no file of the job takes the place of another.

    Raises:
        OutputError: two of them are one.
    """
    output = None if job.output is None else Path(job.output)
    named = {"output": output, "checkpoint": job.journal, "file of failed rows": job.dead_letters}
    taken: dict[Path, str] = {}
    if isinstance(source, FileSource):
        taken[source.path.resolve()] = "input"
    for what, path in named.items():
        if path is None:
            continue
        if (other := taken.setdefault(path.resolve(), what)) != what:
            raise OutputError(
                f"{path} is the {other}, and would be the {what}, too: name another file for the output"
            )


def _options(job: Job, source: Source) -> dict[str, Any]:
    """What a later session needs to do the job again."""
    options = asdict(job)
    for name in ("schema", "overwrite", "resume", "retry"):
        del options[name]
    if isinstance(source, FileSource):
        options |= {"input": str(source.path.absolute()), "encoding": source.encoding}
    return options
