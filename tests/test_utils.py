"""The doors that rlm-minimal made known open on something."""

from __future__ import annotations

import pytest

from rlm.engine.prompts import DEFAULT_QUESTION, system_prompt
from rlm.errors import SettingsError
from rlm.settings import RunSettings
from rlm.utils import llm, prompts


def test_the_default_query_is_what_is_asked_without_one():
    assert prompts.DEFAULT_QUERY == DEFAULT_QUESTION


def test_the_system_prompt_comes_as_messages():
    assert prompts.build_system_prompt() == [{"role": "system", "content": system_prompt(RunSettings())}]


@pytest.mark.parametrize("kind", [llm.OpenAIClient, llm.AsyncOpenAIClient])
@pytest.mark.parametrize(
    "key", ["sk-proj-abcdefghijklmnop", "AIzaSyA1234567890abcdefghijklmn", "gsk_abcdefghijklmnopqrstuvw"]
)
def test_a_key_in_the_place_of_a_model_is_refused_and_not_shown(kind, key):
    with pytest.raises(SettingsError, match="api_key=") as caught:
        kind(key, base_url="http://localhost:1/v1")
    assert key[8:] not in repr(caught.value)


@pytest.mark.parametrize(
    "model", ["gpt-5-nano", "sk-canary", "hf-internal/tiny", "xai/grok-4", "openai/gpt-oss-120b"]
)
def test_the_name_of_a_model_is_not_taken_for_a_key(model):
    kind = llm.AsyncOpenAIClient
    assert kind(model, base_url="http://localhost:1/v1").model == model
