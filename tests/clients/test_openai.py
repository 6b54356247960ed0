from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from blockbuster import blockbuster_ctx
from openai_server import (
    OpenAIServer,
    Response,
    bad_parameter,
    dropped,
    failed,
    rate_limited,
    raw,
    reply,
)

from rlm import errors
from rlm.clients.base import Client
from rlm.clients.openai import AsyncOpenAIClient, OpenAIClient
from rlm.metering.tokens import estimate
from rlm.scheduler import Scheduler
from rlm.utils import llm
from rlm.values import Call, FailedCall, Message, Reply, Usage

KEY = "sk-proj-abcdefghijklmnop1234567890"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("OPENAI_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def server():
    with OpenAIServer() as server:
        yield server


@pytest.fixture(params=["aiohttp", "httpx2"])
def transport(request, monkeypatch):
    """With the extra [fast] and without."""
    if request.param == "httpx2":
        monkeypatch.setitem(sys.modules, "aiohttp", None)
    return request.param


def call(text="hello", **settings):
    return Call(model="gpt-5-nano", messages=(Message("user", text),), **settings)


def ask(server, *calls, backend="asyncio", **settings):
    """The outcomes of the calls, one after another, from one client; with one call, its outcome alone."""

    async def main():
        outcomes = []
        async with AsyncOpenAIClient(base_url=server.base_url, api_key=KEY, **settings) as client:
            for each in calls:
                try:
                    outcomes.append(await client.complete(each))
                except errors.RLMError as error:
                    outcomes.append(error)
        return outcomes

    outcomes = anyio.run(main, backend=backend)
    return outcomes if len(calls) > 1 else outcomes[0]


def stream(server, each, **settings):
    """The pieces of a stream; the last is the reply or the error."""

    async def main():
        pieces = []
        async with AsyncOpenAIClient(base_url=server.base_url, api_key=KEY, **settings) as client:
            try:
                async for piece in client.stream(each):
                    pieces.append(piece)  # noqa: PERF401 - what came before an error counts
            except errors.RLMError as error:
                pieces.append(error)
        return pieces

    return anyio.run(main)


# What an answer holds


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_reply_has_text_usage_model_and_latency(server, transport, backend):
    answered = ask(server, call("hello"), backend=backend)
    assert answered.text == "answer to hello"
    assert answered.usage == Usage(calls=1, input_tokens=2, output_tokens=4)
    assert (answered.model, answered.finish_reason, answered.attempts) == ("gpt-5-nano", "stop", 1)
    assert 0 < answered.latency_s < 60
    assert answered.warnings == ()
    assert server.keys == {f"Bearer {KEY}"}


def test_the_clients_keep_the_protocol(server):
    assert isinstance(AsyncOpenAIClient(base_url=server.base_url), Client)
    assert (llm.AsyncOpenAIClient, llm.OpenAIClient) == (AsyncOpenAIClient, OpenAIClient)


def test_cached_and_reasoning_tokens_are_counted_separately():
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 50,
        "prompt_tokens_details": {"cached_tokens": 60},
        "completion_tokens_details": {"reasoning_tokens": 40},
    }
    with OpenAIServer(plan=[reply("a", usage=usage)]) as server:
        assert ask(server, call()).usage == Usage(1, 100, 60, 50, 40)


def test_rate_limits_are_read_from_the_headers():
    headers = {
        "x-ratelimit-limit-requests": "500",
        "x-ratelimit-remaining-requests": "499",
        "x-ratelimit-reset-requests": "120ms",
        "x-ratelimit-limit-tokens": "200000",
        "x-ratelimit-remaining-tokens": "199000",
        "x-ratelimit-reset-tokens": "1m0.5s",
    }
    with OpenAIServer(headers=headers) as server:
        limits = ask(server, call()).rate_limits
    assert (limits.requests_per_minute, limits.requests_remaining, limits.requests_reset_s) == (
        500,
        499,
        0.12,
    )
    assert (limits.tokens_per_minute, limits.tokens_remaining, limits.tokens_reset_s) == (
        200000,
        199000,
        60.5,
    )


