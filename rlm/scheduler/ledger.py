"""What a tree of runs has spent, and what its requests in flight may still cost."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import anyio

from rlm._async.semaphore import FairSemaphore
from rlm.errors import (
    AuthenticationFailed,
    BadRequest,
    BudgetExceeded,
    ConnectionFailed,
    QuotaExhausted,
    RateLimited,
    ServerError,
    UnknownModel,
)
from rlm.scheduler.budget import PICODOLLARS, Amount, Budget
from rlm.values import Usage

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from rlm.values import Call

__all__ = ["Ledger", "Reservation", "Spent", "certainly_unbilled"]

REFUSED = (AuthenticationFailed, BadRequest, QuotaExhausted, RateLimited, UnknownModel)
GATEWAY_TIMEOUTS = frozenset({408, 504, 524})


@dataclass(slots=True)
class Spent:
    """Running sum of usage and price.

    Attributes:
        usage: tokens and calls.
        priced_usd: dollars of the requests whose price is known.
        unpriced: requests whose price is not known.
        latency_s: seconds of all requests, one after the other.
        stored: replies that came from the cache and cost nothing.
    """

    usage: Usage = field(default_factory=Usage)
    priced_usd: float = 0.0
    unpriced: int = 0
    latency_s: float = 0.0
    stored: int = 0

    @property
    def cost_usd(self) -> float | None:
        """Dollars, or None if the price of a part is unknown."""
        return None if self.unpriced else self.priced_usd

    def add(self, usage: Usage, cost_usd: float | None, latency_s: float) -> None:
        """Add the usage of one request."""
        self.usage = self.usage + usage
        self.latency_s += latency_s
        if cost_usd is None:
            self.unpriced += 1
        else:
            self.priced_usd += cost_usd

    def absorb(self, other: Spent) -> None:
        """Add another sum to this one."""
        self.usage = self.usage + other.usage
        self.priced_usd += other.priced_usd
        self.unpriced += other.unpriced
        self.latency_s += other.latency_s
        self.stored += other.stored

    def summary(self) -> dict[str, Any]:
        """Return the sum as a plain dict."""
        return {
            **asdict(self.usage),
            "total_tokens": self.usage.total_tokens,
            "cost_usd": self.cost_usd,
            "priced_usd": self.priced_usd,
            "unpriced_calls": self.unpriced,
            "stored_replies": self.stored,
            "latency_s": self.latency_s,
        }


@dataclass(frozen=True, slots=True)
class Reservation:
    """Upper bound of what one request in flight can cost; released by `Ledger.settle`."""

    call: Call
    worst: Amount


class Ledger:
    """Account of a tree of runs: spent in total, per model and per depth, and reserved for requests in flight.

    Before each request its worst case is reserved; after it, the reservation is replaced by the actual cost. The sum
    of both never exceeds the budget, as long as the worst case is an upper bound. When a request is cancelled, times
    out or loses its connection, it is unknown whether it will be billed: its worst case stays reserved for good
    (`possibly_billed` in the summary), and is not counted as spent.

    Ledgers may be nested in another one: what is reserved and spent in them is booked in that one too, so they share
    its budget, and each knows its own share. When the outer ledger has refused one of them, it refuses all from then
    on: trees that share a budget stop together, and none starves the others with ever smaller requests.

    Attributes:
        budget: upper limits of what may be spent, those of the outer ledger included.
    """

    def __init__(self, budget: Budget | None = None, *, within: Ledger | None = None) -> None:
        own = budget or Budget()
        self.budget: Budget = own if within is None else own.within(within.budget)
        self._within = within
        self._deadline: float | None = None
        self._refusal: BudgetExceeded | None = None
        self._total = Spent()
        self._by_model: dict[str, Spent] = {}
        self._by_depth: dict[int, Spent] = {}
        self._settled = Amount()
        self._reserved = Amount()
        self._possibly_billed = Amount()
        self._semaphore = FairSemaphore(1)
        self._freed: anyio.Event | None = None

    @property
    def usage(self) -> Usage:
        """Tokens and calls of the whole tree."""
        return self._total.usage

    @property
    def cost_usd(self) -> float | None:
        """Dollars of the whole tree, or None if a model that was used has no known price."""
        return self._total.cost_usd

    @property
    def by_model(self) -> Mapping[str, Spent]:
        """Spending per model."""
        return self._by_model

    @property
    def by_depth(self) -> Mapping[int, Spent]:
        """Spending per depth of the tree of runs."""
        return self._by_depth

    @property
    def is_exhausted(self) -> bool:
        """True once this ledger refuses all nested ledgers."""
        return self._refusal is not None

    async def reserve(self, call: Call, worst: Amount, *, of: Ledger | None = None) -> Reservation:
        """Reserve the worst case of a request; wait for requests in flight to settle if it does not fit yet.

        Args:
            call: the request.
            worst: upper bound of its cost.
            of: the nested ledger that asks, if one does; nested ledgers take turns.

        Raises:
            BudgetExceeded: it cannot fit, even if the requests in flight cost nothing.
        """
        if not self.budget.limits_calls:
            worst = Amount()
        elif of is None:
            await self._until_it_fits(call, worst, group=None)
        else:
            await self._until_it_fits_nested(call, worst, of)
        self._reserved += worst
        reservation = Reservation(call, worst)
        if self._within is not None:
            try:
                await self._within.reserve(call, worst, of=self)
            except BaseException:
                self._free(reservation)
                raise
        return reservation

    def settle(
        self, reservation: Reservation, usage: Usage | None, cost_usd: float | None, latency_s: float = 0.0
    ) -> None:
        """Replace a reservation by the actual cost; `usage` is None if the request cost nothing."""
        if usage is not None:
            self._settled += Amount.of(usage, cost_usd)
            for spent in self._accounts(reservation.call):
                spent.add(usage, cost_usd, latency_s)
        self._free(reservation)
        if self._within is not None:
            self._within.settle(reservation, usage, cost_usd, latency_s)

    def settle_unknown(self, reservation: Reservation) -> None:
        """Keep a reservation for good: it is unknown what the request cost."""
        self._possibly_billed += reservation.worst
        self._free(reservation)
        if self._within is not None:
            self._within.settle_unknown(reservation)

    def note_stored(self, call: Call) -> None:
        """Count a reply that came from the cache."""
        for spent in self._accounts(call):
            spent.stored += 1
        if self._within is not None:
            self._within.note_stored(call)

    def deadline(self, now: float) -> float:
        """Return when the time of the budget is over; the first call starts its clock."""
        if self._deadline is None:
            seconds = self.budget.seconds
            around = math.inf if self._within is None else self._within.deadline(now)
            self._deadline = min(around, math.inf if seconds is None else now + seconds)
        return self._deadline

    def absorb(self, other: Ledger) -> None:
        """Add what another tree has spent, for the sum over all trees of an owner."""
        self._settled += other._settled
        self._possibly_billed += other._possibly_billed
        self._total.absorb(other._total)
        for model, spent in other.by_model.items():
            self._by_model.setdefault(model, Spent()).absorb(spent)
        for depth, spent in other.by_depth.items():
            self._by_depth.setdefault(depth, Spent()).absorb(spent)

    def cost_summary(self) -> dict[str, Any]:
        """Return all sums as a plain dict for JSON; costs in dollars, times in seconds."""
        return {
            **self._total.summary(),
            "possibly_billed": {
                "cost_usd": self._possibly_billed.picodollars / PICODOLLARS,
                "tokens": self._possibly_billed.tokens,
                "calls": self._possibly_billed.calls,
            },
            "budget": asdict(self.budget),
            "by_model": {model: spent.summary() for model, spent in self._by_model.copy().items()},
            "by_depth": {str(depth): spent.summary() for depth, spent in self._by_depth.copy().items()},
        }

    def _accounts(self, call: Call) -> tuple[Spent, ...]:
        by_model = self._by_model.get(call.model)
        if by_model is None:
            by_model = self._by_model[call.model] = Spent()
        by_depth = self._by_depth.get(call.depth)
        if by_depth is None:
            by_depth = self._by_depth[call.depth] = Spent()
        return self._total, by_model, by_depth

    async def _until_it_fits(self, call: Call, worst: Amount, group: Hashable) -> None:
        await self._semaphore.acquire(group)
        try:
            while self._exceeds(self._settled + self._possibly_billed + self._reserved + worst):
                self._refuse_impossible(call, worst)
                self._freed = anyio.Event()
                await self._freed.wait()
        finally:
            self._semaphore.release()

    async def _until_it_fits_nested(self, call: Call, worst: Amount, of: Ledger) -> None:
        """Do the same for a nested ledger; the first refusal holds for all of them."""
        try:
            await self._until_it_fits(call, worst, group=of)
        except BudgetExceeded as error:
            self._refusal = self._refusal or error
            raise
        if (refusal := self._refusal) is not None:
            raise BudgetExceeded(
                str(refusal), name=refusal.name, limit=refusal.limit, spent=refusal.spent
            ) from refusal

    def _free(self, reservation: Reservation) -> None:
        self._reserved -= reservation.worst
        if self._freed is not None:
            self._freed.set()
            self._freed = None

    def _refuse_impossible(self, call: Call, worst: Amount) -> None:
        gone = self._settled + self._possibly_billed
        name = self._exceeds(gone + worst)
        if not name:
            return
        limit, spent, needed = {
            "dollars": (self.budget.dollars, gone.picodollars / PICODOLLARS, worst.picodollars / PICODOLLARS),
            "tokens": (self.budget.tokens, gone.tokens, worst.tokens),
            "calls": (self.budget.calls, gone.calls, worst.calls),
        }[name]
        raise BudgetExceeded(
            _explain(name, limit or 0, spent, needed, call), name=name, limit=limit or 0, spent=spent
        )

    def _exceeds(self, amount: Amount) -> str:
        budget = self.budget
        if budget.dollars is not None and amount.picodollars > math.floor(budget.dollars * PICODOLLARS):
            return "dollars"
        if budget.tokens is not None and amount.tokens > budget.tokens:
            return "tokens"
        if budget.calls is not None and amount.calls > budget.calls:
            return "calls"
        return ""


def _explain(name: str, limit: float, spent: float, needed: float, call: Call) -> str:
    """Explain why the next call cannot be sent, and what to set if the budget is too small for any call."""
    budget = f"the budget of {_amount_text(limit, name)}"
    if name == "calls":
        return f"{budget} is used up"
    could = f"could take {_amount_text(needed, name)}"
    cap = call.max_output_tokens
    if cap:
        could += f" (its output is capped at {cap:,} tokens)"
    if needed <= limit:
        return f"{budget} is too far gone: {_amount_text(spent, name)} are used, and the next call to {call.model} {could}"
    option = {"tokens": "--budget-tokens", "dollars": "--budget"}[name]
    return (
        f"{budget} is too small for a single call to {call.model}, which {could}: allow more than that "
        f"({option}, Budget({name}=…)), or cap the output lower (rlm map --max-output-tokens, "
        "SchedulerSettings(default_max_output_tokens=…))"
    )


def _amount_text(amount: float, name: str) -> str:
    if name != "dollars":
        return f"{amount:,.0f} {name.removesuffix('s') if amount == 1 else name}"
    whole, _, decimals = f"{amount:,.8f}".partition(".")
    shown = decimals[:2] if amount >= 1 else decimals.rstrip("0").ljust(2, "0")
    return f"${whole}.{shown}"


def certainly_unbilled(error: BaseException) -> bool:
    """Return True if the provider cannot have worked on a request that failed with this error."""
    if isinstance(error, ConnectionFailed):
        return not error.sent
    if isinstance(error, ServerError):
        return error.status not in GATEWAY_TIMEOUTS
    return isinstance(error, REFUSED)
