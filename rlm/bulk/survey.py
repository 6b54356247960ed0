"""Planning of a job: the request about each row, or the answer of a rule. No I/O, except by the rule of the caller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rlm.bulk.checkpoint import key_of
from rlm.bulk.rules import Rule, fields_of, read_expression
from rlm.bulk.templates import read_template
from rlm.errors import InputError
from rlm.structured.leftovers import Mapped
from rlm.structured.packs import Task
from rlm.structured.schema import schema_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from rlm.bulk.io.rows import Row
    from rlm.bulk.job import Job

__all__ = ["PlannedRow", "RowPlanner", "SkippedByRule", "Survey", "check_rule"]

ROWS_TRIED: Final = 20
"""Rows at the start on which `skip_when` is tried; it must work for at least one."""


@dataclass(frozen=True, slots=True)
class Survey:
    """Number of rows and names of their fields, from reading every row once."""

    rows: int
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """A row for a model: `key` is the hash of `content`, so that equal rows share an answer."""

    key: int
    content: dict[str, Any]


@dataclass(frozen=True, slots=True)
class SkippedByRule:
    """A row that needs no model, with the answer of the rule or why the rule failed."""

    mapped: Mapped


class RowPlanner:
    """Decides for each row whether a model is asked about it, and with which content.

    Args:
        job: the job.
        rule: the caller's function that answers obvious rows; None for a row means: ask a model.

    Attributes:
        task: instruction and schema of the packs.

    Raises:
        InputError: the prompt or `skip_when` cannot be parsed.
    """

    def __init__(self, job: Job, rule: Callable[[Row], Any] | None) -> None:
        self._job = job
        self._rule = rule
        self._template = read_template(job.prompt)
        self._schema = None if job.schema is None else schema_of(job.schema)
        self._skip_when = None if job.skip_when is None else read_expression(job.skip_when)
        self.task = Task(self._template.instruction, self._schema, single=self._template.render)

    def survey(self, rows: Iterable[Row], name: str) -> Survey:
        """Read every row once, before anything is spent.

        Raises:
            InputError: there are no rows, or prompt and rules do not fit them; the message uses `name` for the input.
        """
        fields: dict[str, None] = {}
        count = 0
        problems: list[InputError] = []
        for row in rows:
            if count < ROWS_TRIED and self._skip_when is not None:
                problems += _problems_of(self._skip_when, row)
            count += 1
            if row.keys() != fields.keys():
                fields.update(dict.fromkeys(row))
        if not count:
            raise InputError(f"{name} has no rows, so there is nothing to ask")
        self._template.check(fields, name)
        check_rule(self._job.skip_when, fields, name)
        if len(problems) == min(count, ROWS_TRIED):
            raise problems[0]
        return Survey(count, tuple(fields))

    def plan(self, row: Row) -> PlannedRow | SkippedByRule:
        """Return the same plan for the same row, each time it is read."""
        try:
            content = self._template.content(row)
            if self._skip_when is not None and self._skip_when(row):
                return SkippedByRule(Mapped())
            answer = None if self._rule is None else _apply(self._rule, row)
            if answer is not None:
                return SkippedByRule(self._checked(answer))
        except InputError as error:
            return SkippedByRule(Mapped(kind=InputError.__name__, reason=str(error)))
        return PlannedRow(key_of(content), content)

    def _checked(self, answer: Any) -> Mapped:
        problem = self._schema.check(answer) if self._schema is not None else ""
        if problem:
            return Mapped(
                kind=InputError.__name__, reason=f"the rule's answer does not meet the schema: {problem}"
            )
        return Mapped(answer)


def check_rule(rule: str | None, available: Collection[str], of: str) -> None:
    """Require that all fields in an expression are available.

    Raises:
        InputError: a field is not; the message uses `of` for the thing that has the fields.
    """
    for name in () if rule is None else fields_of(rule):
        if name not in available:
            raise InputError(
                f"the rule {rule!r} reads {name!r}, which is no field of {of}: the fields are {', '.join(available)}"
            )


def _problems_of(rule: Rule, row: Row) -> list[InputError]:
    """Return the error that a rule raises for this row, if any."""
    try:
        rule(row)
    except InputError as error:
        return [error]
    return []


def _apply(rule: Callable[[Row], Any], row: Row) -> Any:
    """Return the answer of the caller's rule for a copy of the row.

    Raises:
        InputError: the rule raises; so one odd row of a million fails alone.
    """
    try:
        return rule(dict(row))
    except (Exception, SystemExit) as error:  # the caller's function may raise anything
        raise InputError(f"the rule fails for the row: {type(error).__name__}: {error}") from error
