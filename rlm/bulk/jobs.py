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
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias

import anyio
import anyio.to_thread
from anyio import lowlevel

from rlm import errors
from rlm.bulk.checkpoint import PASSING, Checkpoint, JobRecord, Memory, forget, key_of
from rlm.bulk.expressions import Rule, fields_of, read_expression
from rlm.bulk.finishing import Finishing, TellRow
from rlm.bulk.formats import FileSource, Row, Source, require
from rlm.bulk.opinions import Verdict, verdict_of
from rlm.bulk.report import Estimate, Progress, Report, number_of
from rlm.bulk.templates import Template, read_template
from rlm.bulk.writing import Answer, Writing
from rlm.errors import (
    AuthenticationFailed,
    CallError,
    CircuitOpen,
    InputError,
    JobStopped,
    LimitReached,
    OutputError,
    QuotaExhausted,
    SettingsError,
    UnknownModel,
)
from rlm.events import CallFinished, CallRetried
from rlm.mapping import Item, Mapped, MapSettings, Settled, fill_packs, map_packs
from rlm.packing import Task
from rlm.scheduler.batch import first_error
from rlm.schemas import Schema, schema_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Iterator, Sequence

    from rlm.events import Emit, Event
    from rlm.scheduler.scheduler import Tree
    from rlm.values import Reply

__all__ = ["AskPacks", "Job", "PerCall", "PlantTree", "ask_at_once", "run_job"]

PerCall: TypeAlias = "int | Literal['auto']"

