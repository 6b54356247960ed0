"""Several answers to one question → one: the majority, and how far they agree; pure."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from rlm.structured.map import Mapped
from rlm.structured.packs import canonical

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Verdict", "verdict_of", "vote"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the opinions on one question come to.

    Attributes:
        mapped: the answer of the majority, or why there is none.
        agreement: the share of answers that agree with it, or None where one opinion was asked for or none answered.
    """

    mapped: Mapped
    agreement: float | None = None


def verdict_of(outcomes: Sequence[Mapped]) -> Verdict:
    """The verdict of opinions, of which some may have failed, but which are at least one."""
    answers = [outcome.value for outcome in outcomes if not outcome.failed]
    if len(outcomes) == 1 or not answers:
        return Verdict(outcomes[0])
    value, agreement = vote(answers)
    return Verdict(Mapped(value), agreement)


def vote(answers: Sequence[Any]) -> tuple[Any, float]:
    """The answer of the majority, and the share of answers that agree with it, from 0 to 1.

    Objects are voted on property by property; the share is then that of the property most in dispute, apart from
    numbers such as scores, of which the median is taken. Where two answers have as many votes, the earlier wins.
    """
    if not answers:
        raise ValueError("there is nothing to vote on")
    if all(isinstance(answer, dict) for answer in answers):
        names = list(dict.fromkeys(name for answer in answers for name in answer))
        votes = {name: _vote_on_one([answer.get(name) for answer in answers]) for name in names}
        shares = [
            share for name, (_, share) in votes.items() if not _are_numbers([a.get(name) for a in answers])
        ]
        return {name: value for name, (value, _) in votes.items()}, min(shares, default=1.0)
    return _vote_on_one(answers)


def _vote_on_one(values: Sequence[Any]) -> tuple[Any, float]:
    if _are_numbers(values):
        middle = median(values)
        return middle, sum(value == middle for value in values) / len(values)
    counts: dict[str, int] = {}
    for value in values:
        counts[canonical(value)] = counts.get(canonical(value), 0) + 1
    winner = max(counts, key=counts.__getitem__)
    value = next(value for value in values if canonical(value) == winner)
    return value, counts[winner] / len(values)


def _are_numbers(values: Sequence[Any]) -> bool:
    kinds = {type(value) for value in values}
    return kinds <= {int, float} and float in kinds
