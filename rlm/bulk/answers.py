"""Outcomes of all stages of a job → what is written for a row; pure.

The opinions come to a verdict; where that is in doubt, the model for rows in doubt has the last word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from rlm.bulk.opinions import Verdict, verdict_of
from rlm.bulk.output import Answer
from rlm.bulk.rules import read_expression
from rlm.bulk.survey import check_rule
from rlm.errors import InputError
from rlm.structured.map import Mapped
from rlm.structured.schema import schema_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from rlm.bulk.io.formats import Row
    from rlm.bulk.job import Job

__all__ = ["Answers", "OutcomeOf"]

OutcomeOf: TypeAlias = "Callable[[int, int], Mapped | None]"
"""Stage and key → the outcome, or None where it is not settled: `Checkpoint.outcome`."""

NEVER_ASKED: Final = Mapped(
    kind=InputError.__name__,
    reason="the input changed while the job ran, and this row was never asked: resume",
)


class Answers:
    """What becomes of the outcomes of a job.

    Attributes:
        columns: those that the answers add to a row.

    Raises:
        InputError: the expression that tells what is in doubt cannot be read.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._votes = len(job.opinions)
        self._properties = () if job.schema is None else schema_of(job.schema).properties
        self._escalate_when = None if job.escalate_when is None else read_expression(job.escalate_when)
        self._own = self._properties or (job.column,)
        self._beside = _columns_beside(job)
        self.columns = (*self._own, *self._beside)

    def check(self, fields: Collection[str], name: str) -> None:
        """Make sure that the columns of the answers have a place beside the fields of the rows.

        Raises:
            InputError: they have not, or the expression that tells what is in doubt asks for others.
        """
        judged = [column for column in self.columns if column != "escalated"]
        check_rule(self._job.escalate_when, judged, "an answer of this job")
        for column in self._beside:
            if column in self._own:
                raise InputError(
                    f"an answer has a property {column!r}, which is the name of a column that tells how the answers came "
                    "about: give it another name"
                )
        for column in self.columns:
            if column in fields:
                raise InputError(
                    f"{name} already has a column {column!r}, which the answers would replace: "
                    "give the answers another name in the schema, or rename the column"
                )

    def of_rule(self, mapped: Mapped) -> Answer:
        """What is written for a row that no model is asked about."""
        return Answer(mapped, self._row(mapped), by_rule=True)

    def of_models(self, key: int, outcome: OutcomeOf, *, is_final: bool = False) -> Answer | None:
        """What is written for a row with this key, or None where one who is asked about it may still answer."""
        if not self._beside:  # a single opinion, and nobody to hand on to: a million times in a large job
            only = outcome(0, key) or (NEVER_ASKED if is_final else None)
            return None if only is None else Answer(only, self._row(only))
        verdict = self._verdict(key, outcome, is_final=is_final)
        if verdict is None:
            return None
        mapped, agreement = verdict.mapped, verdict.agreement
        is_in_doubt, problem = self._judge(verdict)
        if not is_in_doubt:
            return Answer(mapped, self._row(mapped, agreement=agreement), agreement=agreement)
        last = outcome(self._votes, key)
        if last is None and not is_final:
            return None
        is_answered = last is not None and not last.failed
        if last is not None and is_answered:
            mapped = last
        row = self._row(mapped, agreement=agreement, is_escalated=is_answered)
        return Answer(mapped, row, agreement=agreement, in_doubt=not is_answered, problem=problem)

    def are_in_doubt(self, key: int, outcome: OutcomeOf) -> bool:
        """Whether the model for rows in doubt is to be asked, now that the opinions are there."""
        verdict = self._verdict(key, outcome, is_final=True)
        return verdict is not None and self._judge(verdict)[0]

    def are_missing(self, key: int, outcome: OutcomeOf) -> bool:
        """Whether no opinion is an answer."""
        verdict = self._verdict(key, outcome, is_final=True)
        return verdict is not None and verdict.mapped.failed

    def _verdict(self, key: int, outcome: OutcomeOf, *, is_final: bool) -> Verdict | None:
        """What the opinions come to, or None where one of them may still come."""
        outcomes = []
        for opinion in range(self._votes):
            one = outcome(opinion, key)
            if one is None and not is_final:
                return None
            outcomes.append(one or NEVER_ASKED)
        return verdict_of(outcomes)

    def _judge(self, verdict: Verdict) -> tuple[bool, str]:
        """Whether a verdict is in doubt, and why that could not be told where it could not."""
        if self._job.escalate_to is None:
            return False, ""
        if verdict.mapped.failed:
            return True, ""
        if self._escalate_when is None:
            return verdict.agreement is not None and verdict.agreement < 1, ""
        row = self._row(verdict.mapped, agreement=verdict.agreement)
        try:
            return bool(self._escalate_when(row)), ""
        except InputError as error:
            return True, f"{error}, here {row}"

    def _row(self, mapped: Mapped, *, agreement: float | None = None, is_escalated: bool = False) -> Row:
        """The columns of an answer."""
        value = mapped.value
        if self._properties:
            columns = {name: (value or {}).get(name) for name in self._properties}
        else:
            columns = {self._job.column: value}
        if not self._beside:
            return columns
        beside = {"agreement": agreement, "escalated": is_escalated}
        return columns | {name: beside[name] for name in self._beside}


def _columns_beside(job: Job) -> tuple[str, ...]:
    """The columns that tell how an answer came about."""
    agreement = ("agreement",) if len(job.opinions) > 1 else ()
    return (*agreement, "escalated") if job.escalate_to else agreement
