"""The only way to the models: every call of every run goes through here.

    Tree.complete_all(calls)      a fixed number of workers; equal calls are sent once            batch.py, dedupe.py
       │
    Tree.complete(call)           CallStarted … CallFinished or CallFailed, the time of the budget   call_events.py
       │
       ├─ cache                   a stored answer ends it here, and costs nothing                 cache.py
       │
       └─ retry                   again after a while, or not; sleeps without holding a permit    retry.py
           │
           └─ one attempt                                                                         attempt.py
              ├─ circuit breaker  wait, or fail at once, while the endpoint is down               circuit_breaker.py
              ├─ budget           reserve the worst case, or wait, or end the run                 budget.py, ledger.py
              ├─ rate limiter     wait until another request is allowed this minute               rate_limiter.py
              ├─ concurrency      wait for a permit; only requests hold one                       concurrency.py
              ├─ client           one request, under a timeout
              └─ reply check      the reply is an answer, a warning or an error                   clients/reply_check.py

On the way back each layer is updated: the concurrency limit, the rate limits, the ledger with the actual cost, the
circuit breaker, the cache with the answer.

A `Scheduler` belongs to one client and one event loop and is shared by all trees of its owner, since the limits of an
endpoint do not depend on the caller. A `Tree` has the ledger, the retry policy and the events of one run and its child runs.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

from rlm._async.semaphore import FairSemaphore, Permit
from rlm.checks import whole_number
from rlm.errors import CallError, DeadlineExceeded
from rlm.events import BatchFinished, BatchStarted, Emit, ignore
from rlm.metering.bounds import bound
from rlm.metering.tokens import estimate_call
from rlm.scheduler.attempt import Endpoint, PriceOf
from rlm.scheduler.batch import Kept, run_batch
from rlm.scheduler.cache import Cache, cache_path
from rlm.scheduler.call_events import CallEvents
from rlm.scheduler.dedupe import first_of_each, occurrences
from rlm.scheduler.ledger import Ledger, Spent
from rlm.scheduler.retry import RetryPolicy
from rlm.settings import SchedulerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rlm.clients.base import Client
    from rlm.metering.bounds import CountTokens, Observe
    from rlm.scheduler.budget import Budget
    from rlm.values import Call, Reply

__all__ = ["RunningBatch", "Scheduler", "Tree"]


class Scheduler:
    """State that the trees of one owner share: the client, the cache, and the observed limits of the endpoint.

    Args:
        client: sends the requests; closed with the scheduler if it has `aclose`.
        settings: how calls are sent.
        price: dollars of a usage; a budget in dollars needs it.
        count_tokens: tokens of a prompt, for endpoints that report none.
        bound_tokens: upper bound of the tokens of a prompt, for budgets and tokens per minute; by default
            a given `count_tokens`, else `bound(estimate_call)`.
        observe: called with each answered call and its usage, so that `count_tokens` can be calibrated.

    Raises:
        SettingsError: `client` is not a client, but a name or a class.
    """

    def __init__(
        self,
        client: Client,
        settings: SchedulerSettings | None = None,
        *,
        price: PriceOf = lambda _model, _usage: None,
        count_tokens: CountTokens = estimate_call,
        bound_tokens: CountTokens | None = None,
        observe: Observe = lambda _call, _usage: None,
    ) -> None:
        self.settings = settings or SchedulerSettings()
        self.endpoint = Endpoint(
            client,
            self.settings,
            price=price,
            count_tokens=count_tokens,
            bound_tokens=bound_tokens
            or (bound(estimate_call) if count_tokens is estimate_call else count_tokens),
            observe=observe,
        )
        self.cache = _make_cache(client, self.settings)

    def tree(
        self,
        *,
        run_id: str,
        budget: Budget | None = None,
        emit: Emit = ignore,
        models: Sequence[str] = (),
        stream: bool = False,
        within: Ledger | None = None,
    ) -> Tree:
        """Make the tree of one run and its child runs, with its own ledger.

        Args:
            run_id: the run of calls that name none.
            budget: what the tree may spend.
            emit: called with each event.
            models: models the tree will use, as far as they are known.
            stream: emit the root models' replies as they are written (`CallWrote`), if the client can stream.
            within: the ledger in which that of the tree is nested.

        Raises:
            SettingsError: there is a budget in dollars and one of the models has no known price.
        """
        ledger = Ledger(budget, within=within)
        for model in models:
            self.endpoint.require_price(model, ledger.budget)
        return Tree(self, run_id=run_id, ledger=ledger, emit=emit, stream=stream)

    async def aclose(self) -> None:
        """Close the cache, and the client if it can be closed."""
        if self.cache is not None:
            await self.cache.aclose()
        close = getattr(self.endpoint.client, "aclose", None)
        if close is not None:
            await close()


class Tree:
    """The calls of one run and its child runs; itself a `Client`. Made by `Scheduler.tree`.

    Attributes:
        run_id: the run of calls that name none.
        ledger: what the tree has spent.
    """

    def __init__(
        self, scheduler: Scheduler, *, run_id: str, ledger: Ledger, emit: Emit, stream: bool = False
    ) -> None:
        self.run_id = run_id
        self.ledger = ledger
        self._scheduler = scheduler
        self._emit = emit
        self._stream = stream
        self._retries = RetryPolicy(scheduler.settings)
        self._call_numbers = count(1)
        self._batch_numbers = count(1)
        self._cache_problem_reported = False

    @property
    def max_in_flight(self) -> int:
        """Highest number of calls to one model that may ever be in flight, over all trees of the scheduler."""
        return self._scheduler.endpoint.max_in_flight

    def in_flight_limit(self, model: str) -> int:
        """Return how many calls to this model may be in flight now, over all trees of the scheduler."""
        return self._scheduler.endpoint.in_flight_limit(model)

    async def complete(self, call: Call, *, permit: Permit | None = None) -> Reply:
        """Make one call and return its reply.

        Args:
            call: the call to make.
            permit: held by the caller; it is released while the call waits for a retry.

        Raises:
            CallError: the call failed for good.
            LimitReached: the tree may not spend what the call could cost, or its time is over.
            SettingsError: there is a budget in dollars and the model has no known price.
        """
        return await self._complete(call, 0, permit or Permit(FairSemaphore(1)))

    async def complete_all(
        self, calls: Sequence[Call], *, max_concurrent: int, dedupe: bool = True, kept: Kept | None = None
    ) -> list[Reply | CallError]:
        """Make many calls, `max_concurrent` at a time; return their replies in the order of the calls.

        A call that failed for good leaves its `CallError` in its slot and affects no other. With `dedupe`, equal
        calls are sent once and the copies of the reply cost nothing; a batch that repeats one prompt is sampling, so
        each call is sent. If this raises or is cancelled, `kept` has the results so far, by the index of
        their call.

        Raises:
            LimitReached: the tree may not spend what the next call could cost. If the limit is money, tokens or
                calls, the calls in flight are finished first.
            SettingsError: `max_concurrent` is below 1, or a budget in dollars meets a model without a price.
        """
        whole_number("max_concurrent", max_concurrent)
        if not calls:
            return []
        first = first_of_each(calls) if dedupe else range(len(calls))
        slots = Counter(first)  # number of slots that share the reply of each call that is made
        samples = occurrences(calls) if self._scheduler.cache is not None else None

        async def ask(index: int, permit: Permit) -> Reply:
            occurrence = samples[index] if samples is not None else 0
            try:
                return await self._complete(replace(calls[index], batch=batch.number), occurrence, permit)
            except CallError:
                batch.failed += slots[index]
                raise

        with self.batch(
            len(calls),
            distinct=len(slots),
            max_concurrent=max_concurrent,
            run_id=calls[0].run_id,
            depth=calls[0].depth,
        ) as batch:
            return await run_batch(ask, first, max_concurrent=max_concurrent, kept=kept)

    @contextmanager
    def batch(
        self, size: int, *, distinct: int, max_concurrent: int, run_id: str = "", depth: int = 0
    ) -> Iterator[RunningBatch]:
        """Emit the start and the end of calls that belong together, with the number of failed slots.

        Args:
            size: number of requested calls.
            distinct: number of calls that are made; each should carry the batch's number.
            max_concurrent: calls in flight at once.
            run_id: the run they belong to; by default the tree's own.
            depth: depth of that run.
        """
        batch = RunningBatch(next(self._batch_numbers))
        run_id = run_id or self.run_id
        self._emit(
            BatchStarted(
                run_id=run_id,
                depth=depth,
                at=time.time(),
                batch=batch.number,
                size=size,
                distinct=distinct,
                max_concurrent=max_concurrent,
            )
        )
        try:
            yield batch
        finally:
            self._emit(
                BatchFinished(
                    run_id=run_id, depth=depth, at=time.time(), batch=batch.number, failed=batch.failed
                )
            )

    async def _complete(self, call: Call, occurrence: int, permit: Permit) -> Reply:
        await checkpoint()  # a client that never waits, such as a scripted one, must not starve the loop
        call = self._prepared(call)
        events = CallEvents(self._emit, call, number=next(self._call_numbers))
        events.started()
        spent = Spent()
        try:
            reply = await self._within_time(_PendingCall(call, occurrence, permit, events, spent))
        except BaseException as error:
            events.failed(error, spent)
            raise
        events.finished(reply)
        return reply

    def _prepared(self, call: Call) -> Call:
        """Return the call as it is sent: with a run, and with an output cap if its worst case has to be known."""
        if not call.run_id:
            call = replace(call, run_id=self.run_id)
        budget = self.ledger.budget
        if call.max_output_tokens is None and (budget.dollars is not None or budget.tokens is not None):
            call = replace(call, max_output_tokens=self._scheduler.settings.default_max_output_tokens)
        return call

    async def _within_time(self, pending: _PendingCall) -> Reply:
        seconds = self.ledger.budget.seconds
        if seconds is None:
            return await self._cached(pending)
        now = anyio.current_time()
        deadline = self.ledger.deadline(now)
        if now < deadline:
            with anyio.CancelScope(deadline=deadline):
                return await self._cached(pending)
        raise DeadlineExceeded(
            f"the run's {seconds:g} seconds are over", name="seconds", limit=seconds, spent=seconds
        )

    async def _cached(self, pending: _PendingCall) -> Reply:
        cache, call = self._scheduler.cache, pending.call
        if cache is None:
            return await self._retried(pending)
        stored = await cache.get(call, occurrence=pending.occurrence)
        if stored is not None:
            self.ledger.note_stored(call)
            return stored
        reply = await self._retried(pending)
        await cache.put(call, reply, occurrence=pending.occurrence)
        if cache.problem and not self._cache_problem_reported:
            self._cache_problem_reported = True
            pending.events.warned(cache.problem)
        return reply

    async def _retried(self, pending: _PendingCall) -> Reply:
        call, endpoint, spent = pending.call, self._scheduler.endpoint, pending.spent
        on_text = pending.events.wrote if self._stream and call.role == "root" else None
        failures = 0
        waited_s = 0.0
        while True:
            await pending.permit.acquire("again")  # ahead of all the calls that were not sent yet
            try:
                reply = await endpoint.ask(
                    call, ledger=self.ledger, group=(self, call.batch), spent=spent, on_text=on_text
                )
            except CallError as error:
                failures += 1
                wait_s = self._retries.wait_before_next(
                    error,
                    failures=failures,
                    waited_s=waited_s,
                    ever_answered=endpoint.ever_answered(call.model),
                )
                if wait_s is None:
                    raise
                pending.events.retried(error, attempt=failures, wait_s=wait_s)
            else:
                self._retries.answered()
                return replace(reply, attempts=failures + 1, usage=spent.usage, cost_usd=spent.cost_usd)
            waited_s += wait_s
            pending.permit.release()
            await anyio.sleep(wait_s)


@dataclass(slots=True)
class RunningBatch:
    """Calls that belong together: the number of the batch within the tree, and how many slots hold an error."""

    number: int
    failed: int = 0


@dataclass(frozen=True, slots=True)
class _PendingCall:
    """A call in progress: which sample of its prompt it is, its permit in the batch, its events, its cost."""

    call: Call
    occurrence: int
    permit: Permit
    events: CallEvents
    spent: Spent


def _make_cache(client: Client, settings: SchedulerSettings) -> Cache | None:
    if settings.cache == "off":
        return None
    return Cache(
        cache_path(settings),
        mode=settings.cache,
        # Two endpoints may give one name to two models.
        endpoint=str(getattr(client, "endpoint", type(client).__qualname__)),
        sampled=settings.cache_sampled,
        max_bytes=settings.cache_bytes,
    )
