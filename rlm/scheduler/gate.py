"""How many requests are in flight: a fixed number, or as many as each model's endpoint turns out to take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from rlm.scheduler.line import Line

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["AdaptiveWidth", "Gate", "Outcome"]

Outcome: TypeAlias = Literal["answered", "overloaded", "other"]

FIRST_WIDTH = 32
WIDEST = 1000


class Gate:
    """Holds a request back until it may go out.

    With a number, that many requests are in flight over all models. With "auto", each model has a width of its
    own that adapts to its endpoint. Only requests hold a place, never runs, so a run that waits for its children
    cannot deadlock them.
    """

    def __init__(self, max_concurrent: int | Literal["auto"]) -> None:
        self._shared = None if max_concurrent == "auto" else Line(max_concurrent)
        self._adaptive: dict[str, tuple[Line, AdaptiveWidth]] = {}

    async def enter(self, model: str, group: Hashable) -> None:
        """Wait for a place, round robin between groups; give it back with `leave()`."""
        await self._line(model).enter(group)

    def leave(self, model: str, outcome: Outcome) -> None:
        """Give a place back and say how the request went: "overloaded" narrows an adaptive gate."""
        if self._shared is not None:
            self._shared.leave()
            return
        line, width = self._adaptive[model]
        width.observe(outcome, was_full=line.is_full)
        if width.limit != line.size:
            line.resize(width.limit)
        line.leave()

    def width(self, model: str) -> int:
        """How many requests for this model may be in flight now."""
        return self._line(model).size

    def _line(self, model: str) -> Line:
        if self._shared is not None:
            return self._shared
        if model not in self._adaptive:
            width = AdaptiveWidth()
            self._adaptive[model] = (Line(width.limit), width)
        return self._adaptive[model][0]


class AdaptiveWidth:
    """The arithmetic of an adaptive gate, without clock or I/O.

    Additive increase, multiplicative decrease, in windows of `limit` finished requests. Until the first refusal
    the width grows by one for each answer (so it doubles per round trip), after it by one for each window. A
    window with refusals narrows it in proportion to their share, as DCTCP does (Alizadeh et al., SIGCOMM 2010):
    a server at its limit is met at that limit, and a server that refuses now and then for reasons of its own does
    not choke the run. It widens only while it is full. The signal is refusals and timeouts; latency is none,
    because that of a language model grows with the length of its answer.
    """

    def __init__(self, first: int = FIRST_WIDTH, widest: int = WIDEST) -> None:
        self._limit = float(first)
        self._widest = widest
        self._refused_before = False
        self._was_full = False
        self._start_window()

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
        elif was_full and not self._refused_before and not self._refused:
            self._limit = min(self._limit + 1, self._widest)
        if self._finished >= self._window:
            self._close_window()

    def _close_window(self) -> None:
        share = self._refused / self._finished
        if self._refused:
            self._limit *= 1 - share / 2 if self._refused_before else 1 - min(share, 0.5)
            self._refused_before = True
        elif self._was_full and self._refused_before:
            self._limit += 1
        self._limit = min(max(self._limit, 1), self._widest)
        self._start_window()

    def _start_window(self) -> None:
        self._window = self.limit
        self._finished = 0
        self._refused = 0
        self._was_full = False
