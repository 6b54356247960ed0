"""What a tree of runs may spend, and what it has spent."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rlm.errors import SettingsError
from rlm.values import Usage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rlm.values import Call

__all__ = ["Budget", "Ledger", "Spent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The most that a tree of runs may spend; None is no limit.

    Attributes:
        dollars: money, at the prices of the models.
        tokens: input and output tokens together.
        calls: requests that a model answered, or may have.
        seconds: wall time from the moment the tree was made.
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
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise SettingsError(
                    f"budget {name}={value!r}: must be a number above 0, or None for no limit"
                )


@dataclass(slots=True)
class Spent:
    """A running sum: the usage, its price, and how many of its calls have no known price."""

    usage: Usage = field(default_factory=Usage)
    priced_usd: float = 0.0
    unpriced_calls: int = 0
    latency_s: float = 0.0

    @property
    def cost_usd(self) -> float | None:
        """Dollars, or None where the price of a part is not known."""
        return None if self.unpriced_calls else self.priced_usd

    def add(self, usage: Usage, cost_usd: float | None, latency_s: float) -> None:
        """Add what one request used."""
        self.usage = self.usage + usage
        self.latency_s += latency_s
        if cost_usd is None:
            self.unpriced_calls += 1
        else:
            self.priced_usd += cost_usd

    def summary(self) -> dict[str, Any]:
        """The sum as a plain dict."""
        return {
            **asdict(self.usage),
            "total_tokens": self.usage.total_tokens,
            "cost_usd": self.cost_usd,
            "latency_s": self.latency_s,
        }


class Ledger:
    """What a tree of runs has spent: in total, per model and per depth."""

    def __init__(self, budget: Budget | None = None) -> None:
        self.budget = budget or Budget()
        self.stored_replies = 0
        self._total = Spent()
        self._by_model: dict[str, Spent] = {}
        self._by_depth: dict[int, Spent] = {}

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

    def charge(self, call: Call, usage: Usage, cost_usd: float | None, latency_s: float = 0.0) -> None:
        """Add what one request was billed, whether it was answered or failed."""
        for spent in (
            self._total,
            self._by_model.setdefault(call.model, Spent()),
            self._by_depth.setdefault(call.depth, Spent()),
        ):
            spent.add(usage, cost_usd, latency_s)

    def cost_summary(self) -> dict[str, Any]:
        """Everything as a plain dict that JSON can hold; costs in dollars, times in seconds."""
        return {
            **self._total.summary(),
            "unpriced_calls": self._total.unpriced_calls,
            "stored_replies": self.stored_replies,
            "by_model": {model: spent.summary() for model, spent in self._by_model.items()},
            "by_depth": {str(depth): spent.summary() for depth, spent in self._by_depth.items()},
        }
