"""Count of the prompts from cells that failed, over a whole tree of runs.

A cell that skips failed slots gives an answer that looks complete, so the run warns the user.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final, TypeVar

from rlm.clients.error_mapping import redact
from rlm.wording import clipped, counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["PromptFailures"]

Slots = TypeVar("Slots", bound="Sequence[Mapping[str, Any]]")

SHOWN_CHARS: Final = 200
"""Length to which the first error is cut in the summary."""


class PromptFailures:
    """Counts prompts, items of a map and child runs, each once, and those that failed by the kind of error."""

    def __init__(self) -> None:
        self.prompts = 0
        self.failures: Counter[str] = Counter()
        self.first_error = ""

    def count_answer(self) -> None:
        """Count one prompt that was answered."""
        self.prompts += 1

    def count_slots(self, slots: Slots) -> Slots:
        """Count the results of a host call for many answers, and return them; a failed slot has a `kind`."""
        self.prompts += len(slots)
        for slot in slots:
            if "kind" in slot:
                self._add(slot["kind"], slot["error"])
        return slots

    def count_failure(self, error: Exception) -> None:
        """Count one prompt that failed."""
        self.prompts += 1
        self._add(type(error).__name__, str(error))

    def summary(self) -> str:
        """Return `3 of 40 prompts to sub-models failed: RateLimited (2), Refused (1); the first: …`, or ""."""
        if not self.failures:
            return ""
        kinds = ", ".join(f"{kind} ({number:,})" for kind, number in self.failures.most_common())
        error = " ".join(self.first_error.split())
        first = f"; the first: {clipped(error, SHOWN_CHARS)}" if error else ""
        return f"{self.failures.total():,} of {counted(self.prompts, 'prompt')} to sub-models failed: {kinds}{first}"

    def _add(self, kind: str, error: str) -> None:
        self.failures[kind] += 1
        self.first_error = self.first_error or redact(error)
