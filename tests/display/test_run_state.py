from __future__ import annotations

from dataclasses import replace

import pytest
from display.happenings import HERE, started, whole_run

from rlm.display.frame import frame_of
from rlm.display.run_state import Caps, RunState
from rlm.display.story import calls_in_words
from rlm.events import (
    AnswerGiven,
    BatchFinished,
    BatchStarted,
    CallFailed,
    CallFinished,
    CallRetried,
    CallStarted,
    CallWrote,
    CellFinished,
    CellOutput,
    CellStarted,
    RootReplied,
    RunFailed,
)
from rlm.values import Answer, Reply, Usage


def state_until(kind, **changes):
    state = RunState()
    for event in whole_run(**changes):
        if isinstance(event, kind):
            break
        state.apply(event)
    return state


def test_a_batch_counts_what_is_done_and_what_failed():
    batch = state_until(BatchFinished, calls=4, failed=1).batch()
    assert (batch.done, batch.size, batch.failed) == (4, 4, 1)


def test_calls_tokens_and_dollars_add_up():
    state = state_until(CellFinished, calls=4, failed=1)
    assert (state.calls, state.sub_calls, state.failed_calls, state.in_flight) == (5, 4, 1, 0)
    assert state.usage.total_tokens == 4 * 110
    assert state.cost_usd == pytest.approx(0.013)
    assert state.read_chars == 4 * 50


def test_the_calls_of_a_cell_are_without_those_that_the_budget_did_not_allow():
    state = RunState()
    for event in whole_run(calls=4, failed=1):
        refused = isinstance(event, CallFailed)
        state.apply(replace(event, kind="BudgetExceeded", error="used up") if refused else event)
    assert (state.cell_calls, state.failed_calls) == (3, 0)
    assert calls_in_words(state) == "3 calls"


def test_dollars_are_unknown_as_soon_as_one_price_is():
    state = RunState()
    for event in whole_run():
        if isinstance(event, CallFinished) and event.call == 3:
            event = replace(event, reply=replace(event.reply, cost_usd=None))  # noqa: PLW2901
        state.apply(event)
    assert state.cost_usd is None


def test_the_end_of_a_run_leaves_nothing_open():
    state = RunState()
    for event in whole_run():
        state.apply(event)
    assert (state.open_runs, state.doing, state.batches, state.in_flight) == ({}, "", {}, 0)


def test_a_run_that_fails_in_the_middle_of_a_batch_leaves_nothing_open():
    state = state_until(BatchFinished)
    state.apply(RunFailed(**HERE, kind="Cancelled", error="stopped"))
    assert (state.open_runs, state.doing, state.batches, state.in_flight) == ({}, "", {}, 0)


def test_the_next_run_begins_anew_and_a_child_does_not():
    state = state_until(CellFinished)
    state.apply(started(run_id="child", depth=1, parent_id=HERE["run_id"]))
    assert state.calls == 5
    assert (state.child_runs, state.root_runs) == (1, 1)
    state.apply(AnswerGiven(run_id="child", depth=1, at=130.0, answer=Answer("a")))
    state.apply(AnswerGiven(**HERE, answer=Answer("a")))
    state.apply(started(at=200.0, run_id="next"))
    assert (state.calls, state.started_at) == (0, 200.0)


def test_only_the_end_of_a_huge_output_is_kept():
    state = state_until(CellFinished)
    for number in range(2_000):
        state.apply(CellOutput(**HERE, cell=1, stream="stdout", text=f"{number:>100}"))
    assert state.output.endswith("1999")
    assert len(state.output) < 17_000
    state.apply(CellOutput(**HERE, cell=1, stream="stdout", text="x" * 5_000_000))
    assert len(state.output) < 33_000


def frame(state, *, columns=120, rows=40, now=130.0):
    return [line.plain for line in frame_of(state, columns=columns, rows=rows, now=now)]


def writing(*pieces, call=1):
    """A run whose root model has written these pieces of its first reply."""
    state = state_until(CallFinished)
    for piece in pieces:
        state.apply(CallWrote(**HERE, call=call, text=piece))
    return state


