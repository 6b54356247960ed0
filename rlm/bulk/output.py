"""Output of a job: rows with their results, in order, as far as they are finished; failed rows in a file beside it."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import anyio
from anyio import lowlevel

from rlm.bulk.io.formats import FileSource, create, require
from rlm.bulk.report import LabelCounts
from rlm.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from rlm.bulk.io.rows import Row, Source, Writer
    from rlm.bulk.job import Job
    from rlm.structured.leftovers import Mapped

__all__ = ["BackgroundWriter", "OutputWriter", "RowResult", "Tally", "check_output"]

ROWS_AT_ONCE: Final = 20
"""Rows written between two checkpoints of the event loop: a fraction of a millisecond, so that no call waits."""


@dataclass(frozen=True, slots=True)
class RowResult:
    """Result of one row.

    Attributes:
        mapped: the answer, or why there is none.
        columns: the new columns.
        by_rule: True if no model was asked.
        agreement: agreement of several opinions, from 0 to 1.
        in_doubt: True if the escalation model gave no answer.
        rule_problem: why `escalate_when` failed for the answer, else ''.
    """

    mapped: Mapped
    columns: Row
    by_rule: bool = False
    agreement: float | None = None
    in_doubt: bool = False
    rule_problem: str = ""


@dataclass(slots=True)
class Tally:
    """Sums over the rows that were written."""

    rows: int = 0
    failed: int = 0
    by_rule: int = 0
    in_doubt: int = 0
    unjudged: int = 0
    problem: str = ""
    failures: Counter[str] = field(default_factory=Counter)
    labels: LabelCounts = field(default_factory=LabelCounts)
    opinions: int = 0
    agreements: float = 0.0

    @property
    def agreement(self) -> float | None:
        """Mean agreement of rows with several opinions, or None if there are none."""
        return self.agreements / self.opinions if self.opinions else None

    def add(self, result: RowResult) -> None:
        """Count one row."""
        self.rows += 1
        self.unjudged += bool(result.rule_problem)
        self.problem = self.problem or result.rule_problem
        if result.mapped.failed:
            self.failed += 1
            self.failures[result.mapped.kind] += 1
            return
        self.by_rule += result.by_rule
        self.in_doubt += result.in_doubt
        self.labels.add(result.columns)
        if result.agreement is not None:
            self.opinions += 1
            self.agreements += result.agreement


class OutputWriter:
    """Writer of the files of a job; a context manager. The files appear with `finish`, or not at all.

    Args:
        rows: all rows, in order.
        result_of: returns the result of a row by its number, or None while it is open, unless `is_final` is True.
        columns: columns of the output.
        job: names the files.
        keep_row: called with each row in addition.

    Attributes:
        tally: sums over the rows that were written.
        dead_letters: the file of failed rows, or None if no row failed.
    """

    def __init__(
        self,
        rows: Iterator[Row],
        result_of: Callable[[int, Row, bool], RowResult | None],
        *,
        columns: Sequence[str],
        job: Job,
        keep_row: Callable[[Row], None] | None,
    ) -> None:
        self.tally = Tally()
        self.dead_letters: Path | None = None
        self._rows = zip(count(1), rows, strict=False)
        self._result_of = result_of
        self._failed_path = job.dead_letters
        self._failed_rows: Writer | None = None
        self._files = ExitStack()
        self._next = next(self._rows, None)
        self._writers = [] if keep_row is None else [keep_row]
        if job.output is not None:
            self._writers.append(self._files.enter_context(create(Path(job.output), columns)).write)

    def advance(self, most: int | None = None, *, is_final: bool = False) -> int:
        """Write rows up to the first unfinished one, at most `most`; return how many were written."""
        written = 0
        while self._next is not None and written != most:
            number, row = self._next
            result = self._result_of(number, row, is_final)
            if result is None:
                break
            self._write(number, row, result)
            self._next = next(self._rows, None)
            written += 1
        return written

    def finish(self) -> None:
        """Write all remaining rows and give the files their names.

        Raises:
            OutputError: a file cannot be written.
        """
        self.advance(is_final=True)
        self._files.close()
        if self.dead_letters is None and self._failed_path is not None:
            self._failed_path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, traceback)

    def _write(self, number: int, row: Row, result: RowResult) -> None:
        self.tally.add(result)
        for write in self._writers:
            write({**row, **result.columns})
        if result.mapped.failed and self._failed_path is not None:
            if self._failed_rows is None:
                self._failed_rows = self._files.enter_context(create(self._failed_path, ()))
                self.dead_letters = self._failed_path
            mapped = result.mapped
            self._failed_rows.write(
                {"row": number, "kind": mapped.kind, "reason": mapped.reason, "fields": row}
            )


class BackgroundWriter:
    """Task that writes finished rows, a few at a time, while others are still asked.

    Attributes:
        failure: the error that ended it, for the task that asks.
    """

    def __init__(self, writer: OutputWriter) -> None:
        self.failure: Exception | None = None
        self._writer = writer
        self._has_work = anyio.Event()

    def wake(self) -> None:
        """Look for finished rows soon."""
        self._has_work.set()

    async def run(self) -> None:
        """Write until cancelled, or until an error."""
        try:
            while True:
                await self._has_work.wait()
                self._has_work = anyio.Event()
                while self._writer.advance(ROWS_AT_ONCE):
                    await lowlevel.checkpoint()
        except Exception as error:  # noqa: BLE001 - raised by the task that asks, when its next answer is recorded
            self.failure = error


def check_output(job: Job, source: Source) -> None:
    """Require, before anything is spent, that the output can be written.

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
    """Require that input, output, checkpoint and failed rows are different files."""
    output = None if job.output is None else Path(job.output)
    named = {"output": output, "checkpoint": job.journal, "file of failed rows": job.dead_letters}
    taken: dict[Path, str] = {}
    if isinstance(source, FileSource):
        taken[source.path.resolve()] = "input"
    for role, path in named.items():
        if path is not None and (other := taken.setdefault(path.resolve(), role)) != role:
            raise OutputError(
                f"{path} is the {other}, and would be the {role}, too: name another file for the output"
            )