def test_a_missing_usage_is_estimated_and_said():
    with OpenAIServer(plan=[reply("four tokens or so", usage=None)]) as server:
        answered = ask(server, call("x" * 330))
    assert answered.usage.estimated
    assert answered.usage.input_tokens == estimate("x" * 330)
    assert "reports no usage" in answered.warnings[0]


def test_a_zero_usage_is_no_usage():
    with OpenAIServer(plan=[reply("a", usage={"prompt_tokens": 0, "completion_tokens": 0})]) as server:
        assert ask(server, call()).usage.estimated


def test_an_answer_cut_at_its_cap_says_so_and_the_scheduler_warns_once():
    async def main():
        async with AsyncOpenAIClient(base_url=server.base_url) as client:
            return await Scheduler(client).tree(run_id="r").complete(call())

    with OpenAIServer(plan=[reply("the first ha", finish_reason="length")] * 2) as server:
        answered = ask(server, call())
        assert (answered.text, answered.finish_reason) == ("the first ha", "length")
        (warning,) = anyio.run(main).warnings
    assert "cut at its output cap" in warning


def test_the_request_carries_what_the_call_says(server):
    messages = (Message("system", "be brief"), Message("user", "héllo 😀"))
    schema = {"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": False}
    ask(
        server,
        Call(
            model="m",
            messages=messages,
            max_output_tokens=9,
            temperature=0.5,
            schema=schema,
            extra={"seed": 1},
        ),
    )
    [body] = server.bodies
    assert body == {
        "model": "m",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "héllo 😀"}],
        "max_tokens": 9,
        "temperature": 0.5,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "reply", "schema": schema, "strict": True},
        },
        "seed": 1,
    }


def test_a_lone_surrogate_in_a_prompt_does_not_stop_it(server):
    assert isinstance(ask(server, call("a\ud800b")), Reply)
    assert server.prompts == ["a?b"]


def test_a_parameter_that_is_no_json_is_refused_before_anything_is_sent(server):
    assert isinstance(ask(server, call(extra={"logit_bias": {1, 2}})), errors.BadRequest)
    assert server.requests == 0


# Faults: each is one class of ours, in a call and in a stream, over both transports


@dataclass(frozen=True)
class Fault:
    response: Response
    error: type[errors.CallError]
    words: str
    facts: dict[str, Any] = field(default_factory=dict)


