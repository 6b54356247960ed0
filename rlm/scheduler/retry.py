"""Whether a failed call is asked again, and after how long."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from rlm.errors import CallError, ConnectionFailed, RateLimited, TransientError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm.settings import SchedulerSettings

__all__ = ["Retries"]

ATTEMPTS_WITHOUT_CONNECTION = 3


class Retries:
    """The retries of one tree of runs; no clock, no I/O.

    Exponential backoff with full jitter (Brooker, "Exponential Backoff And Jitter", 2015). Only a
    `TransientError` is asked again. A rate limit is no failure of the endpoint: it is waited out as
    long as there is patience. All other retries come out of one purse for the tree, refilled by answers, so that an outage is not
    multiplied by the attempts of every call in it.
    """

    def __init__(
        self, settings: SchedulerSettings, jitter: Callable[[float, float], float] = random.uniform
    ) -> None:
        self._settings = settings
        self._jitter = jitter
        self._purse = settings.retry_budget

    @property
    def left(self) -> int:
        """How many retries the tree has in hand."""
        return self._purse

    def wait_before_next(
        self, error: CallError, *, failures: int, waited_s: float, ever_answered: bool
    ) -> float | None:
        """Seconds to wait before the call is asked again, or None where it is not.

        Args:
            error: how the last attempt failed.
            failures: attempts of the call so far, all failed.
            waited_s: seconds the call has waited so far to be asked again.
            ever_answered: whether the endpoint was ever heard of; a wrong address is not worth many tries.
        """
        if not isinstance(error, TransientError) or not self._may_ask_again(error, failures, ever_answered):
            return None
        wait_s = self._backoff(error, failures)
        if waited_s + wait_s > self._settings.retry_patience_s:
            return None
        if not isinstance(error, RateLimited):
            self._purse -= 1
        return wait_s

    def answered(self) -> None:
        """An answer came: the endpoint is worth one more retry."""
        self._purse = min(self._purse + 1, 2 * self._settings.retry_budget)

    def _may_ask_again(self, error: TransientError, failures: int, ever_answered: bool) -> bool:
        if isinstance(error, RateLimited):
            return True
        if isinstance(error, ConnectionFailed) and not error.sent and not ever_answered:
            attempts = min(ATTEMPTS_WITHOUT_CONNECTION, self._settings.max_attempts)
        else:
            attempts = self._settings.max_attempts
        return failures < attempts and self._purse > 0

    def _backoff(self, error: TransientError, failures: int) -> float:
        settings = self._settings
        # 2 ** 30 is past any backoff, and keeps a call that is rate limited for ever from overflowing a float.
        longest = min(settings.first_backoff_s * 2 ** min(failures - 1, 30), settings.longest_backoff_s)
        if error.retry_after is None:
            return self._jitter(0.0, longest)
        # A little later than asked for, so that all who were told the same moment do not come back in it.
        return max(error.retry_after, 0.0) + self._jitter(0.0, settings.first_backoff_s)
