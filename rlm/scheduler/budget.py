"""What a tree of runs may spend, what it has spent, and what it has promised."""

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
    SettingsError,
    UnknownModel,
)
from rlm.values import Usage

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from rlm.values import Call

__all__ = ["Amount", "Budget", "Ledger", "Reservation", "Spent", "surely_unbilled"]

PICODOLLARS = 10**12
REFUSED = (AuthenticationFailed, BadRequest, QuotaExhausted, RateLimited, UnknownModel)
GATEWAY_TIMEOUTS = frozenset({408, 504, 524})


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The most that a tree of runs may spend; None is no limit.

    Attributes:
        dollars: money, at the prices of the models.
        tokens: input and output tokens together.
        calls: requests that a model answered, or may have.
        seconds: wall time from the tree's first call.
    """

    dollars: float | None = None
    tokens: int | None = None
    calls: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("dollars", "tokens", "calls", "seconds"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise SettingsError(
                    f"budget {name}={value!r}: must be a number above 0, or None for no limit"
                )

    @property
    def limits_calls(self) -> bool:
        """Whether calls have to be reserved: there is a limit other than time."""
        return self.dollars is not None or self.tokens is not None or self.calls is not None

    def within(self, other: Budget) -> Budget:
        """The lower limit of both, for each of them."""
        limits = {}
        for name in ("dollars", "tokens", "calls", "seconds"):
            set_limits = [limit for limit in (getattr(self, name), getattr(other, name)) if limit is not None]
            limits[name] = min(set_limits, default=None)
        return Budget(**limits)


@dataclass(frozen=True, slots=True)
class Amount:
    """Something to spend: money in whole picodollars, so that sums are exact, tokens, and calls."""

    picodollars: int = 0
    tokens: int = 0
    calls: int = 0

    @classmethod
    def of(cls, usage: Usage, cost_usd: float | None) -> Amount:
        """The amount of a usage; a fraction of a picodollar counts as one."""
        return cls(math.ceil((cost_usd or 0.0) * PICODOLLARS), usage.total_tokens, usage.calls)

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.picodollars + other.picodollars, self.tokens + other.tokens, self.calls + other.calls
        )

    def __sub__(self, other: Amount) -> Amount:
        return Amount(
            self.picodollars - other.picodollars, self.tokens - other.tokens, self.calls - other.calls
        )


@dataclass(slots=True)
class Spent:
    """A running sum: the usage, its price, and how many of its requests have no known price.

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
        """Dollars, or None where the price of a part is not known."""
        return None if self.unpriced else self.priced_usd

    def add(self, usage: Usage, cost_usd: float | None, latency_s: float) -> None:
        """Add what one request used."""
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
        """The sum as a plain dict."""
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
    """The most that one request in flight can cost; given back with `Ledger.settle`."""

    call: Call
    worst: Amount


