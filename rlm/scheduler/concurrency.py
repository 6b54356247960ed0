"""How many requests are in flight: a fixed number, or as many as each model's endpoint turns out to take."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Literal, TypeAlias

from rlm._async.semaphore import FairSemaphore

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["AdaptiveWidth", "Gate", "Outcome"]

Outcome: TypeAlias = Literal["answered", "overloaded", "other"]

FIRST_WIDTH = 100
WIDEST = 1000
WINDOWS_REMEMBERED = 8
MOST_NOISE = 0.25
SMALLEST_WINDOW = 8  # the share of refusals in fewer requests than this says little
LARGEST_WINDOW = 64


class Gate:
    """Holds a request back until it may go out.

    With a number, that many requests are in flight over all models. With "auto", each model has a width of its
    own that adapts to its endpoint. Only requests hold a permit, never runs, so a run that waits for its children
    cannot deadlock them.
    """

    def __init__(self, max_concurrent: int | Literal["auto"]) -> None:
        self._shared = None if max_concurrent == "auto" else FairSemaphore(max_concurrent)
        self._adaptive: dict[str, tuple[FairSemaphore, AdaptiveWidth]] = {}

    async def acquire(self, model: str, group: Hashable) -> None:
        """Wait for a permit, round robin between groups; return it with `release()`."""
        await self._semaphore(model).acquire(group)

    def release(self, model: str, outcome: Outcome) -> None:
        """Return a permit and report how the request went: "overloaded" narrows an adaptive limit."""
        if self._shared is not None:
            self._shared.release()
            return
        semaphore, width = self._adaptive[model]
        width.observe(outcome, was_full=semaphore.is_full)
        if width.limit != semaphore.size:
            semaphore.resize(width.limit)
        semaphore.release()

    def width(self, model: str) -> int:
        """How many requests for this model may be in flight now."""
        return self._semaphore(model).size

    @property
    def widest(self) -> int:
        """How many requests, for one model, may ever be in flight."""
        return WIDEST if self._shared is None else self._shared.size

    def _semaphore(self, model: str) -> FairSemaphore:
        if self._shared is not None:
            return self._shared
        if model not in self._adaptive:
            width = AdaptiveWidth()
            self._adaptive[model] = (FairSemaphore(width.limit), width)
        return self._adaptive[model][0]


class AdaptiveWidth:
    """The arithmetic of an adaptive gate, without clock or I/O.

    It starts wide: each answer widens it by one, so that it doubles per round trip, and each refusal narrows it by
    one, which takes a server with a fixed capacity straight to it. After the first window of finished requests
    (about as many as it is wide) with many refusals it is careful: it widens by one per window, and narrows in
    proportion to the share of refusals, as DCTCP does (Alizadeh et al., SIGCOMM 2010). What was refused in each of
    the last windows, however wide the gate was, has other reasons than load, and narrowing would not help: it does
    not count. It widens only while it is full. The signal is refusals and timeouts; latency is none, because that
    of a language model grows with the length of its answer.
    """

    def __init__(self, first: int = FIRST_WIDTH, widest: int = WIDEST) -> None:
        self._limit = float(first)
        self._widest = widest
        self._starting = True
        self._shares: deque[float] = deque(maxlen=WINDOWS_REMEMBERED)
        self._window = _window(first)
        self._finished = 0
        self._refused = 0
        self._was_full = False

    @property
    def limit(self) -> int:
        """How many requests may be in flight."""
        return int(self._limit)

    def observe(self, outcome: Outcome, *, was_full: bool) -> None:
        """Take in how one request ended, and whether all places were taken at that moment."""
        if outcome == "other":
            return
        self._finished += 1
        self._was_full = self._was_full or was_full
        if outcome == "overloaded":
            self._refused += 1
        if self._starting and was_full:
            self._limit += 1 if outcome == "answered" else -1
            self._limit = min(max(self._limit, 1), self._widest)
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
        self._limit = min(max(self._limit, 1), self._widest)
        self._window = _window(self.limit)
        self._finished = 0
        self._refused = 0
        self._was_full = False


def _window(width: int) -> int:
    return min(max(width, SMALLEST_WINDOW), LARGEST_WINDOW)