FAULTS = {
    "429": Fault(rate_limited(), errors.RateLimited, "wants fewer requests", {"retry_after": None}),
    "429 with seconds": Fault(rate_limited(retry_after=7), errors.RateLimited, "429", {"retry_after": 7.0}),
    "429 without credit": Fault(
        failed(429, "You exceeded your current quota", code="insufficient_quota", kind="insufficient_quota"),
        errors.QuotaExhausted,
        "no credit left",
        {"status": 429},
    ),
    "429 for one request": Fault(
        failed(429, "Request too large for gpt-5 on tokens per min: Limit 1000, Requested 2000"),
        errors.BadRequest,
        "waiting does not help",
    ),
    "401": Fault(
        failed(401, f"Incorrect API key provided: {KEY}.", code="invalid_api_key"),
        errors.AuthenticationFailed,
        "OPENAI_API_KEY",
        {"status": 401},
    ),
    "403": Fault(failed(403, "not in your country"), errors.AuthenticationFailed, "not in your country"),
    "404 model": Fault(
        failed(404, "The model `gpt-5-nano` does not exist", code="model_not_found"),
        errors.UnknownModel,
        "it has gpt-5-nano",
        {"available": ("gpt-5-nano", "gpt-5")},
    ),
    "404 path": Fault(Response(404, b"404 page not found"), errors.BadRequest, "ends in /v1"),
    "400 too long": Fault(
        failed(400, "This model's maximum context length is 8192 tokens.", code="context_length_exceeded"),
        errors.ContextTooLong,
        "8192",
        {"status": 400},
    ),
    "400 too long, in other words": Fault(
        failed(400, "the request exceeds the available context size, try increasing it"),
        errors.ContextTooLong,
        "send less",
    ),
    "400": Fault(failed(400, "messages: must not be empty"), errors.BadRequest, "must not be empty"),
    "400 filter": Fault(failed(400, "our policy", code="content_filter"), errors.Refused, "our policy"),
    "402": Fault(failed(402, "pay first"), errors.QuotaExhausted, "pay first"),
    "408": Fault(failed(408), errors.ServerError, "408"),
    "409": Fault(failed(409), errors.ServerError, "409"),
    "500": Fault(failed(500, "it failed"), errors.ServerError, "it failed", {"status": 500}),
    "503 with seconds": Fault(
        failed(503, headers={"Retry-After": "3"}), errors.ServerError, "503", {"retry_after": 3.0}
    ),
    "500 as a web page": Fault(Response(500, b"<html>oh</html>"), errors.ServerError, "<html>oh</html>"),
    "dropped before the headers": Fault(
        dropped("headers"), errors.ConnectionFailed, "no answer from 127.0.0.1"
    ),
    "dropped in the body": Fault(dropped("body"), errors.ConnectionFailed, "no answer from 127.0.0.1"),
    "no HTTP at all": Fault(dropped("nonsense"), errors.ConnectionFailed, "no answer from 127.0.0.1"),
    "garbage": Fault(raw("{{{"), errors.BadReply, "'{{{'"),
    "a web page with 200": Fault(raw("<html>login</html>", "text/html"), errors.BadRequest, "base URL"),
    "JSON of another kind": Fault(raw("[1, 2]"), errors.BadReply, "[1, 2]"),
    "a gzip that is none": Fault(
        Response(body=b"no gzip", headers={"Content-Encoding": "gzip"}), errors.BadReply, "decoded"
    ),
    "an error with 200": Fault(
        Response(body={"error": {"message": "upstream is gone"}}), errors.BadReply, "upstream is gone"
    ),
    "an error with 200 and a code": Fault(
        Response(body={"error": {"message": "overloaded", "code": 503}}), errors.ServerError, "overloaded"
    ),
    "no choices": Fault(reply(choices=[]), errors.BadReply, "sent"),
    "a slow trickle": Fault(
        reply("a text of\nmany\nlines\n" * 9, trickle_s=0.05), errors.CallTimedOut, "within 0.3 s"
    ),
    "no answer in time": Fault(reply("late", latency_s=30), errors.CallTimedOut, "within 0.3 s"),
}


