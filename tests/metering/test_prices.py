from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm.errors import SettingsError
from rlm.metering.prices import BATCH_FACTOR, Price, price
from rlm.values import Usage

MILLION = Usage(calls=1, input_tokens=1_000_000, output_tokens=1_000_000)
OURS = {"my-model": Price(input=1.0, cached=0.1, output=10.0)}


def test_an_override_prices_input_cached_input_and_output_per_million_tokens():
    usage = Usage(calls=1, input_tokens=1_000_000, cached_tokens=400_000, output_tokens=100_000)
    assert price("my-model", usage, overrides=OURS) == pytest.approx(0.6 + 0.04 + 1.0)


def test_cached_input_without_a_price_of_its_own_costs_as_much_as_input():
    usage = Usage(calls=1, input_tokens=1_000_000, cached_tokens=400_000)
    assert Price(input=2.0, output=0.0).of(usage) == pytest.approx(2.0)


@pytest.mark.parametrize(
    "name", ["my-model", "my-model-2026-01-31", "local/my-model", "local/my-model-20260131"]
)
def test_an_override_stands_for_dated_names_and_names_behind_a_provider(name):
    assert price(name, MILLION, overrides=OURS) == pytest.approx(11.0)


def test_an_override_goes_before_the_price_list():
    assert price("gpt-5", MILLION, overrides={"gpt-5": Price(input=0.0, output=0.0)}) == 0.0


def test_a_batch_costs_half():
    assert price("my-model", MILLION, overrides=OURS, factor=BATCH_FACTOR) == pytest.approx(5.5)
    assert price("gpt-5", MILLION, factor=BATCH_FACTOR) == pytest.approx(price("gpt-5", MILLION) / 2)


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_a_price_that_is_no_amount_of_dollars_is_refused(wrong):
    with pytest.raises(SettingsError, match="0 or more"):
        Price(input=wrong, output=1.0)


def test_a_listed_model_is_priced_and_cached_input_is_cheaper():
    cached = Usage(calls=1, input_tokens=1_000_000, cached_tokens=1_000_000)
    plain = Usage(calls=1, input_tokens=1_000_000)
    assert 0 < price("gpt-5", cached) < price("gpt-5", plain)


@pytest.mark.parametrize(
    "name",
    ["openai/gpt-5", "openrouter/openai/gpt-5", "gpt-5-2025-08-07", "gpt-5-20250807", "gpt-5-latest", "GPT-5", "azure/gpt-5"],
)  # fmt: skip
def test_a_model_is_found_behind_a_provider_and_with_a_date(name):
    assert price(name, MILLION) == price("gpt-5", MILLION)
    assert price(name, MILLION) > 0


def test_a_vendors_model_is_found_under_the_name_that_routers_give_it():
    assert price("anthropic/claude-sonnet-4.5", MILLION) == price("claude-sonnet-4-5-20250929", MILLION)
    assert price("google/gemini-2.5-flash", MILLION) == price("models/gemini-2.5-flash", MILLION)


@pytest.mark.parametrize(
    "name", ["", "/", "no-such-model", "gpt-5-of-my-own", "offline", "llama3.2", "deepseek-r1:8b", "qwen3:0.6b", "\ud800"]
)  # fmt: skip
def test_an_unknown_model_has_no_price_rather_than_a_guess(name):
    assert price(name, MILLION) is None


def test_a_model_that_the_list_names_without_a_price_is_not_free():
    from genai_prices.data_snapshot import get_snapshot

    unpriced = [
        f"{provider.id}/{model.id}"
        for provider in get_snapshot().providers
        for model in provider.models
        if getattr(model.prices, "__dict__", None) == {}
    ]
    assert unpriced
    assert 0.0 not in {price(name, MILLION) for name in unpriced}
    assert price("text-embedding-3-small", MILLION) is None


def test_the_endpoint_tells_which_provider_sells_the_model():
    groq = price("openai/gpt-oss-120b", MILLION, endpoint="https://api.groq.com/openai/v1")
    assert groq is not None
    assert price("gpt-5", MILLION, endpoint="http://127.0.0.1:4000/v1") == price("gpt-5", MILLION)


def test_long_prompts_can_cost_more_per_token_so_calls_are_priced_one_by_one():
    small = Usage(calls=1, input_tokens=150_000)
    large = Usage(calls=1, input_tokens=300_000)
    assert price("gemini-2.5-pro", large) > 2 * price("gemini-2.5-pro", small)


def test_more_cached_tokens_than_input_tokens_is_taken_as_all_cached():
    odd = Usage(calls=1, input_tokens=10, cached_tokens=40)
    assert price("gpt-5", odd) == price("gpt-5", Usage(calls=1, input_tokens=10, cached_tokens=10))
    assert Price(input=1.0, cached=0.0, output=0.0).of(odd) == 0.0


tokens = st.integers(0, 10**9)


@given(st.builds(Usage, calls=st.just(1), input_tokens=tokens, cached_tokens=tokens, output_tokens=tokens))
def test_a_price_is_never_negative_and_never_above_the_uncached_one(usage):
    uncached = Usage(calls=1, input_tokens=usage.input_tokens, output_tokens=usage.output_tokens)
    assert 0 <= OURS["my-model"].of(usage) <= OURS["my-model"].of(uncached) * (1 + 1e-12)
