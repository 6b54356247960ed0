from __future__ import annotations

import copy
import json
import pickle

import pytest

from rlm.values import Answer, Usage, render, written_size


def test_an_answer_is_a_str():
    answer = Answer("Ada", status="partial")
    assert answer == "Ada"
    assert f"<{answer}>" == "<Ada>"
    assert f"by {answer}" == "by Ada"
    assert json.dumps(answer) == '"Ada"'
    assert {answer: 1}["Ada"] == 1


@pytest.mark.parametrize("duplicate", [lambda a: pickle.loads(pickle.dumps(a)), copy.copy, copy.deepcopy])
def test_an_answer_keeps_its_facts_when_it_is_copied_or_pickled(duplicate):
    answer = Answer({"n": [1]}, status="budget", usage=Usage(calls=3), turns=2, run_id="r", warnings=("w",))
    again = duplicate(answer)
    assert isinstance(again, Answer)
    assert again == answer
    assert vars(again) == vars(answer)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is\r\n", "as it is\r\n"),
        (42, "42"),
        (True, "True"),
        (None, "None"),
        ([1, "é"], '[\n  1,\n  "é"\n]'),
        ({"a": (1,)}, '{\n  "a": [\n    1\n  ]\n}'),
        ({1, 2} - {2}, "{1}"),
        ([b"x"], "[b'x']"),
        ([float("nan")], "[nan]"),
    ],
)
def test_any_value_has_a_text(value, text):
    assert render(value) == text
    assert Answer(value) == text
    assert Answer(value).value is value


def test_deep_lists_are_written_without_indentation_because_it_would_be_400_times_their_size():
    value = [None] * 50_000
    for _ in range(200):
        value = [value]
    text = render(value)
    assert len(text) < 400_000
    assert json.loads(text) == value


def test_lists_that_share_their_parts_are_not_written_to_the_end():
    shared = ["x" * 1_000_000]
    for _ in range(40):
        shared = [shared, shared]
    assert render(shared) == "<list that is too large to be written out>"


@pytest.mark.parametrize("value", [[], [1] * 50, {"a": [1.5, None, "text"]}, [[["x"]] * 5] * 5])
def test_the_estimate_of_a_size_is_close(value):
    for indent in (0, 2):
        text = json.dumps(value, indent=indent or None)
        assert len(text) / 3 - 10 < written_size(value, 10_000, indent=indent) < 3 * len(text) + 10


def test_usages_add_up():
    one = Usage(calls=1, input_tokens=10, cached_tokens=2, output_tokens=5, reasoning_tokens=1)
    both = one + Usage(calls=1, input_tokens=1, estimated=True)
    assert both == Usage(
        calls=2, input_tokens=11, cached_tokens=2, output_tokens=5, reasoning_tokens=1, estimated=True
    )
    assert both.total_tokens == 16