UNUSABLE = {
    "content null": Fault(reply(None), errors.BadReply, "no answer at all"),
    "an empty text": Fault(reply(""), errors.BadReply, "no answer at all"),
    "a refusal": Fault(reply(None, refusal="I will not"), errors.Refused, "I will not"),
    "a filter before any text": Fault(reply("", finish_reason="content_filter"), errors.Refused, "held back"),
    "a cap before any text": Fault(
        reply("", finish_reason="length"), errors.OutputTruncated, "raise max_output_tokens"
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_reply_without_an_answer_is_an_error_where_texts_are_returned(name):
    fault = UNUSABLE[name]
    with OpenAIServer(plan=[fault.response] * 3) as server:
        assert isinstance(ask(server, call()), Reply)
        with OpenAIClient(base_url=server.base_url, api_key=KEY) as client:
            with pytest.raises(fault.error) as caught:
                client.completion("hello")
            check_error(caught.value, fault)
            (failed_call,) = client.batch_completion(["hello"])
            check_error(failed_call.error, fault)


def test_a_text_that_a_filter_cut_is_returned_with_a_warning():
    cut = reply("bad w", finish_reason="content_filter")
    with (
        OpenAIServer(plan=[cut]) as server,
        OpenAIClient(base_url=server.base_url) as client,
        pytest.warns(UserWarning, match="filter cut"),
    ):
        assert client.completion("hello") == "bad w"


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_one_error_of_ours(name, transport):
    fault = FAULTS[name]
    with OpenAIServer(plan=[fault.response]) as server:
        error = ask(server, call(), timeout_s=0.3 if "0.3" in fault.words else 20)
    check_error(error, fault)


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_of_a_stream_is_the_same_error(name, transport):
    fault = FAULTS[name]
    with OpenAIServer(plan=[fault.response]) as server:
        *_, error = stream(server, call(), timeout_s=0.3 if "0.3" in fault.words else 20)
    check_error(error, fault)


def check_error(error, fault):
    assert type(error) is fault.error, error
    assert fault.words in str(error)
    assert "\n" not in str(error)
    assert error.model == "gpt-5-nano"
    for name, value in fault.facts.items():
        assert getattr(error, name) == value
    if fault.response.status != 200:
        assert error.__cause__ is not None
    assert KEY not in "".join(traceback.format_exception(error))
    assert KEY not in repr(error.__cause__)


def test_a_date_in_retry_after_becomes_seconds():
    with OpenAIServer(plan=[rate_limited(retry_after=60, as_date=True)]) as server:
        assert 50 < ask(server, call()).retry_after <= 60


def test_a_failure_that_was_billed_says_what_it_cost():
    with OpenAIServer(plan=[reply(choices=[])]) as server:
        error = ask(server, call("x" * 400))
        assert (error.usage.input_tokens, server.input_tokens) == (100, 100)


def test_a_server_that_does_not_listen_is_a_failed_connection(transport):
    with OpenAIServer() as server:
        pass
    error = ask(server, call())
    assert isinstance(error, errors.ConnectionFailed)
    assert "is a server running there?" in str(error)


def test_an_endpoint_that_cannot_list_its_models_is_named_without_a_model():
    with OpenAIServer() as server:
        pass
    client = AsyncOpenAIClient(base_url=server.base_url, api_key="k")
    with pytest.raises(errors.ConnectionFailed, match=r"no answer from 127\.0\.0\.1:\d+: "):
        anyio.run(client.available_models)


def test_an_unknown_model_is_answered_with_the_closest_names_first():
    models = ["llama3", "gpt-5-mini", "gpt-5-nano", "zephyr"]
    with OpenAIServer(
        lambda _: failed(404, "no such model", code="model_not_found"), models=models
    ) as server:
        first, second = ask(server, Call(model="gpt5-nano", messages=()), Call(model="llama-3", messages=()))
        assert server.listings == 1
    assert first.available[0] == "gpt-5-nano"
    assert second.available[0] == "llama3"
    assert sorted(first.available) == sorted(models)


def test_the_client_makes_one_attempt_only():
    with OpenAIServer(lambda _: failed(500)) as server:
        ask(server, call())
        assert server.requests == 1


# Parameters that a model does not take


def refusing(**hints):
    """A server whose model refuses the parameters that are named."""

    def answer(request):
        for name, hint in hints.items():
            if name in request.body:
                return bad_parameter(name, hint)
        return "ok"

    return OpenAIServer(answer)


def test_the_name_of_the_output_cap_is_learned_and_warned_about_once():
    with refusing(max_tokens="Use 'max_completion_tokens' instead.") as server:
        first, second = ask(server, call(max_output_tokens=7), call(max_output_tokens=8))
    assert [("max_tokens" in body, body.get("max_completion_tokens")) for body in server.bodies] == [
        (True, None),
        (False, 7),
        (False, 8),
    ]
    assert (first.attempts, second.attempts) == (2, 1)
    assert "does not take `max_tokens`: `max_completion_tokens` is sent instead" in first.warnings[0]
    assert second.warnings == ()


def test_a_temperature_that_is_refused_is_left_out():
    with refusing(temperature="") as server:
        answered = ask(server, call(temperature=0.0))
    assert "temperature" not in server.bodies[1]
    assert "its own default is used" in answered.warnings[0]


def test_several_refusals_are_learned_in_one_call():
    with refusing(max_tokens="", max_completion_tokens="", temperature="") as server:
        answered = ask(server, call(max_output_tokens=7, temperature=0.5))
    assert (answered.attempts, len(answered.warnings)) == (4, 3)
    assert set(server.bodies[-1]) == {"model", "messages"}


def test_what_one_model_refuses_another_is_still_asked_for():
    with refusing(temperature="") as server:
        ask(server, call(temperature=0.5), Call(model="other", messages=(), temperature=0.5))
    assert [("temperature" in body) for body in server.bodies] == [True, False, True, False]


def test_a_cap_that_is_too_large_is_an_error_and_the_parameter_stays():
    message = "max_tokens is too large: 100000. This model supports at most 4096 completion tokens"
    with OpenAIServer(plan=[failed(400, message, code="invalid_value", param="max_tokens")]) as server:
        assert type(ask(server, call(max_output_tokens=100000))) is errors.BadRequest


def test_a_parameter_the_caller_asked_for_by_name_is_never_left_out():
    with refusing(temperature="") as server:
        assert type(ask(server, call(extra={"temperature": 0.5}))) is errors.BadRequest


def test_a_stream_learns_too():
    with refusing(stream_options="") as server:
        *_, answered = stream(server, call())
    assert answered.usage.estimated
    assert answered.attempts == 2


# Streams


def test_a_stream_yields_the_text_as_it_comes_and_then_the_reply(transport):
    text = "one\ntwo\nthree\n"
    with OpenAIServer(lambda _: text) as server:
        *pieces, answered = stream(server, call("hello"))
        assert pieces == ["one\n", "two\n", "three\n"]
        assert answered.text == text
        assert answered.usage == Usage(1, server.input_tokens, 0, server.output_tokens)


def test_a_server_that_does_not_stream_is_read_all_the_same():
    body = {"choices": [{"message": {"content": "whole"}, "finish_reason": "stop"}], "usage": None}
    with OpenAIServer(lambda _: Response(body=json.dumps(body).encode())) as server:
        *pieces, answered = stream(server, call())
    assert (pieces, answered.text) == (["whole"], "whole")


def test_a_stream_that_ends_before_the_answer_does_is_a_broken_connection():
    event = 'data: {"choices": [{"delta": {"content": "half"}}]}\n\n'
    with OpenAIServer(lambda _: raw(event, "text/event-stream")) as server:
        *pieces, error = stream(server, call())
    assert pieces == ["half"]
    assert isinstance(error, errors.ConnectionFailed)


def test_an_error_within_a_stream_is_raised():
    events = 'data: {"choices": [{"delta": {"content": "half"}}]}\n\ndata: {"error": {"message": "oh", "code": 500}}\n\n'
    with OpenAIServer(lambda _: raw(events, "text/event-stream")) as server:
        *pieces, error = stream(server, call())
    assert pieces == ["half"]
    assert isinstance(error, errors.ServerError)


def test_a_stream_left_early_releases_its_slot(transport):
    async def main():
        async with AsyncOpenAIClient(base_url=server.base_url, max_connections=1) as client:
            for _ in range(3):
                async with aclosing(client.stream(call())) as pieces:
                    assert await anext(pieces) == "one\n"
            return await client.completion("hello")

    def answer(request):
        return reply("one\ntwo\n", trickle_s=0.01 if "stream" in request.body else 0)

    with OpenAIServer(answer) as server:
        assert anyio.run(main) == "one\ntwo\n"


# The well-known forms


def test_completion_takes_a_text_or_messages(server):
    async def main():
        async with AsyncOpenAIClient(base_url=server.base_url) as client:
            return [
                await client.completion("a"),
                await client.completion(
                    [{"role": "system", "content": "s"}, {"role": "user", "content": "b"}]
                ),
                await client.completion([Message("user", "c")], max_tokens=5),
                await client.completion({"role": "user", "content": "d"}),
            ]

    assert anyio.run(main) == ["answer to a", "answer to b", "answer to c", "answer to d"]
    assert server.bodies[1]["messages"][0] == {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    "prompt", [[1], [{"role": "king", "content": "x"}], [{"role": "user"}], [["user", "x"]]]
)
def test_what_is_no_prompt_is_refused_with_its_value(server, prompt):
    with (
        OpenAIClient(base_url=server.base_url) as client,
        pytest.raises(TypeError, match="a message is a dict"),
    ):
        client.completion(prompt)


def test_a_warning_reaches_the_user_of_completion():
    server = OpenAIServer(lambda _: reply("ha", finish_reason="length"))
    with server, OpenAIClient(base_url=server.base_url) as client, pytest.warns(UserWarning, match="cut"):
        assert client.completion("hello") == "ha"


def test_a_batch_keeps_its_order_and_its_limit(server):
    prompts = [f"prompt {number}" for number in range(200)]
    server.latency_s = 0.01
    with OpenAIClient(base_url=server.base_url) as client:
        assert client.batch_completion(iter(prompts), 7) == [f"answer to {prompt}" for prompt in prompts]
    assert server.most_at_once == 7


def test_one_failed_slot_of_a_batch_is_falsy_and_hurts_no_other():
    def answer(request):
        return failed(500, "it failed") if request.prompt == "b" else request.prompt

    with OpenAIServer(answer) as server, OpenAIClient(base_url=server.base_url) as client:
        first, second, third = client.batch_completion(["a", "b", "c"])
    assert (first, third) == ("a", "c")
    assert not second
    assert isinstance(second, FailedCall)
    assert isinstance(second.error, errors.ServerError)
    assert "ServerError" in second


def test_an_empty_batch_sends_no_request(server):
    with OpenAIClient(base_url=server.base_url) as client:
        assert client.batch_completion([]) == []
        with pytest.raises(TypeError, match="put it in a list"):
            client.batch_completion("prompt")
        with pytest.raises(errors.SettingsError, match="max_concurrent=0"):
            client.batch_completion(["a"], max_concurrent=0)
    assert server.requests == 0


def test_ten_batches_in_one_run_from_several_threads_lose_no_answer(server, transport):
    server.latency_s = 0.002

    def batches(client, thread):
        return [
            client.batch_completion([f"{thread} {batch} {number}" for number in range(20)], max_concurrent=5)
            for batch in range(10)
        ]

    with OpenAIClient(base_url=server.base_url) as client, ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda thread: batches(client, thread), range(3)))
    assert answers == [
        [[f"answer to {thread} {batch} {number}" for number in range(20)] for batch in range(10)]
        for thread in range(3)
    ]
    assert server.requests == 600
    assert server.connections <= 16


