"""Replies without their thinking."""

from __future__ import annotations

import pytest

from rlm.thinking import without_thinking

JSON = '{"value": 42}'


@pytest.mark.parametrize("name", ["think", "thinking", "thought", "reasoning", "THINK"])
@pytest.mark.parametrize(
    "before", ["<{0}>perhaps {{}}\n</{0}>", "perhaps {{}}</{0}>", "Sure. <{0}>a</{0}>\n<{0}>b</{0}>"]
)
def test_thinking_is_left_out(name, before):
    assert without_thinking(before.format(name) + JSON).removeprefix("Sure. ").strip() == JSON


def test_thinking_that_never_ends_leaves_nothing():
    assert without_thinking(f"<think>\nperhaps {JSON}") == ""


@pytest.mark.parametrize(
    "reply",
    [
        JSON,
        '{"value": "a </think> b"}',
        'The answer: {"value": "a </think> b"}',
        'The answer:\n{"</think>": ["<think>", "</think>"]}',
        '```json\n["</think>"]\n```',
        '"a </think> b"',
        "The answer: `</think>` ends it",
        "a <think> that is only mentioned",
        "Close it:\n```html\n<think>a</think>\n```\nand go on",
        "42</think>",
        "",
    ],
)
def test_a_tag_that_is_part_of_the_answer_stays(reply):
    assert without_thinking(reply) == reply


@pytest.mark.parametrize("text", ['{"', '["a', ',"\\', ": ", "<think>", "</think>", "`", '"', "```\n"])
def test_hostile_replies_are_read_in_linear_time(text):
    without_thinking("x" + text * 100_000)
