"""Numbers in the headers of a response: rate limits and how long to wait."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from rlm.values import RateLimits

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["non_negative", "rate_limits", "retry_after"]

DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def rate_limits(headers: Mapping[str, str]) -> RateLimits | None:
    """Read the `x-ratelimit-*` headers; None if there are none."""
    values = {
        f"{kind}_{name}": read(headers.get(f"x-ratelimit-{header}-{kind}", ""))
        for kind in ("requests", "tokens")
        for name, header, read in (
            ("per_minute", "limit", non_negative),
            ("remaining", "remaining", non_negative),
            ("reset_s", "reset", _duration),
        )
    }
    return RateLimits(**values) if any(value is not None for value in values.values()) else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait, from `retry-after-ms` or `Retry-After` (seconds, or a date).

    A date is compared with the server's own `Date` header, if it sends one, so that a wrong clock of ours is harmless.
    """
    if (milliseconds := non_negative(headers.get("retry-after-ms", ""))) is not None:
        return milliseconds / 1000
    value = headers.get("retry-after", "")
    if (seconds := non_negative(value)) is not None:
        return seconds
    try:
        until = parsedate_to_datetime(value)
        now = parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.now(UTC)
        return max(0.0, (until - now).total_seconds())
    except (TypeError, ValueError):
        return None


def non_negative(text: str) -> float | None:
    """Return the number that a text is, or None if it is none, negative or not finite."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _duration(text: str) -> float | None:
    """Return the seconds in `6m0s`, `20ms` or a plain number."""
    if (number := non_negative(text)) is not None:
        return number
    parts = DURATION.findall(text)
    if not parts or "".join(amount + unit for amount, unit in parts) != text.strip():
        return None
    return sum(float(amount) * UNIT_SECONDS[unit] for amount, unit in parts)
