"""Rows and their answers → the output, in order, as far as they are settled; what failed → the dead letters."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rlm.bulk.io.formats import Row, Writer, create
from rlm.bulk.report import LabelCounts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from rlm.bulk.job import Job
    from rlm.structured.map import Mapped

__all__ = ["Answer", "Tally", "Writing"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What is written for one row."""

    mapped: Mapped
    columns: Row
    by_rule: bool = False
    agreement: float | None = None
    in_doubt: bool = False
    problem: str = ""


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
        """The mean over rows with several opinions, or None where there are none."""
        return self.agreements / self.opinions if self.opinions else None

    def add(self, answer: Answer) -> None:
        """Count one row."""
        self.rows += 1
        self.unjudged += bool(answer.problem)
        self.problem = self.problem or answer.problem
        if answer.mapped.failed:
            self.failed += 1
            self.failures[answer.mapped.kind] += 1
            return
        self.by_rule += answer.by_rule
        self.in_doubt += answer.in_doubt
        self.labels.add(answer.columns)
        if answer.agreement is not None:
            self.opinions += 1
            self.agreements += answer.agreement


class Writing:
    """The files of a job while they are written; a context manager. The files are there after `finish`, or not at all.

    Args:
        rows: all rows, in order.
        answer_of: the answer for a row and its number; None where it may still come, unless told that it will not.
        columns: of the output.
        job: names the files.
        keep_row: is given each row, too.

    Attributes:
        tally: sums over the rows that were written.
        dead_letters: the file of failed rows, or None where none failed.
    """

    def __init__(
        self,
        rows: Iterator[Row],
        answer_of: Callable[[int, Row, bool], Answer | None],
        *,
        columns: Sequence[str],
        job: Job,
        keep_row: Callable[[Row], None] | None,
    ) -> None:
        self.tally = Tally()
        self.dead_letters: Path | None = None
        self._rows = zip(count(1), rows, strict=False)
        self._answer_of = answer_of
        self._place_of_letters = job.dead_letters
        self._letters: Writer | None = None
        self._files = ExitStack()
        self._head = next(self._rows, None)
        self._writers = [] if keep_row is None else [keep_row]
        if job.output is not None:
            self._writers.append(self._files.enter_context(create(Path(job.output), columns)).write)

    def advance(self, most: int | None = None, *, is_final: bool = False) -> int:
        """Write rows up to the first that is not settled, and at most so many; gives their number."""
        written = 0
        while self._head is not None and written != most:
            number, row = self._head
            answer = self._answer_of(number, row, is_final)
            if answer is None:
                break
            self._write(number, row, answer)
            self._head = next(self._rows, None)
            written += 1
        return written

    def finish(self) -> None:
        """Write all that is left, and give the files their names.

        Raises:
            OutputError: a file cannot be written.
        """
        self.advance(is_final=True)
        self._files.close()
        if self.dead_letters is None and self._place_of_letters is not None:
            self._place_of_letters.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, traceback)

    def _write(self, number: int, row: Row, answer: Answer) -> None:
        self.tally.add(answer)
        for write in self._writers:
            write({**row, **answer.columns})
        if answer.mapped.failed and self._place_of_letters is not None:
            if self._letters is None:
                self._letters = self._files.enter_context(create(self._place_of_letters, ()))
                self.dead_letters = self._place_of_letters
            mapped = answer.mapped
            self._letters.write({"row": number, "kind": mapped.kind, "reason": mapped.reason, "fields": row})