def test_one_client_serves_one_loop_after_another(server, transport):
    client = AsyncOpenAIClient(base_url=server.base_url)
    for _ in range(5):
        assert anyio.run(client.batch_completion, ["a", "b"]) == ["answer to a", "answer to b"]
    gc.collect()


@pytest.mark.slow
def test_two_thousand_calls_at_two_hundred_in_flight_are_billed_as_the_server_counts(server):
    usages = []

    async def main():
        numbers = iter(range(2000))

        async def work(client):
            for number in numbers:
                answered = await client.complete(call(f"prompt {number}"))
                usages.append(answered.usage)

        async with AsyncOpenAIClient(base_url=server.base_url) as client, anyio.create_task_group() as tasks:
            for _ in range(200):
                tasks.start_soon(work, client)

    anyio.run(main)
    assert sum(usages, Usage()) == Usage(2000, server.input_tokens, 0, server.output_tokens)
    assert len(set(server.prompts)) == server.requests == 2000


def test_connections_grow_with_success_and_never_over_their_limit():
    async def main(limit):
        async with AsyncOpenAIClient(base_url=server.base_url, max_connections=limit) as client:
            await client.batch_completion(["a"] * 150, max_concurrent=150)

    with OpenAIServer(latency_s=0.05) as server:
        anyio.run(main, 20)
        assert server.most_at_once == 20
    with OpenAIServer(latency_s=0.05) as server:
        anyio.run(main, 1000)
        assert 64 <= server.most_at_once < 150


