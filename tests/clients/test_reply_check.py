from __future__ import annotations

from pydoc_data import topics

import anyio
import pytest
from fake_provider import FakeProvider, call

from rlm.clients.reply_check import check_reply
from rlm.errors import BadReply, OutputTruncated, PromptTruncated, Refused
from rlm.events import Warned
from rlm.scheduler import Scheduler
from rlm.values import Reply, Usage

ENGLISH = "".join(topics.topics.values())[:100_000]
CHINESE = "".join(chr(0x4E00 + n * 7919 % 20000) for n in range(20000))


def reply(text="an answer", **changes):
    return Reply(
        text=text, usage=changes.pop("usage", Usage(calls=1, input_tokens=9, output_tokens=3)), **changes
    )


def look(reply, prompt="hello", count=lambda _: 42, **changes):
    return check_reply(call(prompt, **changes), reply, count)


def test_an_honest_reply_is_left_as_it_is():
    honest = reply()
    assert look(honest) is honest


@pytest.mark.parametrize("prompt", [ENGLISH, CHINESE], ids=["English", "Chinese"])
def test_a_prompt_that_was_cut_in_silence_is_an_error_that_says_what_to_do(prompt):
    with pytest.raises(PromptTruncated, match=r"read 4,096 tokens .* num_ctx") as caught:
        look(reply(usage=Usage(calls=1, input_tokens=4096, output_tokens=3)), prompt)
    assert caught.value.usage.input_tokens == 4096


@pytest.mark.parametrize(
    ("prompt", "counted"),
    [
        (ENGLISH, len(ENGLISH) // 6),
        (CHINESE, len(CHINESE) // 2),
        ("short", 1),
    ],
    ids=["English", "Chinese", "short"],
)
def test_texts_that_take_few_tokens_are_not_taken_for_cut_ones(prompt, counted):
    look(reply(usage=Usage(calls=1, input_tokens=counted, output_tokens=3)), prompt)


def test_tokens_that_an_endpoint_counts_apart_as_cached_were_read_too():
    look(reply(usage=Usage(calls=1, input_tokens=100, cached_tokens=20_000, output_tokens=3)), ENGLISH)


def test_an_estimate_of_ours_convicts_nobody():
    assert look(reply(usage=Usage()), ENGLISH).usage.input_tokens == 42


@pytest.mark.parametrize("prompt", [" " * 100_000, "ha " * 30_000], ids=["spaces", "ha ha"])
def test_a_monotonous_text_may_take_few_tokens_and_only_gets_a_warning(prompt):
    (warning,) = look(reply(usage=Usage(calls=1, input_tokens=1300, output_tokens=3)), prompt).warnings
    assert "1,300 tokens" in warning


def test_usage_that_the_endpoint_did_not_report_is_estimated_and_marked():
    whole = look(reply("x" * 30, usage=Usage()), count=lambda call: len(call.messages[0].content))
    assert whole.usage == Usage(calls=1, input_tokens=5, output_tokens=30, estimated=True)
    half = look(reply(usage=Usage(calls=1, input_tokens=7)))
    assert half.usage == Usage(calls=1, input_tokens=7, output_tokens=42, estimated=True)
    uncounted = look(reply(usage=Usage(calls=0, input_tokens=7, output_tokens=3)))
    assert uncounted.usage == Usage(calls=1, input_tokens=7, output_tokens=3)


def test_an_answer_cut_at_its_cap_comes_with_a_warning():
    cut = look(reply(finish_reason="length"), max_output_tokens=1000)
    assert cut.text == "an answer"
    assert cut.warnings == ("an answer of m was cut at its output cap of 1,000 tokens",)


def test_half_of_a_json_answer_is_an_error_that_holds_it():
    with pytest.raises(OutputTruncated) as caught:
        look(reply('{"a": 1, "b', finish_reason="length"), schema={"type": "object"})
    assert caught.value.text == '{"a": 1, "b'


def test_a_cap_that_reasoning_used_up_is_an_error():
    used = Usage(calls=1, input_tokens=9, output_tokens=500, reasoning_tokens=500)
    with pytest.raises(OutputTruncated, match="500 tokens went into reasoning") as caught:
        look(reply("", finish_reason="length", usage=used))
    assert caught.value.usage == used


def test_a_filter_that_left_nothing_is_a_refusal_and_one_that_left_something_a_warning():
    with pytest.raises(Refused):
        look(reply("", finish_reason="filter"))
    assert "filter" in look(reply(finish_reason="filter")).warnings[0]


def test_half_of_a_json_answer_that_a_filter_left_is_a_refusal():
    with pytest.raises(Refused, match="JSON is incomplete"):
        look(reply('{"a": 1, "b', finish_reason="filter"), schema={"type": "object"})


def test_a_refusal_is_an_error_with_the_words_of_the_model():
    with pytest.raises(Refused, match="m declined to answer: I will not"):
        look(reply("", refusal="I will not."))


def test_nothing_at_all_is_asked_again_and_an_empty_answer_is_a_warning():
    with pytest.raises(BadReply):
        look(reply("", usage=Usage(calls=1, input_tokens=9)))
    with pytest.raises(BadReply):
        look(reply(" \n", usage=Usage(calls=1, input_tokens=9)), count=lambda _: 0)
    assert look(reply("")).warnings == ("m gave an empty answer",)


def test_warnings_reach_the_listener_and_bills_of_useless_answers_the_ledger(virtual_time):
    events = []
    provider = FakeProvider(answer=lambda _: Reply(text="cut", finish_reason="length"))

    async def main():
        tree = Scheduler(provider).tree(run_id="r", emit=events.append)
        await tree.complete(call())
        with pytest.raises(OutputTruncated):
            await tree.complete(call(schema={"type": "object"}))
        return tree.ledger.usage

    assert anyio.run(main, **virtual_time).calls == 2
    assert [event.message for event in events if isinstance(event, Warned)] == [
        "an answer of m was cut at its output cap"
    ]
