"""How much a call may use at most, learned from what its endpoint counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from rlm.values import Usage

if TYPE_CHECKING:
    from rlm.values import Call

__all__ = ["CountTokens", "Measure", "Observe", "bound", "estimate_tokens", "utf8_size"]

CountTokens: TypeAlias = Callable[["Call"], int]
"""Tokens of a call's prompt; better too many than too few, because budgets are kept by it."""

Observe: TypeAlias = Callable[["Call", Usage], None]
"""Is told what each call was counted as by its endpoint, so that whoever counts can learn."""


MARGIN = 4 / 3
BYTES_PER_MESSAGE = 16


class Measure:
    """The worst case of a call: its prompt as counted, and its output at the cap.

    A count that turns out too low for a model is raised from then on by the largest factor seen, so that an
    estimate becomes a bound.
    """

    def __init__(self, count_tokens: CountTokens) -> None:
        self._count_tokens = count_tokens
        self._factors: dict[str, float] = {}

    def worst_case(self, call: Call) -> Usage:
        """The most that one request of this call can use."""
        counted = self._count_tokens(call)
        raised = int(counted * self._factors.get(call.model, 1.0) + 0.999_999)
        return Usage(calls=1, input_tokens=raised, output_tokens=call.max_output_tokens or 0)

    def learn(self, model: str, worst: Usage, used: Usage) -> None:
        """Compare what was expected with what the endpoint counted."""
        if worst.input_tokens and used.input_tokens > worst.input_tokens:
            factor = self._factors.get(model, 1.0)
            self._factors[model] = factor * used.input_tokens / worst.input_tokens


def bound(count_tokens: CountTokens) -> CountTokens:
    """A count that errs upwards: a third more, but never more than a token for each byte.

    The estimate of `rlm.metering.tokens` was at most 26 % off on real texts, in many languages and code; a tokeniser that
    works on bytes cannot need more tokens than there are bytes.
    """

    def bounded(call: Call) -> int:
        bytes_of_text = sum(utf8_size(message.content) + BYTES_PER_MESSAGE for message in call.messages)
        return min(math.ceil(count_tokens(call) * MARGIN), bytes_of_text)

    return bounded


def estimate_tokens(call: Call) -> int:
    """About how many tokens a call's prompt has: one for three bytes, which is more than most texts need."""
    return sum(utf8_size(message.content) // 3 + 8 for message in call.messages)


def utf8_size(text: str) -> int:
    """Bytes of a text in UTF-8, lone surrogates included."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