def test_the_frame_shows_the_end_of_what_the_root_model_is_writing():
    state = writing("I look", " at it.\n", *(f"line {n}\n" for n in range(1_000)), "\x1b[2J" + "long " * 100)
    lines = frame(state, columns=40, rows=24)
    assert len(lines) == 7
    assert lines[-2].endswith("long ")
    assert "the root model writes" in frame(state)[-1]
    assert all(len(line) <= 40 for line in lines)
    assert "\\x1b[2J" in "\n".join(frame(writing("\x1b[2J")))


def test_only_the_end_of_a_reply_is_kept_while_it_is_written():
    assert len(writing(*["x" * 1_000] * 500).written) < 17_000


def test_a_call_that_is_made_again_begins_its_text_anew():
    state = writing("half an ans")
    state.apply(CallRetried(**HERE, call=1, attempt=1, error="broke off", wait_s=1.0))
    assert state.written == ""
    state.apply(CallWrote(**HERE, call=1, text="whole"))
    assert state.written == "whole"


def test_the_settled_reply_takes_the_place_of_what_was_written():
    state = writing("I look.")
    state.apply(RootReplied(**HERE, turn=1, reply=Reply(text="I look.")))
    assert state.written == ""


def test_a_run_that_is_stopped_while_its_root_model_writes_leaves_nothing():
    state = writing("I look.")
    state.apply(RunFailed(**HERE, kind="Cancelled", error="stopped"))
    assert (state.written, frame(state)) == ("", [])


def test_what_children_and_other_calls_write_is_not_mixed_in():
    state = writing("mine")
    state.apply(CallWrote(run_id="child", depth=1, at=1.0, call=1, text="theirs"))
    state.apply(CallWrote(**HERE, call=99, text="another"))
    assert state.written == "mine"


def spending(**budget):
    state = state_until(CellFinished)
    assert state.cost_usd == pytest.approx(0.013)
    state.caps = Caps(**budget)
    return state


def test_the_status_tells_what_was_spent_of_what_there_is():
    status = frame(spending(usd=1.0, tokens=5_000, calls=50))[-1]
    assert "spent $0.013 of $1.00" in status
    assert "4 of 50 calls" in status
    assert "440 of 5,000 tokens" in status
    assert " of " not in frame(spending())[-1].replace("turn 1 of 20", "")


def test_a_narrow_terminal_keeps_the_budget_longest():
    assert "spent $0.013 of $1.00" in frame(spending(usd=1.0), columns=34)[-1]


def test_the_caps_of_a_run_also_hold_for_the_users_own_cells():
    state = RunState()
    state.apply(started(budget_usd=2.0, budget_calls=9))
    state.apply(AnswerGiven(**HERE, answer=Answer("a")))
    state.apply(CellStarted(**HERE, turn=0, cell=1, code="x"))
    assert state.caps == Caps(usd=2.0, calls=9)
    state.apply(started(run_id="next"))
    state.apply(AnswerGiven(**HERE, answer=Answer("a")))


def test_the_line_of_a_batch_tells_distinct_calls_and_the_time_left():
    state = state_until(BatchStarted)
    state.apply(BatchStarted(**{**HERE, "at": 110.0}, batch=1, size=100, distinct=10, max_concurrent=10))
    for call in range(2, 6):
        state.apply(CallStarted(**HERE, call=call, role="sub", model="small", messages=(), batch=1))
        state.apply(CallFinished(**HERE, call=call, reply=Reply(text="r", usage=Usage(calls=1))))
    line = frame(state, now=118.0)[-2]
    assert " 4 of 10 calls · 0 in flight · 12 s left · 100 prompts, 10 distinct" in line


def test_a_call_that_was_stopped_or_never_made_did_not_fail_but_is_done():
    state = state_until(CallFailed)
    for kind in ("Cancelled", "BudgetExceeded", "DeadlineExceeded"):
        key = state.calls + 1
        state.apply(CallStarted(**HERE, call=key, role="sub", model="small", messages=(), batch=1))
        state.apply(CallFailed(**HERE, call=key, kind=kind, error="x"))
    assert (state.failed_calls, state.batch().failed) == (0, 0)


def test_calls_that_failed_but_were_billed_count_as_spent():
    state = state_until(CallFailed)
    before = state.usage.total_tokens
    billed = {"usage": Usage(calls=1, input_tokens=7), "cost_usd": 0.5}
    state.apply(CallFailed(**HERE, call=2, kind="BadReply", error="x", **billed))
    assert state.usage.total_tokens == before + 7
    assert state.cost_usd == pytest.approx(0.51)
