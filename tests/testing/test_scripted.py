from __future__ import annotations

import itertools

import anyio
import pytest

from rlm.clients.base import Client
from rlm.errors import RateLimited
from rlm.testing.scripted import ScriptedClient
from rlm.values import Call, Message, Reply, Usage

pytestmark = pytest.mark.anyio


def call(text="hello", role="sub"):
    return Call(model="a-model", messages=(Message("user", text),), role=role)


async def texts(client, *roles):
    return [(await client.complete(call(role=role))).text for role in roles]


async def test_it_is_a_client():
    assert isinstance(ScriptedClient(), Client)


async def test_answers_come_in_the_order_of_the_calls():
    assert await texts(ScriptedClient(["a", "b", "c"]), "sub", "root", "sub") == ["a", "b", "c"]


async def test_root_and_sub_have_scripts_of_their_own():
    client = ScriptedClient(root=["a", "b"], sub=["x", "y"])
    assert await texts(client, "root", "sub", "sub", "root") == ["a", "x", "y", "b"]


async def test_a_role_without_a_script_of_its_own_uses_the_shared_one():
    assert await texts(ScriptedClient(["x"], root=["a"]), "root", "sub") == ["a", "x"]


async def test_a_function_answers_from_the_call():
    client = ScriptedClient(lambda call: call.messages[-1].content.upper())
    assert (await client.complete(call("hello"))).text == "HELLO"


async def test_a_function_may_be_async():
    async def answer(call):
        await anyio.lowlevel.checkpoint()
        return call.role

    assert await texts(ScriptedClient(answer), "root", "sub") == ["root", "sub"]


@pytest.mark.parametrize("script", [[RateLimited("slow down")], lambda call: RateLimited("slow down")])
async def test_an_exception_in_the_script_is_raised(script):
    with pytest.raises(RateLimited, match="slow down"):
        await ScriptedClient(script).complete(call())


async def test_a_script_may_have_no_end():
    assert await texts(ScriptedClient(itertools.cycle("ab")), *["sub"] * 5) == list("ababa")


async def test_a_reply_goes_out_as_it_is_with_the_name_of_the_model():
    reply = Reply(text="a", usage=Usage(calls=1, input_tokens=7), finish_reason="length")
    answered = await ScriptedClient([reply]).complete(call())
    assert (answered.usage, answered.finish_reason, answered.model) == (reply.usage, "length", "a-model")


async def test_the_usage_of_a_text_is_one_token_per_four_characters():
    answered = await ScriptedClient(["12345"]).complete(call("12345678"))
    assert answered.usage == Usage(calls=1, input_tokens=2, output_tokens=2)


async def test_the_end_of_the_script_shows_the_prompt_that_found_none():
    client = ScriptedClient(sub=["a"])
    await client.complete(call())
    with pytest.raises(
        AssertionError, match=r"sub calls ended after 1 answers.*'a-model'.*'the last prompt'"
    ):
        await client.complete(call("the last prompt"))
    with pytest.raises(AssertionError, match=r"root calls ended after 0 answers.*\(9000 characters\)"):
        await client.complete(call("x" * 9000, role="root"))


async def test_it_records_the_calls_also_of_those_that_failed():
    client = ScriptedClient([RateLimited("no"), "a"])
    with pytest.raises(RateLimited):
        await client.complete(call("first"))
    await client.complete(call("second"))
    assert [call.messages[0].content for call in client.calls] == ["first", "second"]


async def test_a_single_text_is_refused_as_a_script():
    with pytest.raises(TypeError, match="put it in a list"):
        ScriptedClient("answer")


def test_latency_is_on_the_clock_of_the_loop_and_calls_overlap(virtual_time):
    client = ScriptedClient(itertools.repeat("a"), latency_s=3600)

    async def main():
        started = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for _ in range(2000):
                tasks.start_soon(client.complete, call())
        return anyio.current_time() - started

    assert anyio.run(main, **virtual_time) == pytest.approx(3600)
    assert client.most_in_flight == 2000


async def test_a_cancelled_call_is_no_longer_in_flight():
    client = ScriptedClient(itertools.repeat("a"), latency_s=3600)
    for _ in range(3):
        with anyio.move_on_after(0.001):
            await client.complete(call())
    assert (client.most_in_flight, len(client.calls)) == (1, 3)
