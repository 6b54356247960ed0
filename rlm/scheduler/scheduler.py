"""The one way to the models: every call of every run goes through here.

    Tree.complete_all(calls)     a fixed number of workers; equal prompts are asked once        batch.py, inflight.py
       │
    Tree.complete(call)          a number, CallStarted … CallFinished or CallFailed, the budget's wall time
       │
       ├─ cache                  a stored answer ends it here, and costs nothing                cache.py
       │
       └─ retry                  again after a while, or not; sleeps holding nothing            retry.py
           │
           └─ one attempt                                                                      endpoint.py
              ├─ breaker         wait, or fail at once, while the endpoint is down              breaker.py
              ├─ budget          set the worst case aside, or wait, or end the run              budget.py, measure.py
              ├─ rates           wait for a turn per minute                                     rates.py
              ├─ concurrency     wait for a permit; only requests hold one                      concurrency.py
              ├─ client          one request, under a timeout
              └─ truthful        what came is an answer, a warning or an error                  truthful.py

On the way back each layer learns from the outcome: the gate its width, the rates their limits, the ledger the true
cost, the breaker whether the endpoint lives, the cache the answer.

A `Scheduler` belongs to one client and one event loop and is shared by all the trees of its owner: what an endpoint
can take does not depend on who asks. A `Tree` has the ledger, the retries and the events of one run and its children.
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
from rlm.errors import CallError, DeadlineExceeded, SettingsError
from rlm.events import BatchFinished, BatchStarted, Emit, ignore
from rlm.metering.bounds import CountTokens, Observe, estimate_tokens
from rlm.scheduler.attempt import Endpoint, PriceOf
from rlm.scheduler.batch import Kept, run_batch
from rlm.scheduler.budget import Budget, Ledger, Spent
from rlm.scheduler.cache import Cache, cache_path
from rlm.scheduler.call_events import CallEvents
from rlm.scheduler.dedupe import first_of_each, occurrences
from rlm.scheduler.retry import Retries
from rlm.settings import SchedulerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rlm.clients.base import Client
    from rlm.values import Call, Reply

__all__ = ["Batch", "Scheduler", "Tree"]


class Scheduler:
    """What the trees of one owner share: the client, the cache, and what was learned of the endpoint.

    Args:
        client: makes the requests; closed with the scheduler where it has `aclose`.
        settings: how calls are made.
        price: dollars of a usage; a budget in dollars needs it.
        count_tokens: tokens of a prompt, where an endpoint reports none.
        bound_tokens: tokens that a prompt does not exceed, for budgets and for tokens per minute; by default the
            count itself.
        observe: is told the usage of each call that was answered, so that `count_tokens` can learn from it.

    Raises:
        SettingsError: the client is none, such as a name or a class.
    """

    def __init__(
        self,
        client: Client,
        settings: SchedulerSettings | None = None,
        *,
        price: PriceOf = lambda _model, _usage: None,
        count_tokens: CountTokens = estimate_tokens,
        bound_tokens: CountTokens | None = None,
        observe: Observe = lambda _call, _usage: None,
    ) -> None:
        self.settings = settings or SchedulerSettings()
        self.endpoint = Endpoint(
            client,
            self.settings,
            price=price,
            count_tokens=count_tokens,
            bound_tokens=bound_tokens or count_tokens,
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
        """The calls of one run and its children, with a ledger of their own.

        Args:
            run_id: the run that calls without one belong to.
            budget: what the tree may spend.
            emit: is told what happens.
            models: models the tree will use, where they are known.
            stream: tell the root models' replies as they are written (`CallWrote`), where the client can.
            within: a ledger that several trees spend from.

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
    """The calls of one run and its children; itself a `Client`. Made by `Scheduler.tree`.

    Attributes:
        run_id: the run that calls without one belong to.
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
        self._retries = Retries(scheduler.settings)
        self._call_numbers = count(1)
        self._batch_numbers = count(1)
        self._cache_problem_told = False

    @property
    def widest(self) -> int:
        """How many calls of one model may ever be in flight at once, over all trees of the scheduler."""
        return self._scheduler.endpoint.widest

    def width(self, model: str) -> int:
        """How many calls of this model may be in flight now, over all trees of the scheduler."""
        return self._scheduler.endpoint.width(model)

    async def complete(self, call: Call, *, permit: Permit | None = None) -> Reply:
        """Ask once and get the answer.

        Args:
            call: what to ask.
            permit: held by the caller; it is released while the call waits for a retry.

        Raises:
            CallError: the call failed for good.
            LimitReached: the tree may not spend what the call could cost, or its time is up.
            SettingsError: there is a budget in dollars and the model has no known price.
        """
        return await self._complete(call, 0, permit or Permit(FairSemaphore(1)))

    async def complete_all(
        self, calls: Sequence[Call], *, max_concurrent: int, dedupe: bool = True, kept: Kept | None = None
    ) -> list[Reply | CallError]:
        """Ask many at once, `max_concurrent` at a time; the answers come in the order of the calls.

        A call that failed for good leaves its `CallError` in its place and hurts no other. With `dedupe`, equal
        calls are asked once and the copies of the reply cost nothing; a batch that is one prompt repeated is
        sampling, where each is asked. Also where this raises or is cancelled, `kept` then has the outcomes there are,
        by the index of their call.

        Raises:
            LimitReached: the tree may not spend what the next call could cost. Where the limit is money, tokens
                or calls, the calls in flight are finished first.
            SettingsError: `max_concurrent` is below 1, or a budget in dollars meets a model without a price.
        """
        if max_concurrent < 1:
            raise SettingsError(f"max_concurrent={max_concurrent!r}: must be a number above 0")
        if not calls:
            return []
        first = first_of_each(calls) if dedupe else range(len(calls))
        slots = Counter(first)  # how many share the answer of each call that is made
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
    ) -> Iterator[Batch]:
        """Tell of calls that belong together: that they begin, and when they have ended how many slots failed.

        Args:
            size: calls that were asked for.
            distinct: calls of them that are made; each should have the batch's number.
            max_concurrent: how many at once.
            run_id: the run they belong to; by default the tree's own.
            depth: its depth.
        """
        batch = Batch(next(self._batch_numbers))
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
        told = CallEvents(self._emit, call, number=next(self._call_numbers))
        told.started()
        bill = Spent()
        try:
            reply = await self._within_time(_Question(call, occurrence, permit, told, bill))
        except BaseException as error:
            told.failed(error, bill)
            raise
        told.finished(reply)
        return reply

    def _prepared(self, call: Call) -> Call:
        """The call as it is sent: of a run, and with an output cap where a worst case has to be known."""
        if not call.run_id:
            call = replace(call, run_id=self.run_id)
        budget = self.ledger.budget
        if call.max_output_tokens is None and (budget.dollars is not None or budget.tokens is not None):
            call = replace(call, max_output_tokens=self._scheduler.settings.default_max_output_tokens)
        return call

    async def _within_time(self, question: _Question) -> Reply:
        seconds = self.ledger.budget.seconds
        if seconds is None:
            return await self._cached(question)
        now = anyio.current_time()
        deadline = self.ledger.deadline(now)
        if now < deadline:
            with anyio.CancelScope(deadline=deadline):
                return await self._cached(question)
        raise DeadlineExceeded(
            f"the run's {seconds:g} seconds are over", name="seconds", limit=seconds, spent=seconds
        )

    async def _cached(self, question: _Question) -> Reply:
        cache, call = self._scheduler.cache, question.call
        if cache is None:
            return await self._retried(question)
        stored = await cache.get(call, occurrence=question.occurrence)
        if stored is not None:
            self.ledger.note_stored(call)
            return stored
        reply = await self._retried(question)
        await cache.put(call, reply, occurrence=question.occurrence)
        if cache.problem and not self._cache_problem_told:
            self._cache_problem_told = True
            question.told.warned(cache.problem)
        return reply

    async def _retried(self, question: _Question) -> Reply:
        call, endpoint, bill = question.call, self._scheduler.endpoint, question.bill
        on_text = question.told.wrote if self._stream and call.role == "root" else None
        failures = 0
        waited_s = 0.0
        while True:
            await question.permit.acquire("again")  # not behind all the calls that were not asked yet
            try:
                reply = await endpoint.ask(
                    call, ledger=self.ledger, group=(self, call.batch), bill=bill, on_text=on_text
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
                question.told.retried(error, attempt=failures, wait_s=wait_s)
            else:
                self._retries.answered()
                return replace(reply, attempts=failures + 1, usage=bill.usage, cost_usd=bill.cost_usd)
            waited_s += wait_s
            question.permit.release()
            await anyio.sleep(wait_s)


@dataclass(slots=True)
class Batch:
    """Calls that belong together: their number within the tree, and how many of their slots hold an error."""

    number: int
    failed: int = 0


@dataclass(frozen=True, slots=True)
class _Question:
    """A call on its way: which sample of its prompt it is, its place in its batch, who hears of it, its cost."""

    call: Call
    occurrence: int
    permit: Permit
    told: CallEvents
    bill: Spent


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
