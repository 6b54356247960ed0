"""The one way to the models: every call of every run goes through here.

    Tree.complete_all(calls)        a fixed number of workers, equal prompts asked once (inflight.py)
        │
    Tree.complete(call)             one number, one CallStarted, one CallFinished or CallFailed
        │
        ├─ gate                     wait for a place (gate.py)
        └─ client                   one request, under a timeout

A `Scheduler` belongs to one client and one event loop and is shared by all the trees of its owner: what an endpoint
can take does not depend on who asks. A `Tree` has the ledger and the events of one run and its children.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, TypeAlias

import anyio
from anyio.lowlevel import checkpoint

from rlm.errors import BudgetExceeded, CallError, CallTimedOut, RateLimited, ServerError, SettingsError
from rlm.events import (
    BatchFinished,
    BatchStarted,
    CallFailed,
    CallFinished,
    CallStarted,
    Emit,
    Warned,
    ignore,
)
from rlm.scheduler.budget import Budget, Ledger
from rlm.scheduler.gate import Gate, Outcome
from rlm.scheduler.inflight import first_of_each
from rlm.settings import SchedulerSettings
from rlm.values import Call, Reply, Usage

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from rlm.clients.base import Client

__all__ = ["Price", "Scheduler", "Tree"]

Price: TypeAlias = Callable[[str, Usage], float | None]
"""Dollars that a usage costs with a model, or None where the model has no known price."""


class Scheduler:
    """What the trees of one owner share: the client, the gate, and what was learned of its endpoints."""

    def __init__(
        self,
        client: Client,
        settings: SchedulerSettings | None = None,
        *,
        price: Price = lambda _model, _usage: None,
    ) -> None:
        self.client = client
        self.settings = settings or SchedulerSettings()
        self.price = price
        self.gate = Gate(self.settings.max_concurrent)

    def tree(self, *, run_id: str, budget: Budget | None = None, emit: Emit = ignore) -> Tree:
        """The calls of one run and its children, with a ledger of their own."""
        return Tree(self, run_id=run_id, ledger=Ledger(budget), emit=emit)

    async def aclose(self) -> None:
        """Close the client, if it can be closed."""
        close = getattr(self.client, "aclose", None)
        if close is not None:
            await close()


class Tree:
    """The calls of one run and its children; itself a `Client`. Made by `Scheduler.tree`.

    Attributes:
        ledger: what the tree has spent.
    """

    def __init__(self, scheduler: Scheduler, *, run_id: str, ledger: Ledger, emit: Emit) -> None:
        self.ledger = ledger
        self.run_id = run_id
        self._scheduler = scheduler
        self._emit = emit
        self._call_numbers = count(1)
        self._batch_numbers = count(1)

    async def complete(self, call: Call) -> Reply:
        """Ask once and get the answer.

        Raises:
            CallError: the call failed for good.
            LimitReached: the tree may not spend what the call could cost.
        """
        await checkpoint()  # a client that never waits, such as a scripted one, must not starve the loop
        number = next(self._call_numbers)
        self._emit(
            CallStarted(
                run_id=call.run_id,
                depth=call.depth,
                at=time.time(),
                call=number,
                role=call.role,
                model=call.model,
                messages=call.messages,
                batch=call.batch,
            )
        )
        try:
            reply = await self._attempt(call)
        except CallError as error:
            self._emit(
                CallFailed(
                    run_id=call.run_id,
                    depth=call.depth,
                    at=time.time(),
                    call=number,
                    kind=type(error).__name__,
                    error=str(error),
                )
            )
            raise
        self._emit(
            CallFinished(run_id=call.run_id, depth=call.depth, at=time.time(), call=number, reply=reply)
        )
        for warning in reply.warnings:
            self._emit(Warned(run_id=call.run_id, depth=call.depth, at=time.time(), message=warning))
        return reply

    async def complete_all(
        self, calls: Sequence[Call], *, max_concurrent: int, dedupe: bool = True
    ) -> list[Reply | CallError]:
        """Ask many at once, `max_concurrent` at a time; the answers come in the order of the calls.

        A call that failed for good leaves its `CallError` in its place and hurts no other. With `dedupe`, equal
        calls are asked once and the copies of the reply cost nothing; a batch that is one prompt repeated is
        sampling, where each is asked.

        Raises:
            SettingsError: `max_concurrent` is below 1.
            LimitReached: the tree may not spend what the next call could cost. The calls in flight are finished
                first where the limit is money, tokens or calls.
        """
        if max_concurrent < 1:
            raise SettingsError(f"max_concurrent={max_concurrent!r}: must be a number above 0")
        if not calls:
            return []
        batch = next(self._batch_numbers)
        run_id, depth = calls[0].run_id, calls[0].depth
        workers = min(max_concurrent, len(calls))
        self._emit(
            BatchStarted(
                run_id=run_id,
                depth=depth,
                at=time.time(),
                batch=batch,
                size=len(calls),
                max_concurrent=max_concurrent,
            )
        )
        first = first_of_each(calls) if dedupe else range(len(calls))
        outcomes = await self._work(calls, first, batch, workers)
        failed = sum(isinstance(outcome, CallError) for outcome in outcomes)
        self._emit(BatchFinished(run_id=run_id, depth=depth, at=time.time(), batch=batch, failed=failed))
        return outcomes

    async def _work(
        self, calls: Sequence[Call], first: Sequence[int], batch: int, workers: int
    ) -> list[Reply | CallError]:
        outcomes: list[Reply | CallError | None] = [None] * len(calls)
        pending = (index for index in range(len(calls)) if first[index] == index)
        exceeded: list[BudgetExceeded] = []
        try:
            async with anyio.create_task_group() as group:
                for _ in range(workers):
                    group.start_soon(self._worker, calls, pending, batch, outcomes, exceeded)
        except BaseExceptionGroup as errors:
            raise _only_error(errors) from None
        if exceeded:
            raise exceeded[0]
        return [_copy_for(outcomes, index, first[index]) for index in range(len(calls))]

    async def _worker(
        self,
        calls: Sequence[Call],
        pending: Iterator[int],
        batch: int,
        outcomes: list[Reply | CallError | None],
        exceeded: list[BudgetExceeded],
    ) -> None:
        for index in pending:
            try:
                outcomes[index] = await self.complete(replace(calls[index], batch=batch))
            except CallError as error:
                outcomes[index] = error
            except BudgetExceeded as error:
                # The others finish what they have in flight, which is paid for, and take nothing more.
                exceeded.append(error)
            if exceeded:
                return

    async def _attempt(self, call: Call) -> Reply:
        gate = self._scheduler.gate
        await gate.enter(call.model, self._group(call))
        outcome: Outcome = "other"
        started = anyio.current_time()
        try:
            reply = await self._request(call)
            outcome = "answered"
        except CallError as error:
            outcome = "overloaded" if _means_overload(error) else "other"
            if error.usage is not None:
                self._charge(call, error.usage, started)
            raise
        finally:
            gate.leave(call.model, outcome)
        cost_usd = self._charge(call, reply.usage, started)
        return replace(reply, latency_s=anyio.current_time() - started, cost_usd=cost_usd)

    async def _request(self, call: Call) -> Reply:
        seconds = self._scheduler.settings.call_timeout_s
        with anyio.move_on_after(seconds):
            return await self._scheduler.client.complete(call)
        raise CallTimedOut(f"{call.model} gave no complete answer within {seconds:g} s", model=call.model)

    def _charge(self, call: Call, usage: Usage, started: float) -> float | None:
        cost_usd = self._scheduler.price(call.model, usage)
        self.ledger.charge(call, usage, cost_usd, anyio.current_time() - started)
        return cost_usd

    def _group(self, call: Call) -> Hashable:
        return (id(self), call.batch)


def _means_overload(error: CallError) -> bool:
    return isinstance(error, (RateLimited, CallTimedOut)) or (
        isinstance(error, ServerError) and error.status in {503, 529}
    )


def _copy_for(outcomes: list[Reply | CallError | None], index: int, first: int) -> Reply | CallError:
    outcome = outcomes[first]
    assert outcome is not None, "every first call of its kind was asked"  # noqa: S101 - tells mypy what holds
    if index == first or isinstance(outcome, CallError):
        return outcome
    return replace(outcome, usage=Usage(), cost_usd=0.0, attempts=0)


def _only_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group: a batch fails as one call does, not as a group."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
