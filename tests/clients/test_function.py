from __future__ import annotations

import functools
import socket

import anyio
import pytest
from foreign_sdk import ForeignError, caused_by, with_code, with_response, with_status, with_status_code

from rlm import RLM_REPL, errors
from rlm.clients.base import Client
from rlm.clients.error_mapping import sdk_errors_as_call_errors
from rlm.clients.function import FunctionClient, as_client
from rlm.repl import Sub_RLM
from rlm.scheduler import Scheduler
from rlm.settings import SchedulerSettings
from rlm.testing.scripted import ScriptedClient
from rlm.values import Call, Message, Reply, Usage

CALL = Call(model="m", messages=(Message("system", "be brief"), Message("user", "hello")))


async def ask(messages, model):
    return f"{model} was asked {messages[-1]['content']}"


def complete(function, call=CALL):
    return anyio.run(as_client(function).complete, call)


# What a client may be


def test_a_client_may_be_an_async_function_of_messages_and_model():
    with RLM_REPL(client=ask, max_iterations=1) as rlm:
        assert rlm.client.__class__ is FunctionClient
    with Sub_RLM("m", client=ask) as sub:
        assert sub.completion("hello") == "m was asked hello"


def test_a_function_runs_a_whole_completion():
    prompts = []

    async def root_and_sub(messages, model):
        prompts.append(messages)
        if len(prompts) > 1:
            return "a sub-answer"
        return "I ask a sub-model.\n```repl\nFINAL(llm_query('what is it?'))\n```"

    with RLM_REPL(client=root_and_sub) as rlm:
        answer = rlm.completion("a context", "a question")
    assert answer == "a sub-answer"
    assert answer.usage.calls == 2
    assert answer.usage.estimated
    assert prompts[1] == [{"role": "user", "content": "what is it?"}]


def test_a_function_gets_dicts_of_its_own_and_the_name_of_the_model():
    seen = []

    async def ask(messages, model):
        seen.append((messages, model))
        return "hi"

    assert complete(ask) == Reply(text="hi", model="m")
    (messages, model) = seen[0]
    assert messages == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    assert model == "m"


def test_a_function_may_return_a_reply_with_its_usage():
    reply = Reply(text="hi", usage=Usage(calls=1, input_tokens=3, output_tokens=1), finish_reason="length")

    async def ask(messages, model):
        return reply

    answered = complete(ask)
    assert (answered.text, answered.model, answered.usage) == ("hi", "m", reply.usage)
    assert answered.finish_reason == "length"


@pytest.mark.parametrize("returned", [None, 5, {"content": "hi"}])
def test_a_function_that_returns_something_else_ends_the_run_with_the_reason(returned):
    async def wrong(messages, model):
        return returned

    with (
        RLM_REPL(client=wrong) as rlm,
        pytest.raises(errors.SettingsError, match="must return the text of the answer as a str"),
    ):
        rlm.completion("a context", "a question")


class WithMethod:
    async def complete(self, call):
        return Reply(text="hi")


class Callable:
    async def __call__(self, messages, model):
        return "hi"


def decorated(function):
    @functools.wraps(function)
    def wrapper(*arguments):
        return function(*arguments)

    return wrapper


async def with_options(messages, model, *, temperature=0.0):
    return "hi"


async def ask_at(url, messages, model):
    return "hi"


@pytest.mark.parametrize(
    "value",
    [
        WithMethod(),
        ScriptedClient(["hi"]),
        Callable(),
        Callable().__call__,
        decorated(ask),
        with_options,
        functools.partial(ask_at, "url"),
    ],
)
def test_every_form_of_a_client_is_accepted(value):
    client = as_client(value)
    assert isinstance(client, Client)
    assert isinstance(anyio.run(client.complete, CALL), Reply)
    assert (client is value) == hasattr(value, "complete")


class WithSyncMethod:
    def complete(self, call):
        return Reply(text="hi")


class SDK:
    chat = None


def sync(messages, model):
    return "hi"


async def of_one(prompt):
    return "hi"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (WithMethod, r"client=WithMethod is a class: pass an instance, client=WithMethod\(...\)"),
        (WithSyncMethod(), "`complete` is no async function"),
        (SDK(), "has no method `complete`"),
        (5, "client=5 has no method `complete`"),
        (sync, "client=sync is no async function"),
        (lambda messages, model: "hi", "is no async function"),
        (of_one, r"client=of_one does not take \(messages, model\)"),
    ],
)
def test_what_is_no_client_is_refused_when_it_is_given(value, words):
    for accept in (as_client, lambda client: RLM_REPL(client=client)):
        with pytest.raises(errors.SettingsError, match=words) as caught:
            accept(value)
        assert "async def" in str(caught.value) or "instance" in str(caught.value)


# Errors of other SDKs


def mapped(error):
    with pytest.raises(Exception) as caught, sdk_errors_as_call_errors(CALL):  # noqa: PT011 - any error
        raise error
    return caught.value


