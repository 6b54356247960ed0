"""How many of the prompts that cells gave to sub-models failed, over a whole tree of runs, and why.

A cell that skips a slot that failed gives an answer that looks like any other: the user is told.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from rlm.wording import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Outcomes"]

SHOWN_CHARS: Final = 200
"""How much of an error is told."""


class Outcomes:
    """Counts prompts, items of a map and child runs, each once, however often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.failures: Counter[str] = Counter()
        self.first_error = ""

    def note_answer(self) -> None:
        """A host call for one answer has it."""
        self.asked += 1

    def note_slots(self, slots: Sequence[Mapping[str, Any]]) -> None:
        """A host call for many answers was served; a slot that failed has the `kind` of its error."""
        self.asked += len(slots)
        for slot in slots:
            if "kind" in slot:
                self._note_error(slot["kind"], slot["error"])

    def note_failure(self, error: Exception) -> None:
        """A host call for one answer failed."""
        self.asked += 1
        self._note_error(type(error).__name__, str(error))

    def in_words(self) -> str:
        """`3 of 40 prompts to sub-models failed: RateLimited (2), Refused (1); the first: …`, or '' where none did."""
        if not self.failures:
            return ""
        why = ", ".join(f"{kind} ({number:,})" for kind, number in self.failures.most_common())
        error = " ".join(self.first_error.split())
        clipped = error if len(error) <= SHOWN_CHARS else f"{error[: SHOWN_CHARS - 1]}…"
        first = f"; the first: {clipped}" if clipped else ""
        return (
            f"{self.failures.total():,} of {counted(self.asked, 'prompt')} to sub-models failed: {why}{first}"
        )

    def _note_error(self, kind: str, error: str) -> None:
        self.failures[kind] += 1
        self.first_error = self.first_error or error
