"""Counts of one session of a job, the progress reported from them, and the failures that end the job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anyio

from rlm import errors
from rlm.bulk.checkpoint import TRANSIENT
from rlm.bulk.report import JobProgress
from rlm.errors import JobStopped
from rlm.events import CallFinished, CallRetried

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rlm.events import Event
    from rlm.scheduler.ledger import Ledger
    from rlm.structured.leftovers import Mapped
    from rlm.values import Reply

__all__ = ["ProgressReporter", "SessionCounts"]

REPORT_SECONDS: Final = 0.1
ALL_FAILED: Final = 20
"""Failures without a single answer before them that end a job: the model cannot do what is asked."""


@dataclass(slots=True)
class SessionCounts:
    """Counts of what this session has settled.

    Attributes:
        settled: answers and failures of all stages.
        settled_before: `settled` at the start of the current pass.
        opinions: answers and failures of opinions.
        failed: opinions without an answer, except those that the escalation model has answered.
        escalations_failed: rows in doubt that the escalation model did not answer.
        free: rows of the current pass that needed no call.
        latency_s: sum of the latencies of all replies.
        last_failure: kind and reason.
        only_transient: True while no failure was the fault of a row.
    """

    settled: int = 0
    settled_before: int = 0
    opinions: int = 0
    failed: int = 0
    escalations_failed: int = 0
    free: int = 0
    latency_s: float = 0.0
    last_failure: tuple[str, str] = ("", "")
    only_transient: bool = True

    def start_pass(self) -> None:
        """Count the rows of another reading of the input."""
        self.free = 0
        self.settled_before = self.settled

    def add(self, settled: Sequence[tuple[int, Mapped]], reply: Reply | None) -> None:
        """Count what a call for an opinion has settled."""
        self._add(settled, reply)
        self.opinions += len(settled)
        self.failed += sum(mapped.failed for _, mapped in settled)

    def add_escalated(
        self, settled: Sequence[tuple[int, Mapped]], reply: Reply | None, *, rescued: int
    ) -> None:
        """Count what a call about rows in doubt has settled; `rescued` rows had no answer before."""
        self._add(settled, reply)
        self.failed -= rescued
        self.escalations_failed += sum(mapped.failed for _, mapped in settled)

    def require_hope(self, *, escalates: bool) -> None:
        """End a job in which no row gets an answer.

        Raises:
            JobStopped: the first rows have all failed.
        """
        attempts = self.escalations_failed if escalates else self.failed
        if attempts < ALL_FAILED or self.failed < self.opinions:
            return
        kind, reason = self.last_failure
        failed = f"stopped: none of the first {self.opinions:,} rows got an answer; the last one failed by {kind}: {reason}"
        if self.only_transient:
            cause = getattr(errors, kind)(reason)
            raise JobStopped(f"{failed}. The endpoint is in trouble: resume when it answers", cause=cause)
        raise JobStopped(f"{failed}. Change the prompt, the schema or the model, and begin anew")

    def unreached(self) -> JobStopped | None:
        """Return the error of a session in which the endpoint answered no call at all, or None."""
        if not self.settled or self.failed < self.opinions or not self.only_transient:
            return None
        kind, reason = self.last_failure
        return JobStopped(
            f"stopped: no row got an answer; the last one failed by {kind}: {reason}. Resume to ask them again",
            cause=getattr(errors, kind)(reason),
        )

    def _add(self, settled: Sequence[tuple[int, Mapped]], reply: Reply | None) -> None:
        self.settled += len(settled)
        self.latency_s += reply.latency_s if reply is not None else 0.0
        for _, mapped in settled:
            if mapped.failed:
                self.last_failure = (mapped.kind, mapped.reason)
                self.only_transient = self.only_transient and mapped.kind in TRANSIENT


class ProgressReporter:
    """Passes the progress of a job to its `on_progress`, at most ten times a second.

    Attributes:
        total: rows to settle, once for each opinion.
        ledger: ledger of the job; set before the first call.
        in_flight_limit: returns how many calls may be in flight now; set before the first call.
    """

    def __init__(self, counts: SessionCounts, on_progress: Callable[[JobProgress], None] | None) -> None:
        self.total = 0
        self.ledger: Ledger
        self.in_flight_limit: Callable[[], int]
        self._counts = counts
        self._on_progress = on_progress
        self._started = anyio.current_time()
        self._reported_at = float("-inf")
        self._trouble = ""

    def listen(self, event: Event) -> None:
        """Report calls that are retried, so that a provider in trouble is visible."""
        match event:
            case CallRetried():
                self._trouble = event.error
                self.report()
            case CallFinished():
                self._trouble = ""
            case _:
                pass

    def exclude(self, seconds: float) -> None:
        """Leave out a time in which the job waited for its user."""
        self._started += seconds

    def report(self, *, at_once: bool = False) -> None:
        """Report, unless the last report was a moment ago and `at_once` is False."""
        now = anyio.current_time()
        if self._on_progress is None or (now - self._reported_at < REPORT_SECONDS and not at_once):
            return
        self._reported_at = now
        counts = self._counts
        self._on_progress(
            JobProgress(
                rows=counts.free + counts.settled - counts.settled_before,
                total=self.total,
                settled=counts.settled,
                failed=counts.failed,
                seconds=now - self._started,
                tokens=self.ledger.usage.total_tokens,
                max_concurrent=self.in_flight_limit(),
                cost_usd=self.ledger.cost_usd,
                budget_usd=self.ledger.budget.dollars,
                trouble=self._trouble,
            )
        )