def test_the_loop_is_never_blocked(server):
    async def main():
        with blockbuster_ctx("rlm"):
            async with AsyncOpenAIClient(base_url=server.base_url) as client:
                await client.batch_completion(["a"] * 20)

    anyio.run(main)


# Cancellation and closing


def test_a_cancelled_call_leaves_the_client_usable(transport):
    async def main():
        async with AsyncOpenAIClient(base_url=server.base_url, max_connections=2) as client:
            for _ in range(10):
                with anyio.move_on_after(0.02) as scope:
                    await client.complete(call())
                assert scope.cancelled_caught
            server.latency_s = 0
            return await client.completion("hello")

    with OpenAIServer(latency_s=30) as server:
        assert anyio.run(main) == "answer to hello"


def test_a_closed_client_refuses(server):
    async def main():
        client = AsyncOpenAIClient(base_url=server.base_url)
        await client.completion("a")
        await client.aclose()
        await client.aclose()
        with pytest.raises(RuntimeError, match="closed"):
            await client.completion("a")

    anyio.run(main)


def test_the_blocking_client_leaves_no_thread_behind(server):
    with OpenAIClient(base_url=server.base_url) as client:
        client.completion("a")
    assert "rlm-portal" not in [thread.name for thread in threading.enumerate()]
    OpenAIClient(base_url=server.base_url).close()


