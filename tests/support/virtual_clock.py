"""A clock for tests that jumps to the next deadline as soon as nothing is left to do before it.

Trio's own `MockClock` also jumps while a thread works for the loop, so that on a busy machine more or less time passes,
depending on how fast the disk is.
"""

from __future__ import annotations

import math

import trio

POLL_S = 0.0005


class VirtualClock(trio.abc.Clock):
    """Time that starts at 0 and passes only while every task waits for it, and for no thread."""

    def __init__(self) -> None:
        self._now = 0.0

    def start_clock(self) -> None:
        self._now = 0.0

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """How long, in real seconds, the loop may wait for I/O; it asks only when no task can go on."""
        if deadline <= self._now:
            return 0.0
        if math.isinf(deadline):
            return math.inf
        if trio.to_thread.current_default_thread_limiter().borrowed_tokens:
            return POLL_S
        self._now = deadline
        return 0.0
