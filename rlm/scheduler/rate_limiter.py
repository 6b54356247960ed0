"""Limits of requests and tokens per minute: a call waits instead of being refused."""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from rlm._async.semaphore import FairSemaphore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Hashable

    from rlm.values import RateLimits

__all__ = ["RateLimiter", "SentAmounts", "Window"]

MINUTE = 60.0
ROUNDING = 1e-6  # seconds; without it, a clock that rounds down would make a call wait forever


class RateLimiter:
    """Keeps each model below its requests and tokens per minute, as set by the user or reported by its endpoint.

    In no 60 seconds are more requests sent than allowed. A minute's amount may be sent at once, so that a small job
    is not slowed down by a limit that it never reaches. A model without a known limit costs nothing here.
    """

    def __init__(
        self, *, requests_per_minute: float | None = None, tokens_per_minute: float | None = None
    ) -> None:
        self._requests_per_minute = requests_per_minute
        self._tokens_per_minute = tokens_per_minute
        self._paces: dict[str, _Pace] = {}

    def counts_tokens(self, model: str) -> bool:
        """Return True if the tokens of calls to this model are limited, so that they have to be counted."""
        return self._pace(model).tokens.is_limited

    @asynccontextmanager
    async def turn(self, model: str, group: Hashable, tokens: int) -> AsyncIterator[None]:
        """Wait until a call of this size may be sent, round robin between groups.

        Call `record` inside the context: the permission must not get old while its call waits for something else.
        """
        pace = self._pace(model)
        if not pace.is_limited:
            yield
            return
        await pace.semaphore.acquire(group)
        try:
            while (seconds := pace.delay(tokens, anyio.current_time())) > 0:
                pace.changed = anyio.Event()
                with anyio.move_on_after(seconds):
                    await pace.changed.wait()
            yield
        finally:
            pace.semaphore.release()

    def record(self, model: str, tokens: int) -> SentAmounts:
        """Record that a call is sent now; `correct` its tokens when they are known."""
        pace, now = self._pace(model), anyio.current_time()
        return SentAmounts(pace.requests.record(1, now), pace.tokens.record(tokens, now))

    def correct(self, model: str, sent: SentAmounts, tokens: int) -> None:
        """Replace the estimate of a call that was sent by its actual tokens."""
        pace = self._pace(model)
        pace.tokens.correct(sent.tokens, tokens)
        pace.changed.set()

    def update(self, model: str, reported: RateLimits) -> None:
        """Adopt the limits that an endpoint reports; a lower limit set by the user stays."""
        pace, now = self._pace(model), anyio.current_time()
        pace.requests.update(
            reported.requests_per_minute, reported.requests_remaining, reported.requests_reset_s, now
        )
        pace.tokens.update(
            reported.tokens_per_minute, reported.tokens_remaining, reported.tokens_reset_s, now
        )
        pace.changed.set()

    def _pace(self, model: str) -> _Pace:
        pace = self._paces.get(model)
        if pace is None:
            pace = _Pace(Window(self._requests_per_minute), Window(self._tokens_per_minute))
            self._paces[model] = pace
        return pace


class Window:
    """Amounts sent in the last minute, and the delay of the next amount; no clock, no I/O.

    Attributes:
        limit: the sum that may be sent in any minute, or None.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self._set_by_user = limit
        self._sent: deque[_Sent] = deque()
        self._sum = 0.0
        self._remaining: float | None = None
        self._full_at = 0.0

    @property
    def is_limited(self) -> bool:
        """True if an amount may have to wait."""
        return self.limit is not None or self._remaining is not None

    def delay(self, amount: float, now: float) -> float:
        """Return the seconds until this amount may be sent: 0 for at once."""
        return max(self._delay_by_own_count(amount, now), self._delay_by_remaining(amount, now))

    def record(self, amount: float, now: float) -> _Sent | None:
        """Record that this amount is sent now."""
        if not self.is_limited:
            return None
        if self._remaining is not None:
            self._remaining -= amount
        sent = _Sent(now, amount)
        self._sent.append(sent)
        self._sum += amount
        return sent

    def correct(self, sent: _Sent | None, amount: float) -> None:
        """Replace an estimated amount by the actual one."""
        if sent is not None and sent.counted:
            self._sum += amount - sent.amount
            sent.amount = amount

    def update(self, limit: float | None, remaining: float | None, reset_s: float | None, now: float) -> None:
        """Adopt what the endpoint reports: its limit, what remains of it, and the seconds until it is reset."""
        if limit is not None and limit > 0:
            self.limit = min(limit, self._set_by_user) if self._set_by_user is not None else limit
        if remaining is not None and reset_s is not None:
            self._remaining = remaining
            self._full_at = now + reset_s

    def _delay_by_own_count(self, amount: float, now: float) -> float:
        self._forget_before(now - MINUTE + ROUNDING)
        if self.limit is None or not self._sent:
            return 0.0  # more than a whole minute's amount is sent alone, rather than never
        excess = self._sum + amount - self.limit
        free_at = now
        for sent in self._sent:
            if excess <= 0:
                break
            excess -= sent.amount
            free_at = sent.at + MINUTE
        return free_at - now

    def _delay_by_remaining(self, amount: float, now: float) -> float:
        if self._remaining is None:
            return 0.0
        if now + ROUNDING >= self._full_at:
            self._remaining = None
            return 0.0
        return self._full_at - now if self._remaining < amount else 0.0

    def _forget_before(self, moment: float) -> None:
        while self._sent and self._sent[0].at <= moment:
            old = self._sent.popleft()
            old.counted = False
            self._sum -= old.amount
        if not self._sent:
            self._sum = 0.0  # so that rounding does not add up over days


@dataclass(slots=True)
class _Sent:
    at: float
    amount: float
    counted: bool = True


@dataclass(frozen=True, slots=True)
class SentAmounts:
    """Requests and tokens that one call added to the rate-limit windows of its model."""

    requests: _Sent | None
    tokens: _Sent | None


@dataclass(slots=True)
class _Pace:
    requests: Window
    tokens: Window
    semaphore: FairSemaphore = field(default_factory=lambda: FairSemaphore(1))
    changed: anyio.Event = field(default_factory=anyio.Event)

    @property
    def is_limited(self) -> bool:
        return self.requests.is_limited or self.tokens.is_limited

    def delay(self, tokens: int, now: float) -> float:
        return max(self.requests.delay(1, now), self.tokens.delay(tokens, now))