UNCLOSED = {
    "blocking": "print(OpenAIClient(base_url=url).completion('a'))",
    "async": "print(anyio.run(AsyncOpenAIClient(base_url=url).completion, 'a'))",
    "dropped": (
        "async def main():\n"
        "    for _ in range(3):\n"
        "        answer = await AsyncOpenAIClient(base_url=url).completion('a')\n"
        "    print(answer)\n"
        "anyio.run(main)"
    ),
    "trio": "print(anyio.run(AsyncOpenAIClient(base_url=url).completion, 'a', backend='trio'))",
}


@pytest.mark.parametrize("extra", ["aiohttp", "httpx2"])
@pytest.mark.parametrize("form", UNCLOSED)
def test_a_client_that_is_never_closed_prints_nothing_at_exit(server, form, extra):
    script = (
        "import sys, anyio\n"
        + ("sys.modules['aiohttp'] = None\n" if extra == "httpx2" else "")
        + "from rlm.clients.openai import AsyncOpenAIClient, OpenAIClient\n"
        + f"url = {server.base_url!r}\n{UNCLOSED[form]}\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("answer to a\n", "")


def test_the_module_can_be_imported_without_the_openai_package():
    script = (
        "import sys, rlm.clients.openai, rlm.utils.llm\n"
        "rlm.clients.openai.AsyncOpenAIClient(api_key='sk-x')\n"
        "assert not {'openai', 'httpx2', 'aiohttp', 'trio'} & set(sys.modules)\n"
        "rlm.clients.openai.warm_up()\n"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0


# Keys and endpoints


def test_neither_key_nor_endpoint_is_said_at_once():
    with pytest.raises(errors.AuthenticationFailed, match=r"OPENAI_API_KEY.*--base-url.*offline"):
        AsyncOpenAIClient()
    with pytest.raises(errors.AuthenticationFailed):
        OpenAIClient(api_key=" \n")


def test_an_endpoint_of_ones_own_needs_no_key(server):
    with OpenAIClient(base_url=server.base_url) as client:
        client.completion("a")
    assert server.keys == {"Bearer none"}


def test_key_and_endpoint_come_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    with OpenAIClient() as client:
        assert client.completion("a") == "answer to a"
    assert server.keys == {f"Bearer {KEY}"}


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x/v1", "http://", "http://[::1", "http://h:99999/v1"]
)
def test_a_base_url_that_is_none_is_refused_up_front(url):
    with pytest.raises(errors.SettingsError, match="base_url"):
        AsyncOpenAIClient(base_url=url)


@pytest.mark.parametrize("key", ["sk-ключ", "sk-a b", "sk-a\nb"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(key):
    with pytest.raises(errors.AuthenticationFailed) as caught:
        AsyncOpenAIClient(api_key=key)
    assert key not in str(caught.value)


def test_the_key_is_not_in_the_repr():
    client = AsyncOpenAIClient(api_key=KEY, base_url="https://example.com:8443/v1")
    assert repr(client) == "AsyncOpenAIClient(model='gpt-5-nano', endpoint='example.com:8443')"


def test_a_base_url_with_a_password_is_refused_without_showing_it():
    with pytest.raises(errors.SettingsError, match="api_key") as caught:
        AsyncOpenAIClient(api_key=KEY, base_url="https://user:secret@example.com:8443/v1")
    assert "secret" not in str(caught.value)


def test_the_models_of_the_endpoint_are_listed(server):
    with OpenAIClient(base_url=server.base_url) as client:
        assert client.available_models() == ("gpt-5", "gpt-5-nano")


@pytest.mark.parametrize("method", ["completion", "batch_completion"])
def test_a_proxy_that_is_none_is_a_setting_that_cannot_work(server, monkeypatch, method):
    monkeypatch.setenv("ALL_PROXY", "socks9://x")
    with (
        OpenAIClient(base_url=server.base_url) as client,
        pytest.raises(errors.SettingsError, match="socks9"),
    ):
        getattr(client, method)(["hello"] if method == "batch_completion" else "hello")


def test_openai_itself_is_asked_with_its_own_name_for_the_cap():
    client = AsyncOpenAIClient(api_key=KEY)
    assert client._first_dialect.cap_name() == "max_completion_tokens"
