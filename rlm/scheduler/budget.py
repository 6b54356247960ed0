"""What a tree of runs may spend."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlm.errors import SettingsError

if TYPE_CHECKING:
    from rlm.values import Usage

__all__ = ["PICODOLLARS", "Amount", "Budget"]

PICODOLLARS = 10**12


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Upper limits of what a tree of runs may spend; None is no limit.

    Attributes:
        dollars: money, at the prices of the models.
        tokens: input and output tokens together.
        calls: requests that a model answered, or may have answered.
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
        """True if calls have to be reserved, because there is a limit other than time."""
        return self.dollars is not None or self.tokens is not None or self.calls is not None

    def within(self, other: Budget) -> Budget:
        """Return the lower of both limits, for each kind."""
        limits = {}
        for name in ("dollars", "tokens", "calls", "seconds"):
            set_limits = [limit for limit in (getattr(self, name), getattr(other, name)) if limit is not None]
            limits[name] = min(set_limits, default=None)
        return Budget(**limits)


@dataclass(frozen=True, slots=True)
class Amount:
    """A sum of money in whole picodollars, so that sums are exact, of tokens, and of calls."""

    picodollars: int = 0
    tokens: int = 0
    calls: int = 0

    @classmethod
    def of(cls, usage: Usage, cost_usd: float | None) -> Amount:
        """Return the amount of a usage; a fraction of a picodollar counts as one."""
        return cls(math.ceil((cost_usd or 0.0) * PICODOLLARS), usage.total_tokens, usage.calls)

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.picodollars + other.picodollars, self.tokens + other.tokens, self.calls + other.calls
        )

    def __sub__(self, other: Amount) -> Amount:
        return Amount(
            self.picodollars - other.picodollars, self.tokens - other.tokens, self.calls - other.calls
        )