SHAPES = [with_status_code, with_code, with_status, with_response]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.BadRequest),
        (401, errors.AuthenticationFailed),
        (402, errors.QuotaExhausted),
        (404, errors.BadRequest),
        (408, errors.ServerError),
        (429, errors.RateLimited),
        (500, errors.ServerError),
        (529, errors.ServerError),
    ],
)
def test_the_status_of_a_foreign_error_decides_what_it_is(shape, status, kind):
    error = shape(status, "in these words")
    ours = mapped(error)
    assert type(ours) is kind
    assert (ours.model, ours.status, ours.__cause__) == ("m", status, error)
    assert "in these words" in str(ours)
    assert "OPENAI_API_KEY" not in str(ours)
    assert "base URL" not in str(ours)


@pytest.mark.parametrize("shape", [with_status_code, with_status, with_response])
@pytest.mark.parametrize("name", ["Retry-After", "retry-after"])
def test_retry_after_of_a_foreign_error_is_kept(shape, name):
    assert mapped(shape(429, **{name: "7"})).retry_after == 7.0
    assert mapped(shape(429)).retry_after is None


def test_the_words_of_a_foreign_error_decide_as_those_of_openai_do():
    assert type(mapped(with_code(400, "prompt is too long: 210000 tokens"))) is errors.ContextTooLong
    assert type(mapped(with_status_code(404, "model not found: m"))) is errors.UnknownModel


@pytest.mark.parametrize(
    ("error", "kind", "sent"),
    [
        (TimeoutError(), errors.CallTimedOut, None),
        (caused_by(TimeoutError()), errors.CallTimedOut, None),
        (ConnectionResetError("reset"), errors.ConnectionFailed, True),
        (caused_by(ConnectionResetError("reset")), errors.ConnectionFailed, True),
        (caused_by(ConnectionRefusedError("refused")), errors.ConnectionFailed, False),
        (caused_by(socket.gaierror("no such host")), errors.ConnectionFailed, False),
        (caused_by(OSError("All connection attempts failed")), errors.ConnectionFailed, True),
    ],
)
def test_timeouts_and_broken_connections_are_known_by_their_causes(error, kind, sent):
    ours = mapped(error)
    assert type(ours) is kind
    assert ours.__cause__ is error
    assert getattr(ours, "sent", None) is sent


def test_an_error_of_httpx_is_a_failed_connection():
    httpx2 = pytest.importorskip("httpx2")
    assert type(mapped(httpx2.RemoteProtocolError("Server disconnected"))) is errors.ConnectionFailed


@pytest.mark.parametrize(
    "error",
    [
        KeyError("content"),
        ForeignError("no status"),
        with_status(0),
        with_status(200),
        FileNotFoundError(2, "no such file"),
        OSError(28, "no space left on device"),
        errors.RateLimited("ours", retry_after=3.0),
        errors.SettingsError("ours"),
    ],
)
def test_every_other_error_passes_unchanged(error):
    assert mapped(error) is error


def test_no_key_in_a_foreign_error_is_shown():
    assert "[key]" in str(mapped(with_status(401, "bad key sk-proj-abcdEFGH1234")))


def test_the_scheduler_retries_what_a_foreign_error_calls_temporary(virtual_time):
    failures = iter(
        [with_status_code(429, **{"Retry-After": "60"}), caused_by(ConnectionResetError()), TimeoutError()]
    )
    started = []

    async def flaky(messages, model):
        started.append(anyio.current_time())
        if (error := next(failures, None)) is not None:
            raise error
        return "at last"

    async def main():
        scheduler = Scheduler(as_client(flaky), SchedulerSettings(), price=lambda model, usage: 0.0)
        return await scheduler.tree(run_id="r").complete(CALL)

    reply = anyio.run(main, **virtual_time)
    assert (reply.text, reply.attempts) == ("at last", 4)
    assert started[1] - started[0] >= 60


def test_the_scheduler_does_not_retry_a_foreign_error_that_stays(virtual_time):
    asked = []

    async def refusing(messages, model):
        asked.append(model)
        raise with_status_code(401)

    async def main():
        scheduler = Scheduler(as_client(refusing), SchedulerSettings(), price=lambda model, usage: 0.0)
        await scheduler.tree(run_id="r").complete(CALL)

    with pytest.raises(errors.AuthenticationFailed):
        anyio.run(main, **virtual_time)
    assert len(asked) == 1


def test_a_fault_of_a_client_in_a_sub_call_is_named_in_the_warnings_of_the_answer():
    async def broken_for_sub_models(messages, model):
        if len(messages) == 1:
            raise KeyError("sk-proj-0123456789abcdefghijklmnop")
        return "```python\ntry:\n    llm_query('x')\nexcept Exception as error:\n    FINAL(str(error))\n```"

    with RLM_REPL(client=broken_for_sub_models) as rlm:
        answer = rlm.completion("text", "?")
    assert "KeyError" in answer
    assert any("1 of 1 prompt to sub-models failed: KeyError" in warning for warning in answer.warnings)
    assert "sk-proj-0123" not in answer + "".join(answer.warnings)


def test_what_is_no_client_is_shown_without_keys():
    with pytest.raises(errors.SettingsError, match=r"\[key\]") as caught:
        as_client({"api_key": "sk-proj-0123456789abcdefghijklmnop"})
    assert "0123456789" not in str(caught.value)
