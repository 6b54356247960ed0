from __future__ import annotations

from fake_provider import call
from hypothesis import given
from hypothesis import strategies as st

from rlm.scheduler.dedupe import first_of_each, occurrences


@given(st.lists(st.sampled_from("abcde"), max_size=40))
def test_each_call_points_to_the_first_of_its_kind(prompts):
    first = first_of_each([call(prompt) for prompt in prompts])
    if len(set(prompts)) == 1:
        assert first == list(range(len(prompts)))
    else:
        assert first == [prompts.index(prompt) for prompt in prompts]


@given(st.lists(st.sampled_from("abc"), max_size=40))
def test_occurrences_count_the_equal_ones_before(prompts):
    numbers = occurrences([call(prompt) for prompt in prompts])
    assert numbers == [prompts[:index].count(prompt) for index, prompt in enumerate(prompts)]


def test_calls_that_differ_in_anything_the_model_sees_are_not_equal():
    calls = [
        call("a"),
        call("b"),
        call("a", model="n"),
        call("a", temperature=0.5),
        call("a", max_output_tokens=5),
        call("a", schema={"type": "string"}),
        call("a", schema={"type": "number"}),
        call("a", extra={"seed": 1}),
    ]
    assert first_of_each(calls) == list(range(len(calls)))


def test_calls_that_differ_only_in_who_asks_are_equal():
    calls = [call("a", run_id="r"), call("b"), call("a", run_id="s", depth=2, batch=7)]
    assert first_of_each(calls) == [0, 1, 0]


def test_the_order_of_keys_makes_no_difference():
    calls = [call("a", extra={"x": 1, "y": [2]}), call("b"), call("a", extra={"y": [2], "x": 1})]
    assert first_of_each(calls) == [0, 1, 0]
