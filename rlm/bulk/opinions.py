"""Vote of several opinions on one row: the answer of the majority, and how far the opinions agree; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from rlm.structured.json_text import canonical
from rlm.structured.leftovers import Mapped

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Consensus", "consensus_of", "vote"]


@dataclass(frozen=True, slots=True)
class Consensus:
    """Answer of the majority of the opinions on one row.

    Attributes:
        mapped: the answer, or the first failure if no opinion is an answer.
        agreement: share of the answers that agree with it, or None for a single opinion or no answer.
    """

    mapped: Mapped
    agreement: float | None = None


def consensus_of(opinions: Sequence[Mapped]) -> Consensus:
    """Return the consensus of at least one opinion, of which some may have failed."""
    answers = [opinion.value for opinion in opinions if not opinion.failed]
    if len(opinions) == 1 or not answers:
        return Consensus(opinions[0])
    value, agreement = vote(answers)
    return Consensus(Mapped(value), agreement)


def vote(answers: Sequence[Any]) -> tuple[Any, float]:
    """Return the answer of the majority, and the share of answers that agree with it, from 0 to 1.

    Objects are voted on property by property; the share is then that of the most disputed property, except numbers
    such as scores, of which the median is the answer. Among answers with equally many votes, the earliest wins.
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
    keys = [canonical(value) for value in values]
    winner = max(dict.fromkeys(keys), key=keys.count)
    return values[keys.index(winner)], keys.count(winner) / len(values)


def _are_numbers(values: Sequence[Any]) -> bool:
    kinds = {type(value) for value in values}
    return kinds <= {int, float} and float in kinds
