"""Compute the cost of usage in dollars; the only module that knows the price library.

Prices come from genai-prices, which holds them offline and is imported when the first price is needed, in a fraction
of a second. It knows tiers that depend on the length of a prompt: price each call, never a sum of calls.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rlm.errors import SettingsError
from rlm.values import Usage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["BATCH_FACTOR", "Price", "load_price_list", "missing_price", "price"]

BATCH_FACTOR = 0.5
"""Price of calls through a provider's Batch API, relative to other calls: the same at OpenAI, Anthropic, Google and Mistral."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Dollars per million tokens; cached input costs as much as other input unless it has its own price.

    Raises:
        SettingsError: a price is negative or not a number.
    """

    input: float
    output: float
    cached: float | None = None

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise SettingsError(f"{name}={value!r}: a price is a number of dollars, 0 or more")

    def of(self, usage: Usage) -> float:
        """Return the cost of a usage in dollars."""
        cached = min(usage.cached_tokens, usage.input_tokens)
        cached_price = self.input if self.cached is None else self.cached
        dollars = (
            (usage.input_tokens - cached) * self.input
            + cached * cached_price
            + usage.output_tokens * self.output
        )
        return dollars / 1_000_000


def price(
    model: str,
    usage: Usage,
    *,
    overrides: Mapping[str, Price] | None = None,
    endpoint: str | None = None,
    factor: float = 1.0,
) -> float | None:
    """Return the cost of one call's usage in dollars, or None if the price of the model is not known.

    Args:
        model: a name as it is sent or reported: `gpt-5`, `openai/gpt-5`, `gpt-5-2025-08-07`.
        usage: of one call; its reasoning tokens are a part of its output tokens.
        overrides: prices by model name, ahead of the price list. A name also matches its dated versions and itself
            after a provider's name.
        endpoint: the base URL of the endpoint, which identifies the provider if several sell the model.
        factor: `BATCH_FACTOR` for calls through a Batch API.
    """
    if overrides and (own := _overriding(model, overrides)) is not None:
        return own.of(usage) * factor
    calculated = _calculated(model, usage, endpoint)
    return None if calculated is None else float(calculated.total_price) * factor


def load_price_list() -> None:
    """Load the price list, which takes about half a second, before the first call.

    Its files are opened now: later, with many connections, the process may be out of file descriptors.
    """
    price("gpt-5", Usage(calls=1, input_tokens=1, output_tokens=1))


def missing_price(model: str) -> str:
    """Return the message that a budget in dollars cannot be kept without the price of a model, and what to do."""
    return (
        f"a budget in dollars cannot be kept, because the price of {model!r} is not known: give it with "
        f"prices={{{model!r}: Price(input=..., output=...)}} (--price {model}=INPUT,OUTPUT) in dollars per million "
        "tokens, or set a budget in tokens or calls"
    )


_DATE = re.compile(r"[-@](?:20\d\d-?[01]\d-?[0-3]\d|latest)$")


def _overriding(model: str, overrides: Mapping[str, Price]) -> Price | None:
    bare = model.rpartition("/")[2]
    for name in (model, _DATE.sub("", model), bare, _DATE.sub("", bare)):
        if name in overrides:
            return overrides[name]
    return None


# --- The price list -----------------------------------------------------------------------------------------------


def _calculated(model: str, usage: Usage, endpoint: str | None) -> Any:
    reference = _listed_as(model, endpoint)
    return None if reference is None else _calculate(usage, reference)


@lru_cache(maxsize=1_024)
def _listed_as(model: str, endpoint: str | None) -> tuple[tuple[str, str], ...] | None:
    """Return the arguments with which the library finds the model and its price, or None."""
    for reference in _references(model, endpoint):
        found = tuple(reference.items())
        if _has_price(_calculate(Usage(), found)):
            return found
    return None


def _references(model: str, endpoint: str | None) -> Iterator[dict[str, str]]:
    """Yield arguments to look up a model, most certain first; none of them guesses a provider."""
    model = model.strip().removeprefix("models/")
    if _OLLAMA_TAG.search(model):
        return  # `deepseek-r1:8b` runs on the user's machine, although the list has a `deepseek-r1`
    names = dict.fromkeys((model, _DATE.sub("", model)))
    for name in names:
        provider, _, rest = name.partition("/")
        if endpoint:
            yield {"model_ref": name, "provider_api_url": endpoint}
        yield {"model_ref": name}
        if rest:
            yield {"model_ref": rest, "provider_id": provider}
            if provider in _SOLD_BY_OPENROUTER:
                yield {"model_ref": name, "provider_id": "openrouter"}


_OLLAMA_TAG = re.compile(r":(?:e?\d+(?:\.\d+)?[bm]\b|latest$)", re.IGNORECASE)
_SOLD_BY_OPENROUTER = frozenset({"openai", "anthropic", "google", "x-ai", "deepseek", "mistralai", "cohere"})


def _calculate(usage: Usage, reference: tuple[tuple[str, str], ...]) -> Any:
    import genai_prices

    tokens = genai_prices.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=min(usage.cached_tokens, usage.input_tokens),
    )
    try:
        keywords: dict[str, Any] = dict(reference)  # one overload each for a provider's name and for its URL
        return genai_prices.calc_price(tokens, **keywords)
    except LookupError:
        return None


def _has_price(calculated: Any) -> bool:
    """Return True if text has a price; the list also has models with an unknown price, as zero dollars."""
    if calculated is None:
        return False
    prices = calculated.model_price
    return prices.input_mtok is not None and prices.output_mtok is not None
