"""Decide whether a failed call is retried, and after how many seconds.

A `TransientError` is; which HTTP status becomes one is decided in `rlm/clients/error_mapping.py`.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from rlm.errors import CallError, ConnectionFailed, RateLimited, TransientError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm.settings import SchedulerSettings

__all__ = ["RetryPolicy"]

ATTEMPTS_WITHOUT_CONNECTION = 3


class RetryPolicy:
    """Retry policy of one tree of runs; no clock, no I/O.

    Exponential backoff with full jitter (Brooker, "Exponential Backoff And Jitter", 2015). Only a `TransientError` is
    retried. Rate limits do not count as failures; they are retried until `retry_patience_s`. All other retries
    come out of one retry budget for the tree, refilled by answers, so that an outage is not multiplied by the attempts
    of every call in the tree.
    """

    def __init__(
        self, settings: SchedulerSettings, jitter: Callable[[float, float], float] = random.uniform
    ) -> None:
        self._settings = settings
        self._jitter = jitter
        self._budget = settings.retry_budget

    def wait_before_next(
        self, error: CallError, *, failures: int, waited_s: float, ever_answered: bool
    ) -> float | None:
        """Return the seconds to wait before the retry, or None to give up.

        Args:
            error: error of the last attempt.
            failures: failed attempts of the call so far.
            waited_s: seconds the call has spent waiting for retries so far.
            ever_answered: whether the endpoint has ever answered; a wrong address is not worth many attempts.
        """
        if not isinstance(error, TransientError) or not self._may_retry(error, failures, ever_answered):
            return None
        wait_s = self._backoff(error, failures)
        if waited_s + wait_s > self._settings.retry_patience_s:
            return None
        if not isinstance(error, RateLimited):
            self._budget -= 1
        return wait_s

    def answered(self) -> None:
        """Record an answer: it adds one retry to the budget."""
        self._budget = min(self._budget + 1, 2 * self._settings.retry_budget)

    def _may_retry(self, error: TransientError, failures: int, ever_answered: bool) -> bool:
        if isinstance(error, RateLimited):
            return True
        if isinstance(error, ConnectionFailed) and not error.sent and not ever_answered:
            attempts = min(ATTEMPTS_WITHOUT_CONNECTION, self._settings.max_attempts)
        else:
            attempts = self._settings.max_attempts
        return failures < attempts and self._budget > 0

    def _backoff(self, error: TransientError, failures: int) -> float:
        settings = self._settings
        # 2 ** 30 is past any backoff, and keeps a call that is rate limited forever from overflowing a float.
        longest = min(settings.first_backoff_s * 2 ** min(failures - 1, 30), settings.longest_backoff_s)
        if error.retry_after is None:
            return self._jitter(0.0, longest)
        # A little later than requested, so that calls that were given the same time do not all return at once.
        return max(error.retry_after, 0.0) + self._jitter(0.0, settings.first_backoff_s)
