from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm import errors
from rlm.clients.chat_format import Dialect, StreamReader, encode_body, read_reply, request_body
from rlm.clients.error_mapping import Failure, call_error, read_failure, redact, unsupported_parameter
from rlm.clients.headers import rate_limits, retry_after
from rlm.values import Call, Message, Reply, Usage

CALL = Call(model="m", messages=(Message("user", "hello"),))

FIELDS = (
    "choices message delta content usage error code finish_reason refusal prompt_tokens completion_tokens"
    " prompt_tokens_details cached_tokens text model"
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS.split()), inner, max_size=5)
    ),
    max_leaves=20,
)


@given(json_values)
def test_any_body_is_a_reply_or_an_error_of_ours(body):
    with suppress(errors.CallError):
        assert isinstance(read_reply(json.dumps(body).encode(), CALL, "host", {}), Reply)


@given(st.binary(max_size=50))
def test_any_bytes_are_a_reply_or_an_error_of_ours(content):
    with pytest.raises(errors.CallError):
        read_reply(content, CALL, "host", {})


@given(
    st.lists(json_values.map(lambda value: f"data: {json.dumps(value)}") | st.text(max_size=20), max_size=6)
)
def test_any_stream_is_a_reply_or_an_error_of_ours(lines):
    reader = StreamReader(CALL, "host", {})
    with suppress(errors.CallError):
        text = "".join([reader.feed(line) for line in lines])
        assert reader.reply().text == text


@given(json_values, st.integers(200, 599))
def test_any_failure_is_an_error_of_ours_in_one_line(body, status):
    error = call_error(read_failure(status, body, {}), "m", "host")
    assert isinstance(error, errors.CallError)
    assert "\n" not in str(error)


@given(st.text(), st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "date"]), st.text()))
def test_no_header_breaks_the_reading(value, headers):
    waiting = retry_after(headers)
    assert waiting is None or waiting >= 0
    rate_limits({"x-ratelimit-reset-requests": value, "x-ratelimit-limit-tokens": value})


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        (
            {"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"},
            30.0,
        ),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ],
)
def test_retry_after_is_read_in_each_of_its_forms(headers, seconds):
    assert retry_after(headers) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("20ms", 0.02),
        ("1h2m3.5s", 3723.5),
        ("7", 7.0),
        ("", None),
        ("1x", None),
    ],
)
def test_the_reset_of_a_limit_is_a_duration(text, seconds):
    limits = rate_limits({"x-ratelimit-reset-tokens": text, "x-ratelimit-limit-tokens": "1"})
    assert limits.tokens_reset_s == seconds


def test_no_headers_are_no_rate_limits():
    assert rate_limits({"content-type": "application/json"}) is None


def failure(status, message="", **fields):
    return Failure(status=status, message=message, **fields)


@pytest.mark.parametrize(
    ("reported", "kind"),
    [
        # as vLLM, llama.cpp, Ollama, OpenRouter, DeepSeek, Groq, Mistral and Anthropic's compatible endpoint say it
        (failure(404, "The model `x` does not exist.", kind="NotFoundError"), errors.UnknownModel),
        (failure(404, 'model "x" not found, try pulling it first'), errors.UnknownModel),
        (failure(400, "x is not a valid model ID"), errors.UnknownModel),
        (failure(400, "Model Not Exist"), errors.UnknownModel),
        (failure(400, "Invalid model: x"), errors.UnknownModel),
        (failure(403, "Project has no access", code="model_not_found"), errors.UnknownModel),
        (
            failure(400, "This model's maximum context length is 4096 tokens. However, you requested 5000"),
            errors.ContextTooLong,
        ),
        (failure(400, "request (9 tokens) exceeds the available context size (4)"), errors.ContextTooLong),
        (failure(400, "prompt is too long: 210000 tokens > 200000 maximum"), errors.ContextTooLong),
        (failure(400, "", code="context_length_exceeded"), errors.ContextTooLong),
        (failure(413, "Request Entity Too Large"), errors.BadRequest),
        (failure(402, "Insufficient Balance"), errors.QuotaExhausted),
        (failure(429, "", kind="insufficient_quota"), errors.QuotaExhausted),
        (failure(429, "Rate limit reached for model `x`: unknown tier"), errors.RateLimited),
        (failure(529, "Overloaded", kind="overloaded_error"), errors.ServerError),
        (failure(425), errors.ServerError),
        (failure(401), errors.AuthenticationFailed),
        (failure(404, "Not Found"), errors.BadRequest),
        (failure(422, "messages: field required"), errors.BadRequest),
        (failure(301), errors.BadRequest),
        (failure(200, "", kind="insufficient_quota"), errors.QuotaExhausted),
        (failure(200, "", code="rate_limit_exceeded"), errors.RateLimited),
        (failure(200, "maximum context length is 8"), errors.ContextTooLong),
        (failure(200, "whatever"), errors.BadReply),
    ],
)
def test_what_an_endpoint_says_is_one_error(reported, kind):
    error = call_error(reported, "m", "host")
    assert type(error) is kind
    assert "'m'" in str(error) or "base URL" in str(error)
    assert error.retryable == issubclass(kind, errors.TransientError)


