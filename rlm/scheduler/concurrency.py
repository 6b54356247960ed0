"""Limit of requests in flight: a fixed number, or as many as each model's endpoint turns out to take."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Literal, TypeAlias

from rlm._async.semaphore import FairSemaphore

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["AdaptiveLimit", "ConcurrencyLimit", "Signal"]

Signal: TypeAlias = Literal["answered", "overloaded", "other"]
"""How a request ended, as far as the load of its endpoint is concerned."""

FIRST_LIMIT = 100
MAX_LIMIT = 1000
WINDOWS_REMEMBERED = 8
MOST_NOISE = 0.25
SMALLEST_WINDOW = 8  # the share of refusals in fewer requests than this says little
LARGEST_WINDOW = 64


class ConcurrencyLimit:
    """Delays a request until another one may be in flight.

    With a number, that many requests are in flight over all models. With "auto", each model has a limit of its
    own that adapts to its endpoint. Only requests hold a permit, never runs, so a run that waits for its children
    cannot deadlock them.
    """

    def __init__(self, max_concurrent: int | Literal["auto"]) -> None:
        self._shared = None if max_concurrent == "auto" else FairSemaphore(max_concurrent)
        self._adaptive: dict[str, tuple[FairSemaphore, AdaptiveLimit]] = {}

    async def acquire(self, model: str, group: Hashable) -> None:
        """Wait for a permit, round robin between groups; return it with `release()`."""
        await self._semaphore(model).acquire(group)

    def release(self, model: str, signal: Signal) -> None:
        """Return a permit and report how the request went: "overloaded" narrows an adaptive limit."""
        if self._shared is not None:
            self._shared.release()
            return
        semaphore, adaptive = self._adaptive[model]
        adaptive.observe(signal, was_full=semaphore.is_full)
        if adaptive.limit != semaphore.size:
            semaphore.resize(adaptive.limit)
        semaphore.release()

    def limit(self, model: str) -> int:
        """Return how many requests for this model may be in flight now."""
        return self._semaphore(model).size

    @property
    def max_limit(self) -> int:
        """Highest number of requests for one model that may ever be in flight."""
        return MAX_LIMIT if self._shared is None else self._shared.size

    def _semaphore(self, model: str) -> FairSemaphore:
        if self._shared is not None:
            return self._shared
        if model not in self._adaptive:
            adaptive = AdaptiveLimit()
            self._adaptive[model] = (FairSemaphore(adaptive.limit), adaptive)
        return self._adaptive[model][0]


class AdaptiveLimit:
    """Arithmetic of an adaptive limit, without clock or I/O.

    It starts high. Each answer raises it by one, so that it doubles per round trip, and each refusal lowers it by one,
    which leads straight to the capacity of a server that has a fixed one. After the first window of finished requests
    (about as many as the limit) with many refusals it is careful: it grows by one per window, and shrinks in
    proportion to the share of refusals, as DCTCP does (Alizadeh et al., SIGCOMM 2010). A share that was refused in
    every recent window, at any limit, has other reasons than load and is subtracted. The limit grows only while
    it is reached. The signals are refusals and timeouts. Latency is none, because that of a language model grows
    with the length of its answer.
    """

    def __init__(self, first: int = FIRST_LIMIT, highest: int = MAX_LIMIT) -> None:
        self._limit = float(first)
        self._highest = highest
        self._starting = True
        self._shares: deque[float] = deque(maxlen=WINDOWS_REMEMBERED)
        self._window = _window(first)
        self._finished = 0
        self._refused = 0
        self._was_full = False

    @property
    def limit(self) -> int:
        """Number of requests that may be in flight."""
        return int(self._limit)

    def observe(self, signal: Signal, *, was_full: bool) -> None:
        """Account for the end of one request; `was_full` says that all permits were in use at that moment."""
        if signal == "other":
            return
        self._finished += 1
        self._was_full = self._was_full or was_full
        if signal == "overloaded":
            self._refused += 1
        if self._starting and was_full:
            self._limit += 1 if signal == "answered" else -1
            self._limit = min(max(self._limit, 1), self._highest)
        if self._finished >= self._window:
            self._close_window()

    def _close_window(self) -> None:
        share = self._refused / self._finished
        if self._starting:
            self._starting = share <= MOST_NOISE
        else:
            excess = max(share - min(self._shares, default=0.0), 0.0)
            self._limit = self._limit * (1 - excess / 2) + self._was_full
        self._shares.append(min(share, MOST_NOISE))
        self._limit = min(max(self._limit, 1), self._highest)
        self._window = _window(self.limit)
        self._finished = 0
        self._refused = 0
        self._was_full = False


def _window(limit: int) -> int:
    return min(max(limit, SMALLEST_WINDOW), LARGEST_WINDOW)
