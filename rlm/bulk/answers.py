"""From the outcomes of all stages of a job to the result of a row; no I/O.

The opinions are merged to a consensus; if that is in doubt, the answer of the escalation model replaces it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from rlm.bulk.opinions import Consensus, consensus_of
from rlm.bulk.output import RowResult
from rlm.bulk.rules import read_expression
from rlm.bulk.survey import check_rule
from rlm.errors import InputError
from rlm.structured.leftovers import Mapped
from rlm.structured.schema import schema_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from rlm.bulk.io.rows import Row
    from rlm.bulk.job import Job

__all__ = ["AnswerResolver", "MappedAt"]

MappedAt: TypeAlias = "Callable[[int, int], Mapped | None]"
"""Function of stage and key that returns the answer or failure, or None while it is open: `Checkpoint.mapped`."""

NEVER_ASKED: Final = Mapped(
    kind=InputError.__name__,
    reason="the input changed while the job ran, and this row was never asked: resume",
)


class AnswerResolver:
    """Turns the outcomes of a job's stages into results of rows.

    Attributes:
        columns: the columns that answers add to a row.

    Raises:
        InputError: `escalate_when` cannot be parsed.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._opinions = len(job.opinions)
        self._properties = () if job.schema is None else schema_of(job.schema).properties
        self._escalate_when = None if job.escalate_when is None else read_expression(job.escalate_when)
        self._answer_columns = self._properties or (job.column,)
        self._status_columns = _status_columns(job)
        self.columns = (*self._answer_columns, *self._status_columns)

    def check(self, fields: Collection[str], name: str) -> None:
        """Require that the new columns differ from each other and from the fields of the input.

        Raises:
            InputError: they do not, or `escalate_when` uses a column that answers do not have.
        """
        judged = [column for column in self.columns if column != "escalated"]
        check_rule(self._job.escalate_when, judged, "an answer of this job")
        for column in self._status_columns:
            if column in self._answer_columns:
                raise InputError(
                    f"an answer has a property {column!r}, which is the name of a column that the job adds itself: give "
                    "the property another name"
                )
        for column in self.columns:
            if column in fields:
                raise InputError(
                    f"{name} already has a column {column!r}, which the answers would replace: "
                    "give the answers another name in the schema, or rename the column"
                )

    def of_rule(self, mapped: Mapped) -> RowResult:
        """Return the result of a row that needed no model."""
        return RowResult(mapped, self._columns_of(mapped), by_rule=True)

    def of_models(self, key: int, mapped_at: MappedAt, *, is_final: bool = False) -> RowResult | None:
        """Return the result of the rows with this key, or None while a model may still answer."""
        if not self._status_columns:  # fast path: one opinion and no escalation
            only = mapped_at(0, key) or (NEVER_ASKED if is_final else None)
            return None if only is None else RowResult(only, self._columns_of(only))
        consensus = self._consensus(key, mapped_at, is_final=is_final)
        if consensus is None:
            return None
        mapped, agreement = consensus.mapped, consensus.agreement
        is_in_doubt, problem = self._judge(consensus)
        if not is_in_doubt:
            return RowResult(mapped, self._columns_of(mapped, agreement=agreement), agreement=agreement)
        escalated = mapped_at(self._opinions, key)
        if escalated is None and not is_final:
            return None
        is_answered = escalated is not None and not escalated.failed
        if escalated is not None and is_answered:
            mapped = escalated
        columns = self._columns_of(mapped, agreement=agreement, is_escalated=is_answered)
        return RowResult(mapped, columns, agreement=agreement, in_doubt=not is_answered, rule_problem=problem)

    def is_in_doubt(self, key: int, mapped_at: MappedAt) -> bool:
        """Return True if the escalation model is to be asked, once all opinions have been given."""
        consensus = self._consensus(key, mapped_at, is_final=True)
        return consensus is not None and self._judge(consensus)[0]

    def has_no_opinion(self, key: int, mapped_at: MappedAt) -> bool:
        """Return True if all opinions failed."""
        consensus = self._consensus(key, mapped_at, is_final=True)
        return consensus is not None and consensus.mapped.failed

    def _consensus(self, key: int, mapped_at: MappedAt, *, is_final: bool) -> Consensus | None:
        """Return the consensus, or None while an opinion may still be given."""
        opinions = []
        for stage in range(self._opinions):
            opinion = mapped_at(stage, key)
            if opinion is None and not is_final:
                return None
            opinions.append(opinion or NEVER_ASKED)
        return consensus_of(opinions)

    def _judge(self, consensus: Consensus) -> tuple[bool, str]:
        """Return True if a consensus is in doubt, and why `escalate_when` failed for it, else ''."""
        if self._job.escalate_to is None:
            return False, ""
        if consensus.mapped.failed:
            return True, ""
        if self._escalate_when is None:
            return consensus.agreement is not None and consensus.agreement < 1, ""
        columns = self._columns_of(consensus.mapped, agreement=consensus.agreement)
        try:
            return bool(self._escalate_when(columns)), ""
        except InputError as error:
            return True, f"{error}, here {columns}"

    def _columns_of(
        self, mapped: Mapped, *, agreement: float | None = None, is_escalated: bool = False
    ) -> Row:
        if self._properties:
            columns = {name: (mapped.value or {}).get(name) for name in self._properties}
        else:
            columns = {self._job.column: mapped.value}
        if not self._status_columns:
            return columns
        status = {"agreement": agreement, "escalated": is_escalated}
        return columns | {name: status[name] for name in self._status_columns}


def _status_columns(job: Job) -> tuple[str, ...]:
    """Return the columns that say how an answer was found."""
    agreement = ("agreement",) if len(job.opinions) > 1 else ()
    return (*agreement, "escalated") if job.escalate_to else agreement
