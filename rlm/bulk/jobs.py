"""A job over rows: look at all of them, ask about those that have no answer yet, write all of them out.

    survey   every row is read once before anything is spent: broken lines, missing fields, how many there are
    pilot    the first rows are asked; what the whole will cost and take is told, and may be declined
    ask      rows → packs → calls; each answer is in the journal before its worker asks again
    write    the rows are read again and joined with their answers, in their order

An interruption at any moment loses at most the calls in flight. The answers are in the journal, by what was asked,
so a resumed job asks only what is missing, and writes everything.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack, aclosing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias

import anyio
import anyio.to_thread

from rlm.bulk.checkpoint import Checkpoint, JobRecord, Memory, key_of
from rlm.bulk.expressions import read_expression
from rlm.bulk.formats import FileSource, Row, Source, Writer, create, require
from rlm.bulk.opinions import vote
from rlm.bulk.report import Estimate, LabelCounts, Progress, Report
from rlm.bulk.templates import Template, read_template
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
from rlm.mapping import Item, Mapped, MapSettings, Settled, fill_packs, map_packs
from rlm.packing import Task
from rlm.schemas import Schema, schema_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence

    from rlm.scheduler.scheduler import Tree
    from rlm.values import Reply

__all__ = ["AskPacks", "Job", "PerCall", "ask_at_once", "run_job"]

PerCall: TypeAlias = "int | Literal['auto']"

ROWS_AT_ONCE: Final = 500
SYNC_SECONDS: Final = 1.0
PROGRESS_SECONDS: Final = 0.1
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
        rows_per_call: rows in one call, or "auto" for as many as their length suggests.
        max_concurrency: calls at once.
        temperature: passed to the models.
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
    rows_per_call: int | Literal["auto"] = "auto"
    max_concurrency: int = 50
    temperature: float | None = None
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
        for name, least in (("samples", 1), ("max_concurrency", 1), ("pilot", 0), ("limit", 1)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise SettingsError(f"{name}={value!r}: must be a whole number of at least {least}")

    @property
    def opinions(self) -> tuple[str, ...]:
        """The model of each opinion."""
        return tuple(model for model in self.models for _ in range(self.samples))

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
            "temperature": self.temperature,
        }


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
        """As `map_packs`; but what it releases in `memory` is asked in another pass, with packs of the size it gives."""


async def ask_at_once(
    tree: Tree,
    packs: AsyncGenerator[list[Item], None],
    task: Task,
    sink: Callable[[Settled], Awaitable[None]],
    settings: MapSettings,
    *,
    memory: Memory,  # noqa: ARG001 - what is asked at once needs none
) -> None:
    """Ask packs as calls, many at once; leaves nothing for another pass."""
    await map_packs(tree, packs, task, sink, settings)


async def run_job(
    job: Job,
    source: Source,
    tree: Tree,
    *,
    journal: Path,
    rule: Callable[[Row], Any] | None = None,
    confirm: Callable[[Estimate], bool] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    keep_row: Callable[[Row], None] | None = None,
    ask_packs: AskPacks | None = None,
) -> Report:
    """Do a job.

    Args:
        job: what is asked.
        source: the rows; they are read more than once.
        tree: asks the models, within its budget.
        journal: where the answers are kept.
        rule: answers obvious rows without a model: gives the answer, or None for a row that is to be asked.
        confirm: is shown the estimate after the pilot, in a thread; False ends the job.
        on_progress: is told how far it is, at most ten times a second.
        keep_row: is given each finished row, in order.
        ask_packs: asks the packs, instead of calls at once.

    Raises:
        InputError: rows, prompt, schema and output do not fit together; nothing was spent.
        OutputError: the output exists, or cannot be written; the answers are in the journal.
        JobStopped: a limit, or a failure that concerns every row; the answers so far are in the journal.
        JournalError: the journal cannot be used, or the disk is full.
    """
    run = _Run(job, source, tree, rule=rule, on_progress=on_progress)
    _make_room(job, source, journal)
    survey = await anyio.to_thread.run_sync(run.survey)
    record = JobRecord(job.task(), _options(job, source))
    with Checkpoint(
        journal,
        record,
        opinions=len(job.opinions),
        resume=job.resume or job.retry,
        retry=job.retry,
    ) as checkpoint:
        run.checkpoint = checkpoint
        await run.ask(survey, confirm, ask_packs or ask_at_once)
        return await anyio.to_thread.run_sync(run.write, survey, keep_row)


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
    """What this session has settled; `free` rows of a pass needed no asking."""

    settled: int = 0
    settled_before: int = 0
    failed: int = 0
    free: int = 0
    latency_s: float = 0.0
    last_failure: tuple[str, str] = ("", "")

    def add(self, settled: Sequence[tuple[int, Mapped]], reply: Reply | None) -> None:
        self.settled += len(settled)
        self.latency_s += reply.latency_s if reply is not None else 0.0
        for _, mapped in settled:
            if mapped.failed:
                self.failed += 1
                self.last_failure = (mapped.kind, mapped.reason)


class _Run:
    """One session of a job."""

    def __init__(
        self,
        job: Job,
        source: Source,
        tree: Tree,
        *,
        rule: Callable[[Row], Any] | None,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.checkpoint: Checkpoint
        self._job = job
        self._source = source
        self._tree = tree
        self._rule = rule
        self._on_progress = on_progress
        self._template: Template = read_template(job.prompt)
        self._schema: Schema | None = None if job.schema is None else schema_of(job.schema)
        self._skip_when = None if job.skip_when is None else read_expression(job.skip_when)
        self._counts = _Counts()
        self._started = self._synced_at = anyio.current_time()
        self._started_at = time.monotonic()
        self._told_at = float("-inf")
        self._total = 0

    # Before anything is spent ----------------------------------------------------------------------------------

    def survey(self) -> _Survey:
        """Read every row once; in a thread."""
        fields: dict[str, None] = {}
        count = 0
        for row in self._rows():
            count += 1
            if row.keys() != fields.keys():
                fields.update(dict.fromkeys(row))
        if not count:
            raise InputError(f"{self._source.name} has no rows, so there is nothing to ask")
        self._template.check(fields, self._source.name)
        for name in self._new_columns():
            if name in fields:
                raise InputError(
                    f"{self._source.name} already has a column {name!r}, which the answers would replace: "
                    "give the answers another name in the schema, or rename the column"
                )
        return _Survey(count, tuple(fields))

    def _rows(self) -> Iterator[Row]:
        return islice(self._source.rows(), self._job.limit)

    def _new_columns(self) -> tuple[str, ...]:
        properties = self._schema.properties if self._schema is not None else ()
        agreement = ("agreement",) if len(self._job.opinions) > 1 else ()
        return (*(properties or (self._job.column,)), *agreement)

    # Asking ----------------------------------------------------------------------------------------------------

    async def ask(
        self, survey: _Survey, confirm: Callable[[Estimate], bool] | None, ask_packs: AskPacks
    ) -> None:
        """Ask about every row that has no answer yet; first about those of the pilot."""
        self._total = survey.rows * len(self._job.opinions)
        try:
            if 0 < self._job.pilot < survey.rows:
                await self._ask_rows(self._job.pilot, ask_packs)
                await self._confirm(survey, confirm)
            await self._ask_rows(self._job.limit, ask_packs)
        except (LimitReached, CallError) as error:
            raise JobStopped(f"stopped: {error}; {self._how_to_go_on()}", cause=error) from error
        finally:
            await self._sync()
            self._tell(at_once=True)

    async def _ask_rows(self, limit: int | None, ask_packs: AskPacks) -> None:
        self._counts.free = 0
        self._counts.settled_before = self._counts.settled
        for opinion, model in enumerate(self._job.opinions):
            await self._ask_opinion(opinion, model, limit, ask_packs)

    async def _ask_opinion(self, opinion: int, model: str, limit: int | None, ask_packs: AskPacks) -> None:
        per_call: PerCall | None = self._job.rows_per_call
        while per_call is not None:
            free = self._counts.free
            per_call = await self._one_pass(opinion, model, limit, ask_packs, per_call=per_call)
            if per_call is not None:
                self._counts.free = free

    async def _one_pass(
        self, opinion: int, model: str, limit: int | None, ask_packs: AskPacks, *, per_call: PerCall
    ) -> PerCall | None:
        job = self._job
        settings = MapSettings(
            model=model,
            per_call=per_call,
            max_concurrent=job.max_concurrency,
            window_chars=job.window_chars,
            max_output_tokens=job.max_output_tokens,
            temperature=job.temperature,
            stops_at=STOPS,
        )
        task = Task(self._template.instruction, self._schema, single=self._template.render)

        async def keep(settled: Settled) -> None:
            await self._keep(opinion, settled)

        async with (
            aclosing(self._items(opinion, limit)) as items,
            aclosing(fill_packs(items, settings.room(task))) as packs,
        ):
            memory = self.checkpoint.memory(opinion)
            return await ask_packs(self._tree, packs, task, keep, settings, memory=memory)

    async def _items(self, opinion: int, limit: int | None) -> AsyncGenerator[Item, None]:
        """What is to be asked; rows are read and looked up a few hundred at a time, in a thread."""
        rows = islice(self._source.rows(), limit)
        while (items := await anyio.to_thread.run_sync(self._next_items, rows, opinion)) is not None:
            for item in items:
                yield item

    def _next_items(self, rows: Iterator[Row], opinion: int) -> list[Item] | None:
        chunk = list(islice(rows, ROWS_AT_ONCE))
        if not chunk:
            return None
        items = []
        for row in chunk:
            decided = self._decide(row)
            if isinstance(decided, _Asked) and self.checkpoint.claim(opinion, decided.key):
                items.append(Item(decided.key, decided.content))
            else:
                self._counts.free += 1
        return items

    def _decide(self, row: Row) -> _Asked | _Decided:
        """Whether a row is asked about; the same for the same row, whenever it is read."""
        try:
            content = self._template.content(row)
            if self._skip_when is not None and self._skip_when(row):
                return _Decided(Mapped())
            if self._rule is not None and (answer := self._rule(row)) is not None:
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

    async def _keep(self, opinion: int, settled: Settled) -> None:
        pairs = [(item.key, mapped) for item, mapped in settled.items]
        self.checkpoint.record(opinion, pairs, settled.reply)
        self._counts.add(pairs, settled.reply)
        self._refuse_hopeless()
        self._tell()
        if anyio.current_time() - self._synced_at > SYNC_SECONDS:
            await self._sync()

    async def _sync(self) -> None:
        self._synced_at = anyio.current_time()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.checkpoint.sync)

    def _refuse_hopeless(self) -> None:
        counts = self._counts
        if counts.failed >= ALL_FAILED and counts.failed == counts.settled and not self.checkpoint.resumed:
            kind, reason = counts.last_failure
            raise JobStopped(
                f"stopped: none of the first {counts.settled:,} rows got an answer; the last one failed by {kind}: "
                f"{reason}. Change the prompt, the schema or the model"
            )

    async def _confirm(self, survey: _Survey, confirm: Callable[[Estimate], bool] | None) -> None:
        counts = self._counts
        if confirm is None or not counts.settled:
            return
        left = survey.rows - self._job.pilot
        cost_usd = self._tree.ledger.cost_usd
        share = left * len(self._job.opinions) / counts.settled
        estimate = Estimate(
            pilot_rows=self._job.pilot,
            pilot_failed=counts.failed,
            pilot_usd=cost_usd,
            rows_left=left,
            usd=None if cost_usd is None else cost_usd * share,
            seconds=counts.latency_s * share / self._job.max_concurrency,
        )
        if not await anyio.to_thread.run_sync(confirm, estimate):
            raise JobStopped(f"stopped after the pilot: {estimate}; {self._how_to_go_on()}")

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
                cost_usd=self._tree.ledger.cost_usd,
                budget_usd=self._tree.ledger.budget.dollars,
            )
        )

    def _how_to_go_on(self) -> str:
        return f"{self._counts.settled:,} answers of this session are kept in {self.checkpoint.path}: resume to go on"

    # Writing ---------------------------------------------------------------------------------------------------

    def write(self, survey: _Survey, keep_row: Callable[[Row], None] | None) -> Report:
        """Join all rows with their answers, in order; in a thread."""
        columns = (*survey.fields, *self._new_columns())
        tally = _Tally()
        with ExitStack() as files:
            writers = self._writers(files, columns, keep_row)
            dead_letters = _DeadLetters(files, self._job.dead_letters)
            for number, row in enumerate(self._rows(), 1):
                answer = self._answer_of(row)
                tally.add(answer)
                for write in writers:
                    write({**row, **answer.columns})
                if answer.mapped.failed:
                    dead_letters.write(number, row, answer.mapped)
        return self._report(tally, dead_letters.path)

    def _writers(
        self, files: ExitStack, columns: Sequence[str], keep_row: Callable[[Row], None] | None
    ) -> list[Callable[[Row], None]]:
        writers = [] if keep_row is None else [keep_row]
        if self._job.output is not None:
            writers.append(files.enter_context(create(Path(self._job.output), columns)).write)
        return writers

    def _answer_of(self, row: Row) -> _Answer:
        decided = self._decide(row)
        if isinstance(decided, _Decided):
            return _Answer(decided.mapped, self._columns(decided.mapped, None), by_rule=True)
        outcomes = [
            self.checkpoint.outcome(opinion, decided.key) or NEVER_ASKED
            for opinion in range(len(self._job.opinions))
        ]
        values = [outcome.value for outcome in outcomes if not outcome.failed]
        if not values:
            return _Answer(outcomes[0], self._columns(outcomes[0], None))
        if len(outcomes) == 1:
            return _Answer(outcomes[0], self._columns(outcomes[0], None))
        value, agreement = vote(values)
        mapped = Mapped(value)
        return _Answer(mapped, self._columns(mapped, agreement), agreement=agreement)

    def _columns(self, mapped: Mapped, agreement: float | None) -> Row:
        value = mapped.value
        if self._schema is not None and self._schema.properties:
            columns = {name: (value or {}).get(name) for name in self._schema.properties}
        else:
            columns = {self._job.column: value}
        return {**columns, "agreement": agreement} if len(self._job.opinions) > 1 else columns

    def _report(self, tally: _Tally, dead_letters: Path | None) -> Report:
        ledger, earlier = self._tree.ledger, self.checkpoint.cost_usd
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
            output=None if self._job.output is None else Path(self._job.output),
            dead_letters=dead_letters,
            journal=self.checkpoint.path,
        )


@dataclass(frozen=True, slots=True)
class _Answer:
    """What is written for one row."""

    mapped: Mapped
    columns: Row
    by_rule: bool = False
    agreement: float | None = None


@dataclass(slots=True)
class _Tally:
    """Sums over the rows that are written."""

    rows: int = 0
    failed: int = 0
    by_rule: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    labels: LabelCounts = field(default_factory=LabelCounts)
    agreements: list[float] = field(default_factory=lambda: [0.0, 0])

    @property
    def agreement(self) -> float | None:
        total, number = self.agreements
        return total / number if number else None

    def add(self, answer: _Answer) -> None:
        self.rows += 1
        if answer.mapped.failed:
            self.failed += 1
            self.failures[answer.mapped.kind] += 1
            return
        self.by_rule += answer.by_rule
        self.labels.add({name: value for name, value in answer.columns.items() if name != "agreement"})
        if answer.agreement is not None:
            self.agreements[0] += answer.agreement
            self.agreements[1] += 1


class _DeadLetters:
    """The file of failed rows, which is there only where a row failed; an earlier one goes."""

    def __init__(self, files: ExitStack, path: Path | None) -> None:
        self.path: Path | None = None
        self._files = files
        self._place = path
        self._writer: Writer | None = None
        if path is not None:
            path.unlink(missing_ok=True)

    def write(self, number: int, row: Row, mapped: Mapped) -> None:
        if self._place is None:
            return
        if self._writer is None:
            self._writer = self._files.enter_context(create(self._place, ()))
            self.path = self._place
        self._writer.write({"row": number, "kind": mapped.kind, "reason": mapped.reason, "fields": row})


NEVER_ASKED: Final = Mapped(
    kind=InputError.__name__,
    reason="the input changed while the job ran, and this row was never asked: resume",
)


def _make_room(job: Job, source: Source, journal: Path) -> None:
    """Make sure, before anything is spent, that the output can be written.

    Raises:
        OutputError: it exists, is the input, or its folder does not exist.
    """
    if job.output is None:
        return
    output = Path(job.output)
    require(output)
    if isinstance(source, FileSource) and output.resolve() == source.path.resolve():
        raise OutputError(f"{output} is the input: name another file for the output")
    if not output.absolute().parent.is_dir():
        raise OutputError(f"{output} cannot be written: there is no folder {output.absolute().parent}")
    if job.resume or job.retry:
        return
    if output.exists() and not job.overwrite:
        raise OutputError(
            f"{output} exists: name another file, or say that it may be overwritten, or resume its job"
        )
    if job.overwrite:
        journal.unlink(missing_ok=True)


def _options(job: Job, source: Source) -> dict[str, Any]:
    """What a later session needs to do the job again."""
    options = asdict(job)
    for name in ("schema", "overwrite", "resume", "retry"):
        del options[name]
    if isinstance(source, FileSource):
        options |= {"input": str(source.path), "encoding": source.encoding}
    return options
