"""Rows → what is asked about each, or what a rule says of it without a model; no I/O but what a rule does itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rlm.bulk.checkpoint import key_of
from rlm.bulk.rules import Rule, fields_of, read_expression
from rlm.bulk.templates import read_template
from rlm.errors import InputError
from rlm.structured.map import Mapped
from rlm.structured.packs import Task
from rlm.structured.schema import schema_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from rlm.bulk.io.formats import Row
    from rlm.bulk.job import Job

__all__ = ["Asked", "Decided", "Questions", "Survey", "check_rule"]

ROWS_TRIED: Final = 20
"""Rows at the start, for one of which at least a rule has to work."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What reading every row told: how many there are, and their fields."""

    rows: int
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """One row that is to be asked about: `key` is the hash of `content`, so that equal rows share an answer."""

    key: int
    content: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Decided:
    """One row that no model is asked about, with what a rule says of it."""

    mapped: Mapped


class Questions:
    """What a job asks.

    Args:
        job: the job.
        rule: answers obvious rows: gives the answer, or None for a row that is to be asked.

    Attributes:
        task: what is asked of each row, for packing.

    Raises:
        InputError: the prompt or the expression to skip rows cannot be read.
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
            InputError: there are none, or prompt and rules do not fit them; `name` tells whose they are.
        """
        fields: dict[str, None] = {}
        count = 0
        problems: list[InputError] = []
        for row in rows:
            if count < ROWS_TRIED and self._skip_when is not None:
                problems += _tried(self._skip_when, row)
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

    def about(self, row: Row) -> Asked | Decided:
        """Whether a row is asked about; the same for the same row, whenever it is read."""
        try:
            content = self._template.content(row)
            if self._skip_when is not None and self._skip_when(row):
                return Decided(Mapped())
            answer = None if self._rule is None else _told_by(self._rule, row)
            if answer is not None:
                return Decided(self._checked(answer))
        except InputError as error:
            return Decided(Mapped(kind=InputError.__name__, reason=str(error)))
        return Asked(key_of(content), content)

    def _checked(self, answer: Any) -> Mapped:
        problem = self._schema.check(answer) if self._schema is not None else ""
        if problem:
            return Mapped(
                kind=InputError.__name__, reason=f"the rule's answer does not meet the schema: {problem}"
            )
        return Mapped(answer)


def check_rule(rule: str | None, available: Collection[str], of: str) -> None:
    """Make sure that what an expression asks for is there.

    Raises:
        InputError: a field is not.
    """
    for name in () if rule is None else fields_of(rule):
        if name not in available:
            raise InputError(
                f"the rule {rule!r} asks for the field {name!r}, and the fields of {of} are {', '.join(available)}"
            )


def _tried(rule: Rule, row: Row) -> list[InputError]:
    """What is wrong with a rule for this row, if anything."""
    try:
        rule(row)
    except InputError as error:
        return [error]
    return []


def _told_by(rule: Callable[[Row], Any], row: Row) -> Any:
    """What a rule says of a row, which it may do with what it likes.

    Raises:
        InputError: it fails; a single odd row of a million is then the only one without an answer.
    """
    try:
        return rule(dict(row))
    except (Exception, SystemExit) as error:  # somebody else's function
        raise InputError(f"the rule fails for the row: {type(error).__name__}: {error}") from error