def test_long_words_of_a_provider_are_cut():
    assert len(str(call_error(failure(500, "x" * 10_000), "m", "host"))) < 500


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "words"}},
        {"error": "words"},
        {"message": "words"},
        {"detail": "words"},
        "words",
    ],
)
def test_the_words_of_an_error_are_found_in_each_of_its_forms(body):
    assert read_failure(500, body, {}).message == "words"


BODY = {"model": "m", "max_tokens": 5, "temperature": 0.2}


@pytest.mark.parametrize(
    ("reported", "lesson"),
    [
        (failure(400, "Unsupported parameter: 'max_tokens'", code="unsupported_parameter"), "max_tokens"),
        (
            failure(
                400, "'max_tokens' is not supported. Use 'max_completion_tokens' instead.", param="max_tokens"
            ),
            "max_tokens",
        ),
        (failure(400, "", code="unsupported_value", param="temperature"), "temperature"),
        (failure(422, "Unrecognized request argument supplied: temperature"), "temperature"),
        (failure(400, "max_tokens is too large: 9", code="invalid_value", param="max_tokens"), None),
        (failure(400, "Unsupported parameter: 'top_k'", code="unsupported_parameter", param="top_k"), None),
        (failure(400, "max_completion_tokens is not supported"), None),
        (failure(500, "max_tokens is not supported"), None),
    ],
)
def test_only_a_refused_parameter_that_was_sent_is_left_out(reported, lesson):
    assert unsupported_parameter(reported, BODY) == lesson


def test_the_cap_is_sent_under_the_first_name_that_is_not_refused():
    both = frozenset({"max_tokens", "max_completion_tokens"})
    assert Dialect("max_tokens").cap_name() == "max_tokens"
    assert Dialect("max_tokens", frozenset({"max_tokens"})).cap_name() == "max_completion_tokens"
    assert Dialect("max_completion_tokens", both).cap_name() is None


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        (
            {"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": False},
            True,
        ),
        ({"type": "object", "properties": {"a": {}}, "required": ["a"]}, False),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": False}, False),
        ({"type": "array", "items": {"type": "object"}}, False),
        ({"type": "array", "items": {"type": "string"}}, True),
    ],
)
def test_strict_mode_is_asked_for_where_the_schema_allows_it(schema, strict):
    body = request_body(Call(model="m", messages=(), schema=schema), Dialect())
    assert body["response_format"]["json_schema"]["strict"] is strict


def test_what_is_no_json_is_refused_with_its_reason():
    with pytest.raises(errors.BadRequest, match="no JSON value"):
        encode_body({"model": "m", "x": float("nan")})


@given(st.text())
def test_any_text_can_be_sent(text):
    body = request_body(Call(model="m", messages=(Message("user", text),)), Dialect())
    assert json.loads(encode_body(body))["messages"][0]["content"] == text.encode("utf-8", "replace").decode()


def test_content_in_parts_is_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    body = {"choices": [{"message": {"content": parts}, "finish_reason": "stop"}]}
    assert read_reply(json.dumps(body).encode(), CALL, "host", {}).text == "ab"


def test_strange_numbers_in_the_usage_are_none():
    usage = {"prompt_tokens": 5, "completion_tokens": -3, "prompt_tokens_details": {"cached_tokens": "many"}}
    body = {"choices": [{"message": {"content": "a"}}], "usage": usage}
    assert read_reply(json.dumps(body).encode(), CALL, "host", {}).usage == Usage(1, 5, 0, 0, 0)


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key provided: sk-proj-abcdEFGH1234.",
        "key sk-ab****************wxyz is revoked",
        "gsk_abcdefghijklmnop",
        "Authorization: Bearer abc.def",
        "AIzaSyA1234567890abcdefghijklmnop",
        "my-own-secret",
    ],
)
def test_no_key_survives(text):
    cleaned = redact(text, "my-own-secret")
    assert "[key]" in cleaned
    for part in ("abcd", "wxyz", "abc.def", "1234", "own-secret"):
        assert part not in cleaned


def test_ordinary_words_survive():
    text = "key_not_found_error in the sk-learn pipeline asked risk-averse keys of task_force"
    assert redact(text) == text
