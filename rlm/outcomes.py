"""How many of the prompts that cells gave to sub-models failed, over a whole tree of runs, and why.

A cell that skips a slot that failed gives an answer that looks like any other: the user is told.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Outcomes"]


class Outcomes:
    """Counts prompts, items of a map and child runs, each once, however often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.failures: Counter[str] = Counter()

    def note_answer(self) -> None:
        """A host call for one answer has it."""
        self.asked += 1

    def note_slots(self, slots: Sequence[Mapping[str, Any]]) -> None:
        """A host call for many answers was served; a slot that failed has the `kind` of its error."""
        self.asked += len(slots)
        self.failures.update(slot["kind"] for slot in slots if "kind" in slot)

    def note_failure(self, error: Exception) -> None:
        """A host call for one answer failed."""
        self.asked += 1
        self.failures[type(error).__name__] += 1

    def in_words(self) -> str:
        """`3 of 40 prompts to sub-models failed: RateLimited (2), Refused (1)`, or '' where none did."""
        if not self.failures:
            return ""
        why = ", ".join(f"{kind} ({number:,})" for kind, number in self.failures.most_common())
        prompts = "prompt" if self.asked == 1 else "prompts"
        return f"{self.failures.total():,} of {self.asked:,} {prompts} to sub-models failed: {why}"
