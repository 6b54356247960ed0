from __future__ import annotations

from datetime import date

import pytest

from rlm.engine import prompts
from rlm.settings import RunSettings, SandboxSettings
from rlm.values import CellResult

SETTINGS = RunSettings(
    max_iterations=7,
    sub_context_chars=123_456,
    shown_output_chars=9_000,
    sandbox=SandboxSettings(cell_timeout_s=33),
)


@pytest.mark.parametrize("told", ["7 replies", "123,456 characters", "9,000 characters", "33 seconds"])
def test_the_system_prompt_states_the_limits_of_this_run(told):
    assert told in prompts.system_prompt(SETTINGS)


@pytest.mark.parametrize(
    "name", ["context", "llm_query", "llm_batch", "llm_map", "FINAL", "FINAL_VAR", "answer", "SHOW_VARS"]
)
def test_the_system_prompt_names_what_the_namespace_has(name):
    assert name in prompts.system_prompt(SETTINGS)


def test_child_runs_are_named_only_where_there_can_be_any():
    deep = RunSettings(max_depth=2)
    assert "rlm_query" not in prompts.system_prompt(RunSettings(max_depth=1))
    assert "rlm_query" in prompts.system_prompt(deep, depth=0)
    assert "rlm_query" not in prompts.system_prompt(deep, depth=1)


def test_the_system_prompt_is_short():
    assert len(prompts.system_prompt(SETTINGS)) < 3_000


@pytest.mark.parametrize(
    ("context", "told"),
    [
        ("x" * 1_234, "a str of 1,234 characters"),
        (["ab", "cde"], "a list with 2 items. Items: str. Text in all: 5 characters, longest 3."),
        ({"a.txt": "hello"}, "a dict with 1 key: 'a.txt'. Text in all: 5 characters"),
        ([{"role": "user", "content": "hi"}], "a list of chat messages with 1 item"),
        (dict.fromkeys(range(30), ""), "and 10 more"),
        (None, "no data"),
        (b"abc", "bytes of length 3"),
        (date(2026, 1, 1), "of type date"),
        ([], "a list with 0 items."),
        ([1, "a", None], "Items: NoneType, int, str."),
    ],
)
def test_the_context_is_described_by_type_and_size(context, told):
    assert told in prompts.describe_context(context)


def test_a_clipped_text_keeps_head_and_tail_and_counts_the_cut():
    clipped = prompts.clip("a" * 500 + "b" * 500, 300)
    assert clipped.startswith("a" * 200)
    assert clipped.endswith("b" * 100)
    assert "700 characters cut" in clipped


def test_a_text_at_the_limit_is_not_clipped():
    assert prompts.clip("x" * 300, 300) == "x" * 300


def test_the_error_is_shown_whole_however_much_was_printed():
    result = CellResult(stdout="x" * 1_000_000, error="Traceback\nValueError: the end", outcome="raised")
    told = prompts.describe_cells([result], SETTINGS, skipped=0, remaining=3)
    assert "ValueError: the end" in told
    assert len(told) < SETTINGS.shown_output_chars + 5_000


def test_the_outputs_of_several_cells_share_the_room():
    results = [CellResult(stdout="x" * 1_000_000)] * 4
    told = prompts.describe_cells(results, SETTINGS, skipped=0, remaining=3)
    assert len(told) < SETTINGS.shown_output_chars + 1_000


def test_a_cell_that_printed_nothing_says_so():
    assert "(nothing printed)" in prompts.describe_cells([CellResult()], SETTINGS, skipped=0, remaining=3)
