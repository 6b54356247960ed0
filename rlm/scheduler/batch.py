"""Many calls at once by a fixed number of workers, so that memory does not grow with the size of the batch."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import anyio

from rlm.errors import BudgetExceeded, CallError
from rlm.values import Reply, Usage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Ask", "run_batch"]

Ask: TypeAlias = Callable[[int], Awaitable[Reply]]
"""Makes the call with this index."""


async def run_batch(ask: Ask, first: Sequence[int], *, workers: int) -> list[Reply | CallError]:
    """Ask every call whose index is its own entry in `first`; the others share the outcome of their entry.

    A `CallError` fills its slot. Anything else ends the batch and is raised as it is, not in a group. A
    `BudgetExceeded` lets the calls in flight finish first, because they are paid for.
    """
    batch = _Batch(ask, first)
    try:
        async with anyio.create_task_group() as group:
            for _ in range(workers):
                group.start_soon(batch.work)
    except BaseExceptionGroup as errors:
        raise _first_error(errors) from None
    if batch.exceeded is not None:
        raise batch.exceeded
    return [batch.outcome(index) for index in range(len(first))]


class _Batch:
    def __init__(self, ask: Ask, first: Sequence[int]) -> None:
        self.exceeded: BudgetExceeded | None = None
        self._ask = ask
        self._first = first
        self._pending: Iterator[int] = (index for index, own in enumerate(first) if index == own)
        self._outcomes: dict[int, Reply | CallError] = {}

    async def work(self) -> None:
        for index in self._pending:
            try:
                self._outcomes[index] = await self._ask(index)
            except CallError as error:
                self._outcomes[index] = error
            except BudgetExceeded as error:
                self.exceeded = self.exceeded or error
            if self.exceeded is not None:
                return

    def outcome(self, index: int) -> Reply | CallError:
        first = self._first[index]
        outcome = self._outcomes[first]
        if index == first or isinstance(outcome, CallError):
            return outcome
        return replace(outcome, usage=Usage(), cost_usd=0.0, attempts=0)


def _first_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