class Ledger:
    """What a tree of runs has spent, in total, per model and per depth; and what its requests in flight may cost.

    Before each request its worst case is reserved, and after it what it did cost takes the place of that. The sum
    of both never passes the budget, as long as the worst case is one. Where a request was cancelled, timed out or
    lost its connection, nobody knows whether it will be billed: its worst case stays set aside for good
    (`possibly_billed` in the summary), and is not counted as spent.

    Several ledgers may lie within another one: what is reserved and spent in them is so in that one too, so they
    share its budget, and each still knows its own share. When one of them has been refused by it, all are refused
    from then on: those that share a budget stop together, and none starves the others with ever smaller requests.

    Attributes:
        budget: the most that may be spent, that of the ledger around it included.
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
        self._set_aside = Amount()
        self._semaphore = FairSemaphore(1)
        self._freed: anyio.Event | None = None

    @property
    def usage(self) -> Usage:
        """Tokens and calls of the whole tree."""
        return self._total.usage

    @property
    def cost_usd(self) -> float | None:
        """Dollars of the whole tree, or None where a model that was used has no known price."""
        return self._total.cost_usd

    @property
    def by_model(self) -> Mapping[str, Spent]:
        """The same, per model."""
        return self._by_model

    @property
    def by_depth(self) -> Mapping[int, Spent]:
        """The same, per depth of the run tree."""
        return self._by_depth

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing more is granted to the ledgers within this one."""
        return self._refusal is not None

    async def reserve(self, call: Call, worst: Amount, *, of: Ledger | None = None) -> Reservation:
        """Set the worst case of a request aside, waiting for those in flight to settle where it does not fit yet.

        Args:
            call: the request.
            worst: the most it can cost.
            of: the ledger within this one that asks, if one does; they take turns.

        Raises:
            BudgetExceeded: it cannot fit, however little those in flight will cost.
        """
        if not self.budget.limits_calls:
            worst = Amount()
        elif of is None:
            await self._until_it_fits(call, worst, group=None)
        else:
            await self._until_it_fits_all(call, worst, of)
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
        """A request ended and cost this; `usage` None where it cost nothing."""
        if usage is not None:
            self._settled += Amount.of(usage, cost_usd)
            for spent in self._accounts(reservation.call):
                spent.add(usage, cost_usd, latency_s)
        self._free(reservation)
        if self._within is not None:
            self._within.settle(reservation, usage, cost_usd, latency_s)

    def settle_unknown(self, reservation: Reservation) -> None:
        """A request ended and nobody knows what it cost."""
        self._set_aside += reservation.worst
        self._free(reservation)
        if self._within is not None:
            self._within.settle_unknown(reservation)

    def note_stored(self, call: Call) -> None:
        """A reply came from the cache."""
        for spent in self._accounts(call):
            spent.stored += 1
        if self._within is not None:
            self._within.note_stored(call)

    def deadline(self, now: float) -> float:
        """When its time is up; the first to ask starts its clock."""
        if self._deadline is None:
            seconds = self.budget.seconds
            around = math.inf if self._within is None else self._within.deadline(now)
            self._deadline = min(around, math.inf if seconds is None else now + seconds)
        return self._deadline

    def absorb(self, other: Ledger) -> None:
        """Add what another tree has spent, for the sum over all trees of an owner."""
        self._settled += other._settled
        self._set_aside += other._set_aside
        self._total.absorb(other._total)
        for model, spent in other.by_model.items():
            self._by_model.setdefault(model, Spent()).absorb(spent)
        for depth, spent in other.by_depth.items():
            self._by_depth.setdefault(depth, Spent()).absorb(spent)

    def cost_summary(self) -> dict[str, Any]:
        """Everything as a plain dict that JSON can hold; costs in dollars, times in seconds."""
        return {
            **self._total.summary(),
            "possibly_billed": {
                "cost_usd": self._set_aside.picodollars / PICODOLLARS,
                "tokens": self._set_aside.tokens,
                "calls": self._set_aside.calls,
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
            while self._exceeds(self._settled + self._set_aside + self._reserved + worst):
                self._refuse_impossible(call, worst)
                self._freed = anyio.Event()
                await self._freed.wait()
        finally:
            self._semaphore.release()

    async def _until_it_fits_all(self, call: Call, worst: Amount, of: Ledger) -> None:
        """The same for a ledger within this one; the first refusal is for all of them."""
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
        gone = self._settled + self._set_aside
        name = self._exceeds(gone + worst)
        if not name:
            return
        limit, spent, needed = {
            "dollars": (self.budget.dollars, gone.picodollars / PICODOLLARS, worst.picodollars / PICODOLLARS),
            "tokens": (self.budget.tokens, gone.tokens, worst.tokens),
            "calls": (self.budget.calls, gone.calls, worst.calls),
        }[name]
        raise BudgetExceeded(
            _why(name, limit or 0, spent, needed, call), name=name, limit=limit or 0, spent=spent
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


def _why(name: str, limit: float, spent: float, needed: float, call: Call) -> str:
    """Why the next call cannot be made, and where the budget never sufficed for it, what to set."""
    budget = f"the budget of {_in_words(limit, name)}"
    if name == "calls":
        return f"{budget} is used up"
    could = f"could take {_in_words(needed, name)}"
    cap = call.max_output_tokens
    if cap:
        could += f" (its output is capped at {cap:,} tokens)"
    if needed <= limit:
        return f"{budget} is too far gone: {_in_words(spent, name)} are used, and the next call to {call.model} {could}"
    option = {"tokens": "--budget-tokens", "dollars": "--budget"}[name]
    return (
        f"{budget} is too small for a single call to {call.model}, which {could}: allow more than that "
        f"({option}, Budget({name}=…)), or cap the output lower (rlm map --max-output-tokens, "
        "SchedulerSettings(default_max_output_tokens=…))"
    )


def _in_words(amount: float, name: str) -> str:
    if name != "dollars":
        return f"{amount:,.0f} {name.removesuffix('s') if amount == 1 else name}"
    whole, _, decimals = f"{amount:,.8f}".partition(".")
    shown = decimals[:2] if amount >= 1 else decimals.rstrip("0").ljust(2, "0")
    return f"${whole}.{shown}"


def surely_unbilled(error: BaseException) -> bool:
    """Whether a request that failed without a bill was certainly not worked on."""
    if isinstance(error, ConnectionFailed):
        return not error.sent
    if isinstance(error, ServerError):
        return error.status not in GATEWAY_TIMEOUTS
    return isinstance(error, REFUSED)