ROWS_AT_ONCE: Final = 500
CHARS_AT_ONCE: Final = 4_000_000
SYNC_SECONDS: Final = 1.0
ROWS_TO_WRITE: Final = 20
"""Rows that are written at a time: a fraction of a millisecond, so that no call waits for it."""
KEYS_AT_HAND: Final = 50_000
"""Rows between the one that is read and the one that is written whose keys are not computed again."""
PROGRESS_SECONDS: Final = 0.1
ROWS_TRIED: Final = 20
"""Rows at the start, for one of which at least a rule has to work."""
ALL_FAILED: Final = 20
"""Failures without a single answer before them that end a job: the model cannot do what is asked."""
STOPS: Final = (AuthenticationFailed, CircuitOpen, QuotaExhausted, UnknownModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is asked of rows, and where it goes; plain data.

    Attributes:
        prompt: a template with `{{field}}`s; without any, the whole row is asked about.
        schema: what an answer looks like, as text or JSON Schema; an object becomes a column per property.
        models: the models; several give as many opinions on each row.
        samples: how often each model is asked; more than once needs a temperature.
        escalate_to: a stronger model, asked about the rows in doubt once the others were; its answer stands.
        escalate_when: an expression over the columns of an answer; rows for which it is true are in doubt. By default
            those on which the opinions disagree are. Rows without an answer always are.
        rows_per_call: rows in one call, or "auto" for as many as their length suggests.
        max_concurrency: calls at once, or "auto" for as many as the scheduler lets through.
        temperature: passed to `models`, or one for each model, by name.
        max_output_tokens: output cap of each call, or None for the model's own.
        window_chars: the longest prompt, in characters.
        column: the column of an answer that is no object.
        limit: only the first rows, or None for all.
        pilot: rows to ask before the whole is estimated; 0 for no pilot.
        skip_when: an expression; rows for which it is true are not asked and have no answer.
        output: the file to write, or None.
        checkpoint: the journal; by default the output with `.journal` added.
        overwrite: whether an output that exists, and its journal, may go.
        resume: whether to go on with the journal of an earlier session.
        retry: whether to ask failed rows again; implies `resume`.
    """

    prompt: str
    schema: str | Mapping[str, Any] | None = None
    models: tuple[str, ...] = ("gpt-5-nano",)
    samples: int = 1
    escalate_to: str | None = None
    escalate_when: str | None = None
    rows_per_call: int | Literal["auto"] = "auto"
    max_concurrency: int | Literal["auto"] = "auto"
    temperature: float | Mapping[str, float] | None = None
    max_output_tokens: int | None = None
    window_chars: int = 400_000
    column: str = "answer"
    limit: int | None = None
    pilot: int = 0
    skip_when: str | None = None
    output: str | None = None
    checkpoint: str | None = None
    overwrite: bool = False
    resume: bool = False
    retry: bool = False

    def __post_init__(self) -> None:
        if not self.models:
            raise SettingsError("models is empty: name a model, such as 'gpt-5-nano'")
        least_of = {"samples": 1, "max_concurrency": 1, "pilot": 0, "limit": 1, "max_output_tokens": 1}
        for name, least in least_of.items():
            value = getattr(self, name)
            if (name, value) == ("max_concurrency", "auto"):
                continue
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise SettingsError(f"{name}={value!r}: must be a whole number of at least {least}")
        stronger: object = self.escalate_to
        if stronger is not None and not (isinstance(stronger, str) and stronger):
            raise SettingsError(f"escalate_to={self.escalate_to!r}: must be the name of a model")
        if self.escalate_to in self.models:
            raise SettingsError(
                f"escalate_to={self.escalate_to!r} is asked first, too: name a stronger model, or fewer models"
            )
        if self.escalate_when is not None and self.escalate_to is None:
            raise SettingsError(
                "escalate_when is given, and no model to ask then: name it by escalate_to (--escalate-to)"
            )
        every_model = (*self.models, *self._escalation)
        if isinstance(self.temperature, Mapping) and (foreign := self.temperature.keys() - set(every_model)):
            raise SettingsError(
                f"temperature names {min(foreign)!r}, which is none of the models {', '.join(every_model)}"
            )

    def temperature_of(self, model: str) -> float | None:
        """The temperature that a model is asked with, or None for its own."""
        if isinstance(self.temperature, Mapping):
            return self.temperature.get(model)
        return None if model == self.escalate_to else self.temperature

    @property
    def opinions(self) -> tuple[str, ...]:
        """The model of each opinion."""
        return tuple(model for model in self.models for _ in range(self.samples))

    @property
    def stages(self) -> tuple[str, ...]:
        """The model of each stage of a job: that of each opinion, then the one for the rows in doubt."""
        return (*self.opinions, *self._escalation)

    @property
    def _escalation(self) -> tuple[str, ...]:
        return () if self.escalate_to is None else (self.escalate_to,)

    @property
    def journal(self) -> Path | None:
        """Where the checkpoint is, or None where nobody named a place."""
        if self.checkpoint is not None:
            return Path(self.checkpoint)
        return None if self.output is None else Path(f"{self.output}.journal")

    @property
    def dead_letters(self) -> Path | None:
        """Where failed rows go, or None where nothing is written."""
        return None if self.output is None else Path(f"{self.output}.failed.jsonl")

    def task(self) -> dict[str, Any]:
        """What makes answers comparable: the same rows under the same task have the same answers."""
        schema = None if self.schema is None else dict(schema_of(self.schema).json)
        return {
            "prompt": self.prompt,
            "schema": schema,
            "models": list(self.models),
            "samples": self.samples,
            "escalate_to": self.escalate_to,
            "temperature": self.temperature,
        }


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
    knock: Callable[[], Awaitable[None]] | None = None,
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
        knock: finds out whether there is anybody to ask, when all else is in order; its errors are raised.

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
    if knock is not None:
        await knock()
    if job.overwrite and not (job.resume or job.retry):
        forget(journal)
    with Checkpoint(
        journal,
        record,
        stages=len(job.stages),
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


@dataclass(frozen=True, slots=True)
class _Survey:
    """What reading every row told."""

    rows: int
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Asked:
    """One row that is to be asked about."""

    key: int
    content: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Decided:
    """One row that no model is asked about, with what a rule says of it."""

    mapped: Mapped


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
        self._rule = rule
        self._on_progress = on_progress
        self._finishing = None if tell_row is None else Finishing(tell_row)
        self._template: Template = read_template(job.prompt)
        self._schema: Schema | None = None if job.schema is None else schema_of(job.schema)
        self._stages = job.stages
        self._votes = len(job.opinions)
        self._properties = self._schema.properties if self._schema is not None else ()
        self._skip_when = None if job.skip_when is None else read_expression(job.skip_when)
        self._escalate_when = None if job.escalate_when is None else read_expression(job.escalate_when)
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

    def survey(self) -> _Survey:
        """Read every row once; in a thread."""
        fields: dict[str, None] = {}
        count = 0
        problems: list[InputError] = []
        for row in self.rows():
            if count < ROWS_TRIED and self._skip_when is not None:
                problems += self._tried(self._skip_when, row)
            count += 1
            if row.keys() != fields.keys():
                fields.update(dict.fromkeys(row))
        if not count:
            raise InputError(f"{self._source.name} has no rows, so there is nothing to ask")
        self._template.check(fields, self._source.name)
        _check_rule(self._job.skip_when, fields, self._source.name)
        if len(problems) == min(count, ROWS_TRIED):
            raise problems[0]
        _check_rule(self._job.escalate_when, self._columns_in_doubt(), "an answer of this job")
        for name in self._columns_beside():
            if name in (self._properties or (self._job.column,)):
                raise InputError(
                    f"an answer has a property {name!r}, which is the name of a column that tells how the answers came "
                    "about: give it another name"
                )
        for name in self._new_columns():
            if name in fields:
                raise InputError(
                    f"{self._source.name} already has a column {name!r}, which the answers would replace: "
                    "give the answers another name in the schema, or rename the column"
                )
        return _Survey(count, tuple(fields))

    def _tried(self, rule: Rule, row: Row) -> list[InputError]:
        """What is wrong with a rule for this row, if anything."""
        try:
            rule(row)
        except InputError as error:
            return [error]
        return []

    def rows(self) -> Iterator[Row]:
        """The rows that the job is about, from the start."""
        return islice(self._source.rows(), self._job.limit)

    def columns(self, survey: _Survey) -> tuple[str, ...]:
        """The columns of the output."""
        return (*survey.fields, *self._new_columns())

    def _new_columns(self) -> tuple[str, ...]:
        return (*(self._properties or (self._job.column,)), *self._columns_beside())

    def _columns_beside(self) -> tuple[str, ...]:
        """The columns that tell how an answer came about."""
        agreement = ("agreement",) if self._votes > 1 else ()
        return (*agreement, "escalated") if self._job.escalate_to else agreement

    def _columns_in_doubt(self) -> tuple[str, ...]:
        """The columns that there are when it is decided whether an answer is in doubt."""
        return tuple(name for name in self._new_columns() if name != "escalated")

    # Asking ----------------------------------------------------------------------------------------------------

    async def ask(
        self, survey: _Survey, confirm: Callable[[Estimate], bool] | None, ask_packs: AskPacks
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
        self, survey: _Survey, confirm: Callable[[Estimate], bool] | None, ask_packs: AskPacks
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

        try:
            async with anyio.create_task_group() as tasks:
                for stage in stages:
                    tasks.start_soon(ask, stage)
        except BaseExceptionGroup as errors:
            error = first_error(errors)
            raise error from error.__cause__
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
        task = Task(self._template.instruction, self._schema, single=self._template.render)

        async def keep(settled: Settled) -> None:
            await self._keep(stage, settled)

        async with (
            aclosing(unsettled) as items,
            aclosing(fill_packs(items, settings.room(task))) as packs,
        ):
            memory = self.checkpoint.memory(stage)
            return await ask_packs(self._tree, packs, task, keep, settings, memory=memory)

    def _widest(self) -> int:
        """How many calls may ever be in flight at once."""
        widest, wanted = self._tree.widest, self._job.max_concurrency
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
                decided = self._decide(row)
                if isinstance(decided, _Decided):
                    self._counts.free += is_free
                    if finishing is not None:
                        await finishing.tell(number, row, self._decided_answer(decided))
                    continue
                if len(self._keys) < KEYS_AT_HAND:
                    self._keys[number] = decided.key
                if self._is_asked(stage, decided.key) and self.checkpoint.claim(stage, decided.key):
                    items.append(Item(decided.key, decided.content))
                    self._total += is_more
                else:
                    self._counts.free += is_free
                if finishing is None:
                    continue
                if (answer := self._settled_answer(decided.key)) is None:
                    finishing.hold(decided.key, number, row)
                else:
                    await finishing.tell(number, row, answer)
            first += len(chunk)
            yield items

    def _is_asked(self, stage: int, key: int) -> bool:
        if stage < self._votes:
            return True
        verdict = self._verdict(key, is_final=True)
        return verdict is None or self._judge(verdict)[0]

    def _decide(self, row: Row) -> _Asked | _Decided:
        """Whether a row is asked about; the same for the same row, whenever it is read."""
        try:
            content = self._template.content(row)
            if self._skip_when is not None and self._skip_when(row):
                return _Decided(Mapped())
            answer = None if self._rule is None else _told_by(self._rule, row)
            if answer is not None:
                return _Decided(self._checked(answer))
        except InputError as error:
            return _Decided(Mapped(kind=InputError.__name__, reason=str(error)))
        return _Asked(key_of(content), content)

    def _checked(self, answer: Any) -> Mapped:
        problem = self._schema.check(answer) if self._schema is not None else ""
        if problem:
            return Mapped(
                kind=InputError.__name__, reason=f"the rule's answer does not meet the schema: {problem}"
            )
        return Mapped(answer)

    async def _keep(self, stage: int, settled: Settled) -> None:
        pairs = [(item.key, mapped) for item, mapped in settled.items]
        self.checkpoint.record(stage, pairs, settled.reply)
        if stage < self._votes:
            self._counts.add(pairs, settled.reply)
        else:
            rescued = sum(self._is_rescued(key, mapped) for key, mapped in pairs)
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

    def _is_rescued(self, key: int, mapped: Mapped) -> bool:
        """Whether this is the first answer to a question."""
        verdict = None if mapped.failed else self._verdict(key, is_final=True)
        return verdict is not None and verdict.mapped.failed

    async def _tell_rows_of(self, key: int, finishing: Finishing) -> None:
        answer = self._settled_answer(key)
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

    async def _confirm(self, survey: _Survey, confirm: Callable[[Estimate], bool] | None) -> None:
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
        kept = number_of(self._counts.settled, "answer")
        return f"{kept} of this session kept in {self.checkpoint.path}: resume to go on"

    # Writing ---------------------------------------------------------------------------------------------------

    def answer_of(self, number: int, row: Row, is_final: bool) -> Answer | None:
        """What is written for a row, or None where it is not settled yet and may still be."""
        key = self._keys.get(number)
        if key is None:
            decided = self._decide(row)
            if isinstance(decided, _Decided):
                return self._decided_answer(decided)
            key = decided.key
        answer = self._settled_answer(key, is_final=is_final)
        if answer is not None:
            self._keys.pop(number, None)
        return answer

    def _decided_answer(self, decided: _Decided) -> Answer:
        return Answer(decided.mapped, self._columns(decided.mapped), by_rule=True)

    def _settled_answer(self, key: int, *, is_final: bool = False) -> Answer | None:
        """The answer to a question by all that are asked about it, or None where one of them may still answer."""
        verdict = self._verdict(key, is_final=is_final)
        if verdict is None:
            return None
        mapped, agreement = verdict.mapped, verdict.agreement
        is_in_doubt, problem = self._judge(verdict)
        if not is_in_doubt:
            return Answer(mapped, self._columns(mapped, agreement=agreement), agreement=agreement)
        last = self.checkpoint.outcome(self._votes, key)
        if last is None and not is_final:
            return None
        is_answered = last is not None and not last.failed
        if last is not None and is_answered:
            mapped = last
        columns = self._columns(mapped, agreement=agreement, is_escalated=is_answered)
        return Answer(mapped, columns, agreement=agreement, in_doubt=not is_answered, problem=problem)

    def _verdict(self, key: int, *, is_final: bool) -> Verdict | None:
        """What the opinions come to, or None where one of them may still come."""
        outcomes = []
        for opinion in range(self._votes):
            outcome = self.checkpoint.outcome(opinion, key)
            if outcome is None and not is_final:
                return None
            outcomes.append(outcome or NEVER_ASKED)
        return verdict_of(outcomes)

    def _judge(self, verdict: Verdict) -> tuple[bool, str]:
        """Whether the model for rows in doubt is to be asked, and why that could not be told where it could not."""
        if self._job.escalate_to is None:
            return False, ""
        if verdict.mapped.failed:
            return True, ""
        if self._escalate_when is None:
            return verdict.agreement is not None and verdict.agreement < 1, ""
        columns = self._columns(verdict.mapped, agreement=verdict.agreement)
        try:
            return bool(self._escalate_when(columns)), ""
        except InputError as error:
            return True, f"{error}, here {columns}"

    def _columns(self, mapped: Mapped, *, agreement: float | None = None, is_escalated: bool = False) -> Row:
        value = mapped.value
        if self._properties:
            columns = {name: (value or {}).get(name) for name in self._properties}
        else:
            columns = {self._job.column: value}
        beside = {"agreement": agreement, "escalated": is_escalated}
        return columns | {name: beside[name] for name in self._columns_beside()}

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


def _told_by(rule: Callable[[Row], Any], row: Row) -> Any:
    """What a rule says of a row, which it may do with what it likes.

    Raises:
        InputError: it fails; a single odd row of a million is then the only one without an answer.
    """
    try:
        return rule(dict(row))
    except (Exception, SystemExit) as error:  # somebody else's function
        raise InputError(f"the rule fails for the row: {type(error).__name__}: {error}") from error


def _check_rule(rule: str | None, available: Collection[str], of: str) -> None:
    for name in () if rule is None else fields_of(rule):
        if name not in available:
            raise InputError(
                f"the rule {rule!r} asks for the field {name!r}, and the fields of {of} are {', '.join(available)}"
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


NEVER_ASKED: Final = Mapped(
    kind=InputError.__name__,
    reason="the input changed while the job ran, and this row was never asked: resume",
)


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
