from __future__ import annotations

import io
from dataclasses import replace

from display.happenings import HERE, started, whole_run

from rlm import RLM_REPL, ScriptedClient
from rlm.display import PlainLines
from rlm.display.story import prose_of
from rlm.events import BatchStarted, CallRetried, CallWrote, CellFinished, CellOutput, CellStarted, Warned
from rlm.values import CellResult


def lines_of(events, verbosity=0):
    file = io.StringIO()
    display = PlainLines(file, verbosity=verbosity)
    for event in events:
        display(event)
    display.close()
    return file.getvalue()


def test_a_run_is_a_few_complete_lines():
    assert lines_of(whole_run(step_s=0.1)).splitlines() == [
        "[  0.0 s] asked 'big': What is it?",
        "[  0.0 s] `context` is a str of 5 characters.",
        "[  1.6 s] turn 1: 1 prompt of a batch failed",
        "[  1.7 s] turn 1: cell 1 ok, 4 calls, printed 'hello', 2.0 s",
        "[  1.8 s] answered: 1 turn, 5 calls, 550 tokens, 9.0 s",
    ]


def test_a_long_batch_gives_news_now_and_then():
    text = lines_of(whole_run(calls=100, failed=0, step_s=1.0))
    assert 10 < text.count(" of 100 calls") < 25


def test_news_of_a_batch_tell_the_distinct_calls_and_the_time_left():
    events = [
        replace(event, size=300) if isinstance(event, BatchStarted) else event
        for event in whole_run(calls=100, failed=0, step_s=1.0)
    ]
    text = lines_of(events)
    assert "turn 1: 2 of 100 calls for 300 prompts, 3 min 16 s left" in text
    assert "cell 1 ok, 100 calls for 300 prompts, printed 'hello'" in text


def test_a_budget_is_told_next_to_what_was_spent():
    budget = {"budget_usd": 0.5, "budget_tokens": 100_000, "budget_calls": 50}
    ending = lines_of([started(**budget), *list(whole_run(cost_usd=0.04))[1:]]).splitlines()[-1]
    assert ending.endswith("answered: 1 turn, 5 of 50 calls, 550 of 100,000 tokens, $0.04 of $0.50, 9.0 s")


def test_what_the_root_model_is_writing_adds_no_line():
    pieces = [CallWrote(**HERE, call=1, text=f"line {n}\n") for n in range(1_000)]
    events = list(whole_run())
    assert lines_of([*events[:3], *pieces, *events[3:]]) == lines_of(events)


def test_an_outage_is_told_of_now_and_then_not_at_each_retry():
    retries = [
        CallRetried(**{**HERE, "at": 100.0 + second}, call=1, attempt=1, error="503 overloaded", wait_s=1.0)
        for second in range(35)
    ]
    assert lines_of([started(), *retries]).count("503 overloaded; again in 1.0 s") == 3
    assert lines_of([started(), *retries], verbosity=1).count("503 overloaded; again in 1.0 s") == 35


def test_verbose_lines_quote_the_code_and_the_output():
    text = lines_of(whole_run(), verbosity=1)
    assert "  | print('hello')" in text
    assert "  | hello" in text


def test_no_control_code_gets_through_and_a_megabyte_is_clipped():
    for verbosity in (0, 1, 2):
        text = lines_of(whole_run(output="\x1b[2J\u202e" + "x" * 1_000_000, code="'\x9b2J'"), verbosity)
        assert "\x1b" not in text
        assert "\x9b" not in text
        assert "\\x1b[2J\\u202e" in text
        assert len(text) < 10_000


def test_a_failed_cell_says_how_and_what_became_of_the_variables():
    result = CellResult(outcome="timeout", state="rolled back", error="it computed for more than 5 seconds")
    text = lines_of([started(), CellFinished(**HERE, turn=2, cell=3, result=result)])
    assert "turn 2: cell 3 timed out (variables rolled back): it computed for more than 5 seconds" in text


def test_the_users_own_cells_are_left_to_their_caller():
    own = CellStarted(**HERE, turn=0, cell=1, code="x")
    assert lines_of([own, CellFinished(**HERE, turn=0, cell=1, result=CellResult(stdout="1\n"))]) == ""


def test_children_are_shown_on_request_and_their_warnings_always():
    child = {**HERE, "run_id": "child", "depth": 1}
    events = [started(), started(depth=1, run_id="child"), Warned(**child, message="cut")]
    assert "child run" not in lines_of(events)
    assert "warning: cut" in lines_of(events)
    assert "child run: asked 'big'" in lines_of(events, verbosity=1)


def test_with_two_runs_at_once_each_line_names_its_run():
    text = lines_of(
        [
            started(run_id="a-1111"),
            started(run_id="b-2222"),
            Warned(run_id="b-2222", depth=0, at=1, message="w"),
        ]
    )
    assert " 2222 warning: w" in text


def test_a_broken_file_silences_the_display():
    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    display = PlainLines(Broken())
    for event in whole_run():
        display(event)
    closed = io.StringIO()
    closed.close()
    PlainLines(closed)(started())


def test_prose_is_what_comes_before_code_and_answer_without_thoughts():
    assert prose_of("<think>hm</think>I look.\n```repl\nx\n```\nmore") == "I look."
    assert prose_of("FINAL(42)") == ""
    assert prose_of("So:\n  FINAL_VAR(x)") == "So:"
    assert prose_of("<think>never closed") == ""


def test_output_that_never_ends_a_line_is_no_trouble():
    assert (
        lines_of([started(), CellOutput(**HERE, cell=1, stream="stdout", text="x" * 1_000_000)]).count("\n")
        == 2
    )


def test_enable_logging_writes_lines_to_a_stderr_that_is_no_terminal(capsys):
    with RLM_REPL("a", "b", enable_logging=True, client=ScriptedClient(root=["FINAL(done)"])) as rlm:
        assert rlm.completion("some text", "What?") == "done"
    assert "answered: 1 turn, 1 call" in capsys.readouterr().err
