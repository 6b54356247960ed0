"""One attempt of one call, through all the layers below the retries."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import anyio

from rlm.clients.base import StreamingClient
from rlm.clients.error_mapping import sdk_errors_as_call_errors
from rlm.clients.reply_check import check_reply
from rlm.errors import (
    BadReply,
    CallError,
    CallTimedOut,
    ConnectionFailed,
    RateLimited,
    ServerError,
    SettingsError,
)
from rlm.metering.bounds import CountTokens, Observe, WorstCase
from rlm.metering.prices import missing_price
from rlm.scheduler.budget import Amount, Budget
from rlm.scheduler.circuit_breaker import CircuitBreaker
from rlm.scheduler.concurrency import ConcurrencyLimit, Signal
from rlm.scheduler.ledger import Ledger, Reservation, Spent, certainly_unbilled
from rlm.scheduler.rate_limiter import RateLimiter, SentAmounts
from rlm.values import Call, Reply, Usage

if TYPE_CHECKING:
    from collections.abc import Hashable

    from rlm.clients.base import Client
    from rlm.settings import SchedulerSettings

__all__ = ["Endpoint", "PriceOf"]

PriceOf: TypeAlias = Callable[[str, Usage], float | None]
"""Function of a model and a usage → dollars, or None if the model has no known price."""

OVERLOADED_STATUS = frozenset({503, 529})


class Endpoint:
    """A client's endpoint and its observed state: concurrency limit, rate limits, circuit breaker, token bounds.

    Attributes:
        client: makes the requests.
    """

    def __init__(
        self,
        client: Client,
        settings: SchedulerSettings,
        *,
        price: PriceOf,
        count_tokens: CountTokens,
        bound_tokens: CountTokens,
        observe: Observe,
    ) -> None:
        self.client = client
        self._timeout_s = settings.call_timeout_s
        self._price = price
        self._count_tokens = count_tokens
        self._observe = observe
        self._bounds = WorstCase(bound_tokens)
        self._breaker = CircuitBreaker(settings)
        self._concurrency = ConcurrencyLimit(settings.max_concurrent)
        self._rates = RateLimiter(
            requests_per_minute=settings.requests_per_minute, tokens_per_minute=settings.tokens_per_minute
        )

    async def ask(
        self,
        call: Call,
        *,
        ledger: Ledger,
        group: Hashable,
        spent: Spent,
        on_text: Callable[[str], None] | None = None,
    ) -> Reply:
        """Send one request as soon as all limits allow it, and settle its cost.

        Args:
            call: the call to make.
            ledger: where the cost is reserved and settled.
            group: the calls that this one belongs to; limits are fair between groups.
            spent: sums up what the attempts of this call cost.
            on_text: called with each part of the answer as it is written, if the client can stream.

        Raises:
            CallError: the attempt failed.
            BudgetExceeded: the ledger's budget does not allow it.
            SettingsError: there is a budget in dollars and the model has no known price.
        """
        async with self._breaker.admit(call.model):
            attempt = await self._admit(call, ledger, group, spent)
            started = anyio.current_time()
            signal: Signal = "other"
            try:
                reply = check_reply(call, await self._request(call, on_text), self._count_tokens)
                signal = "answered"
            except BaseException as error:
                signal = "overloaded" if _means_overload(error) else "other"
                self._settle_failed(attempt, error, anyio.current_time() - started)
                raise
            finally:
                self._concurrency.release(call.model, signal)
            seconds = anyio.current_time() - started
            self._settle(attempt, reply.usage, seconds, reported_usd=reply.cost_usd)
        self._learn(attempt, reply)
        return replace(reply, latency_s=seconds)

    @property
    def max_in_flight(self) -> int:
        """Highest number of requests for one model that may ever be in flight."""
        return self._concurrency.max_limit

    def in_flight_limit(self, model: str) -> int:
        """Return how many requests for this model may be in flight now."""
        return self._concurrency.limit(model)

    def ever_answered(self, model: str) -> bool:
        """Return True if this model has answered at least once."""
        return self._breaker.ever_answered(model)

    def require_price(self, model: str, budget: Budget) -> None:
        """Require that a budget in dollars can be kept with this model.

        Raises:
            SettingsError: the model has no known price.
        """
        if budget.dollars is None:
            return
        if self._price(model, Usage(calls=1, input_tokens=1, output_tokens=1)) is None:
            raise SettingsError(missing_price(model))

    async def _admit(self, call: Call, ledger: Ledger, group: Hashable, spent: Spent) -> _Attempt:
        worst = self._worst_case(call, ledger.budget)
        reservation = await ledger.reserve(call, self._amount_of(call, worst, ledger.budget))
        try:
            async with self._rates.turn(call.model, group, worst.total_tokens):
                await self._concurrency.acquire(call.model, group)
                sent = self._rates.record(call.model, worst.total_tokens)
        except BaseException:
            ledger.settle(reservation, None, None)
            raise
        return _Attempt(call, worst, ledger, spent, reservation, sent)

    async def _request(self, call: Call, on_text: Callable[[str], None] | None) -> Reply:
        with (
            anyio.move_on_after(self._timeout_s),
            _own_cancellations_as_errors(call),
            sdk_errors_as_call_errors(call),
        ):
            if on_text is not None and isinstance(self.client, StreamingClient):
                return await _read_stream(self.client, call, on_text)
            return await self.client.complete(call)
        raise CallTimedOut(
            f"{call.model} gave no complete answer within {self._timeout_s:g} s", model=call.model
        )

    def _worst_case(self, call: Call, budget: Budget) -> Usage:
        """Return the most that one request can use; tokens are counted only if a limit needs them."""
        if budget.dollars is None and budget.tokens is None and not self._rates.counts_tokens(call.model):
            return Usage(calls=1)
        return self._bounds.worst_case(call)

    def _amount_of(self, call: Call, worst: Usage, budget: Budget) -> Amount:
        self.require_price(call.model, budget)
        return Amount.of(worst, None if budget.dollars is None else self._price(call.model, worst))

    def _settle(
        self, attempt: _Attempt, usage: Usage, seconds: float, *, reported_usd: float | None = None
    ) -> None:
        cost_usd = self._price(attempt.call.model, usage) if reported_usd is None else reported_usd
        attempt.ledger.settle(attempt.reservation, usage, cost_usd, seconds)
        attempt.spent.add(usage, cost_usd, seconds)

    def _settle_failed(self, attempt: _Attempt, error: BaseException, seconds: float) -> None:
        if isinstance(error, CallError) and error.usage is not None:
            self._settle(attempt, error.usage, seconds)
        elif certainly_unbilled(error):
            attempt.ledger.settle(attempt.reservation, None, None)
            self._rates.correct(attempt.call.model, attempt.sent, 0)
        else:
            attempt.ledger.settle_unknown(attempt.reservation)

    def _learn(self, attempt: _Attempt, reply: Reply) -> None:
        model = attempt.call.model
        self._observe(attempt.call, reply.usage)
        self._bounds.correct(model, attempt.worst, reply.usage)
        self._rates.correct(model, attempt.sent, reply.usage.total_tokens)
        if reply.rate_limits is not None:
            self._rates.update(model, reply.rate_limits)


@dataclass(frozen=True, slots=True)
class _Attempt:
    call: Call
    worst: Usage
    ledger: Ledger
    spent: Spent
    reservation: Reservation
    sent: SentAmounts


@contextmanager
def _own_cancellations_as_errors(call: Call) -> Iterator[None]:
    """Turn a cancellation inside the client, which nothing outside requested, into an error of the call."""
    try:
        yield
    except anyio.get_cancelled_exc_class() as error:
        if anyio.current_effective_deadline() == -math.inf:
            raise
        raise ConnectionFailed(
            f"the client cancelled its own request to {call.model}", model=call.model
        ) from error


async def _read_stream(client: StreamingClient, call: Call, on_text: Callable[[str], None]) -> Reply:
    """Return the reply of a stream; call `on_text` with each part of its text."""
    stream = client.stream(call)
    try:
        async for part in stream:
            if isinstance(part, Reply):
                return part
            on_text(part)
    finally:
        if isinstance(stream, AsyncGenerator):
            with anyio.CancelScope(shield=True):
                await stream.aclose()
    raise BadReply(f"{call.model} ended its answer in the middle", model=call.model)


def _means_overload(error: BaseException) -> bool:
    return isinstance(error, (RateLimited, CallTimedOut)) or (
        isinstance(error, ServerError) and error.status in OVERLOADED_STATUS
    )
