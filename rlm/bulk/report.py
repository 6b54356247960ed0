"""Progress of a job over rows while it runs, the estimate after its pilot, and its report at the end.

print(total([first.report, second.report]))     # several jobs as one
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any, Final

from rlm.values import Usage
from rlm.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = ["JobEstimate", "JobProgress", "JobReport", "LabelCounts", "total"]

MOST_LABELS: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress:
    """Progress of a running job.

    Attributes:
        rows: rows that are settled; each counts once for each opinion.
        total: all rows, or those of the pilot while it runs; counted likewise.
        settled: rows settled by calls of this session.
        failed: those of them without an answer.
        seconds: since the job began.
        tokens: input and output of this session.
        max_concurrent: calls that may be in flight now.
        cost_usd: dollars of this session, or None if a price is not known.
        budget_usd: dollars that the job may spend, or None.
        trouble: why the last failed call is retried, until a call succeeds; else ''.
    """

    rows: int
    total: int
    settled: int
    failed: int
    seconds: float
    tokens: int
    max_concurrent: int
    cost_usd: float | None
    budget_usd: float | None
    trouble: str = ""

    @property
    def tokens_per_second(self) -> float:
        """Input and output tokens per second of this session."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def rows_per_second(self) -> float:
        """Rows settled per second of this session."""
        return self.settled / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the end at this pace, or None before the first row is settled."""
        return (self.total - self.rows) / self.rows_per_second if self.settled else None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEstimate:
    """Estimate of the whole job from its pilot: dollars (None without a price) and seconds from now."""

    pilot_rows: int
    pilot_failed: int
    pilot_usd: float | None
    rows_left: int
    usd: float | None
    seconds: float

    def __str__(self) -> str:
        price = "at an unknown price" if self.usd is None else f"for about ${self.usd:,.4f}"
        spent = "" if self.pilot_usd is None else f" (${self.pilot_usd:,.4f})"
        return (
            f"pilot: {counted(self.pilot_rows, 'row')}{spent}, {self.pilot_failed:,} failed; the other "
            f"{counted(self.rows_left, 'row')} {price}, in about {self.seconds:,.0f} s"
        )


class LabelCounts:
    """Counts of the values in each new column with at most `MOST_LABELS` different ones."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, int]] = {}
        self._left_out: set[str] = set()

    def add(self, columns: Mapping[str, Any]) -> None:
        """Count the values of one row."""
        for name, value in columns.items():
            if not isinstance(value, (str, bool, int)) or name in self._left_out:
                continue
            counts = self._counts.get(name)
            if counts is None:
                counts = self._counts[name] = {}
            label = value if isinstance(value, str) else str(value).lower()
            counts[label] = counts.get(label, 0) + 1
            if len(counts) > MOST_LABELS:
                self._left_out.add(name)
                del self._counts[name]

    def table(self) -> dict[str, dict[str, int]]:
        """Return column → value → rows, the most frequent value first."""
        return {
            name: dict(sorted(counts.items(), key=lambda pair: -pair[1]))
            for name, counts in self._counts.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """Report of a finished job.

    Attributes:
        rows: rows of the input.
        answered: rows with an answer, including equal rows and those answered by a rule.
        by_rule: rows that a rule answered or skipped without a model.
        failed: rows without an answer.
        failures: kind of failure → rows.
        in_doubt: rows escalated to a stronger model that gave no answer; they keep the answer of the others.
        unjudged: rows escalated because `escalate_when` raised on their answer.
        problem: the error for the first of them, else ''.
        asked: distinct rows that this session settled.
        resumed: answers from earlier sessions.
        stored: replies from the cache.
        usage: tokens and calls, earlier sessions included.
        cost_usd: dollars, earlier sessions included, or None if a price is not known.
        seconds: wall time of this session.
        labels: column → value → rows, for columns with at most 50 different values.
        agreement: mean agreement of several opinions, or None for a single one.
        output: the file that was written, or None.
        dead_letters: the file with the failed rows and their reasons, or None if no row failed.
        journal: the file from which a further session resumes, or None.
    """

    rows: int
    answered: int
    by_rule: int
    failed: int
    failures: Mapping[str, int]
    asked: int
    resumed: int
    stored: int
    usage: Usage
    cost_usd: float | None
    seconds: float
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    agreement: float | None = None
    in_doubt: int = 0
    unjudged: int = 0
    problem: str = ""
    output: Path | None = None
    dead_letters: Path | None = None
    journal: Path | None = None

    def __str__(self) -> str:
        cost = "price unknown" if self.cost_usd is None else f"${self.cost_usd:,.4f}"
        lines = [
            f"{counted(self.rows, 'row')}: {self.answered:,} answered, {self.failed:,} failed, {self.by_rule:,} without a model",
            (
                f"{counted(self.usage.calls, 'call')}, {counted(self.usage.total_tokens, 'token')}, {cost}, "
                f"{self.seconds:,.1f} s; {counted(self.resumed, 'answer')} resumed, "
                f"{counted(self.stored, 'reply')} from the cache"
            ),
        ]
        if self.agreement is not None:
            lines.append(f"agreement of the opinions: {self.agreement:.1%}")
        if self.in_doubt:
            lines.append(f"still in doubt, with no answer to the escalation: {counted(self.in_doubt, 'row')}")
        if self.unjudged:
            lines.append(
                f"escalated without a decision of the rule: {counted(self.unjudged, 'row')}, the first because {self.problem}"
            )
        for name, counts in self.labels.items():
            total = sum(counts.values())
            shown = [
                f"{value} {number:,} ({number / total:.1%})" for value, number in list(counts.items())[:10]
            ]
            more = f", and {len(counts) - 10} more" if len(counts) > 10 else ""  # noqa: PLR2004
            lines.append(f"{name}: {', '.join(shown)}{more}")
        for kind, number in self.failures.items():
            lines.append(f"failed by {kind}: {number:,}")
        if self.output is not None:
            lines.append(f"written: {self.output}")
        if self.dead_letters is not None:
            lines.append(f"failed rows: {self.dead_letters}; ask them again with --retry {self.dead_letters}")
        return "\n".join(lines)


def total(reports: Iterable[JobReport]) -> JobReport:
    """Return the sum of several reports.

    Its `seconds` are the sum over the jobs, more than the wall time of jobs that ran at once. `labels` has the columns
    that every job with answers has counts for, `agreement` is the mean by row, and it names no files.
    """
    each = tuple(reports)
    failures = sum((Counter(one.failures) for one in each), Counter[str]())
    costs = [one.cost_usd for one in each]
    return JobReport(
        rows=sum(one.rows for one in each),
        answered=sum(one.answered for one in each),
        by_rule=sum(one.by_rule for one in each),
        failed=sum(one.failed for one in each),
        failures=dict(failures.most_common()),
        asked=sum(one.asked for one in each),
        resumed=sum(one.resumed for one in each),
        stored=sum(one.stored for one in each),
        usage=reduce(add, (one.usage for one in each), Usage()),
        cost_usd=None if None in costs else sum(filter(None, costs)),
        seconds=sum(one.seconds for one in each),
        labels=_labels_of_all([one.labels for one in each if one.answered]),
        in_doubt=sum(one.in_doubt for one in each),
        unjudged=sum(one.unjudged for one in each),
        problem=next((one.problem for one in each if one.problem), ""),
        agreement=_mean([(one.agreement, one.answered - one.by_rule) for one in each]),
    )


def _labels_of_all(tables: Sequence[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """Return the sums of the columns that all tables have; a table lacks those with too many values."""
    columns = [name for name in tables[0] if all(name in table for table in tables)] if tables else []
    sums = {name: sum((Counter(table[name]) for table in tables), Counter[str]()) for name in columns}
    return {name: dict(counts.most_common()) for name, counts in sums.items() if len(counts) <= MOST_LABELS}


def _mean(weighted: Sequence[tuple[float | None, int]]) -> float | None:
    known = [(value, weight) for value, weight in weighted if value is not None]
    weights = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / weights if weights else None
