"""Many calls at once by a fixed number of workers, so that memory does not grow with the size of the batch.

A call that waits for a retry releases its permit to another one, so there are twice as many workers as permits: a long
`Retry-After` does not stall the rest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import anyio

from rlm._async.groups import ungrouped
from rlm._async.semaphore import FairSemaphore, Permit
from rlm.errors import BudgetExceeded, CallError
from rlm.values import Reply, Usage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Ask", "Kept", "run_batch"]

Ask: TypeAlias = Callable[[int, Permit], Awaitable[Reply]]
"""Makes the call with this index under a permit that it may release while it waits for a retry."""

Kept: TypeAlias = "dict[int, Reply | CallError]"
"""Replies and errors of a batch so far, by the index of their call."""


async def run_batch(
    ask: Ask, first: Sequence[int], *, max_concurrent: int, kept: Kept | None = None
) -> list[Reply | CallError]:
    """Make every call whose index is its own entry in `first`; the others share the result of their entry.

    A `CallError` fills its slot. Any other error ends the batch and is raised as itself, not in a group. A
    `BudgetExceeded` lets the calls in flight finish first, because they are paid for. In every case `kept` gets the
    results so far.
    """
    batch = _BatchWorkers(ask, first, FairSemaphore(max_concurrent))
    try:
        with ungrouped():
            async with anyio.create_task_group() as group:
                for _ in range(min(2 * max_concurrent, len(first))):
                    group.start_soon(batch.work)
    finally:
        if kept is not None:
            kept.update(batch.results())
    if batch.exceeded is not None:
        raise batch.exceeded
    return list(batch.results().values())


class _BatchWorkers:
    def __init__(self, ask: Ask, first: Sequence[int], semaphore: FairSemaphore) -> None:
        self.exceeded: BudgetExceeded | None = None
        self._ask = ask
        self._first = first
        self._semaphore = semaphore
        self._pending: Iterator[int] = (index for index, own in enumerate(first) if index == own)
        self._results: dict[int, Reply | CallError] = {}

    async def work(self) -> None:
        permit = Permit(self._semaphore)
        try:
            await permit.acquire()
            while self.exceeded is None and (index := next(self._pending, None)) is not None:
                await self._fill(index, permit)
                permit.release()  # to a call that comes back for its retry, if there is one
                await permit.acquire()
        finally:
            permit.release()

    async def _fill(self, index: int, permit: Permit) -> None:
        try:
            self._results[index] = await self._ask(index, permit)
        except CallError as error:
            self._results[index] = error
        except BudgetExceeded as error:
            self.exceeded = self.exceeded or error

    def results(self) -> Kept:
        """Return the results so far, by index and in order."""
        return {
            index: self._result(index, first)
            for index, first in enumerate(self._first)
            if first in self._results
        }

    def _result(self, index: int, first: int) -> Reply | CallError:
        result = self._results[first]
        if index == first or isinstance(result, CallError):
            return result
        return replace(result, usage=Usage(), cost_usd=0.0, attempts=0)
