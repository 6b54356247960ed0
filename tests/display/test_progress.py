from __future__ import annotations

from dataclasses import replace

import pytest
from display.happenings import HERE, started, whole_run

from rlm.display.lines import calls_in_words
from rlm.display.progress import Caps, Progress
from rlm.display.story import frame_of
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


def progress_until(kind, **changes):
    progress = Progress()
    for event in whole_run(**changes):
        if isinstance(event, kind):
            break
        progress.apply(event)
    return progress


def test_a_batch_counts_what_is_done_and_what_failed():
    batch = progress_until(BatchFinished, calls=4, failed=1).batch()
    assert (batch.done, batch.size, batch.failed) == (4, 4, 1)


def test_calls_tokens_and_dollars_add_up():
    progress = progress_until(CellFinished, calls=4, failed=1)
    assert (progress.calls, progress.sub_calls, progress.failed_calls, progress.in_flight) == (5, 4, 1, 0)
    assert progress.usage.total_tokens == 4 * 110
    assert progress.cost_usd == pytest.approx(0.013)
    assert progress.read_chars == 4 * 50


def test_the_calls_of_a_cell_are_without_those_that_the_budget_did_not_allow():
    progress = Progress()
    for event in whole_run(calls=4, failed=1):
        refused = isinstance(event, CallFailed)
        progress.apply(replace(event, kind="BudgetExceeded", error="used up") if refused else event)
    assert (progress.cell_calls, progress.failed_calls) == (3, 0)
    assert calls_in_words(progress) == "3 calls"


def test_dollars_are_unknown_as_soon_as_one_price_is():
    progress = Progress()
    for event in whole_run():
        if isinstance(event, CallFinished) and event.call == 3:
            event = replace(event, reply=replace(event.reply, cost_usd=None))  # noqa: PLW2901
        progress.apply(event)
    assert progress.cost_usd is None


def test_the_end_of_a_run_leaves_nothing_open():
    progress = Progress()
    for event in whole_run():
        progress.apply(event)
    assert (progress.open_runs, progress.doing, progress.batches, progress.in_flight) == ({}, "", {}, 0)


def test_a_run_that_fails_in_the_middle_of_a_batch_leaves_nothing_open():
    progress = progress_until(BatchFinished)
    progress.apply(RunFailed(**HERE, kind="Cancelled", error="stopped"))
    assert (progress.open_runs, progress.doing, progress.batches, progress.in_flight) == ({}, "", {}, 0)


def test_the_next_run_begins_anew_and_a_child_does_not():
    progress = progress_until(CellFinished)
    progress.apply(started(run_id="child", depth=1, parent_id=HERE["run_id"]))
    assert progress.calls == 5
    assert (progress.child_runs, progress.root_runs) == (1, 1)
    progress.apply(AnswerGiven(run_id="child", depth=1, at=130.0, answer=Answer("a")))
    progress.apply(AnswerGiven(**HERE, answer=Answer("a")))
    progress.apply(started(at=200.0, run_id="next"))
    assert (progress.calls, progress.started_at) == (0, 200.0)


def test_only_the_end_of_a_huge_output_is_kept():
    progress = progress_until(CellFinished)
    for number in range(2_000):
        progress.apply(CellOutput(**HERE, cell=1, stream="stdout", text=f"{number:>100}"))
    assert progress.output.endswith("1999")
    assert len(progress.output) < 17_000
    progress.apply(CellOutput(**HERE, cell=1, stream="stdout", text="x" * 5_000_000))
    assert len(progress.output) < 33_000


def frame(progress, *, columns=120, rows=40, now=130.0):
    return [line.plain for line in frame_of(progress, columns=columns, rows=rows, now=now)]


def writing(*pieces, call=1):
    """A run whose root model has written these pieces of its first reply."""
    progress = progress_until(CallFinished)
    for piece in pieces:
        progress.apply(CallWrote(**HERE, call=call, text=piece))
    return progress


def test_the_frame_shows_the_end_of_what_the_root_model_is_writing():
    progress = writing(
        "I look", " at it.\n", *(f"line {n}\n" for n in range(1_000)), "\x1b[2J" + "long " * 100
    )
    lines = frame(progress, columns=40, rows=24)
    assert len(lines) == 7
    assert lines[-2].endswith("long ")
    assert "the root model writes" in frame(progress)[-1]
    assert all(len(line) <= 40 for line in lines)
    assert "\\x1b[2J" in "\n".join(frame(writing("\x1b[2J")))


def test_only_the_end_of_a_reply_is_kept_while_it_is_written():
    assert len(writing(*["x" * 1_000] * 500).written) < 17_000


def test_a_call_that_is_made_again_begins_its_text_anew():
    progress = writing("half an ans")
    progress.apply(CallRetried(**HERE, call=1, attempt=1, error="broke off", wait_s=1.0))
    assert progress.written == ""
    progress.apply(CallWrote(**HERE, call=1, text="whole"))
    assert progress.written == "whole"


def test_the_settled_reply_takes_the_place_of_what_was_written():
    progress = writing("I look.")
    progress.apply(RootReplied(**HERE, turn=1, reply=Reply(text="I look.")))
    assert progress.written == ""


def test_a_run_that_is_stopped_while_its_root_model_writes_leaves_nothing():
    progress = writing("I look.")
    progress.apply(RunFailed(**HERE, kind="Cancelled", error="stopped"))
    assert (progress.written, frame(progress)) == ("", [])


def test_what_children_and_other_calls_write_is_not_mixed_in():
    progress = writing("mine")
    progress.apply(CallWrote(run_id="child", depth=1, at=1.0, call=1, text="theirs"))
    progress.apply(CallWrote(**HERE, call=99, text="another"))
    assert progress.written == "mine"


def spending(**budget):
    progress = progress_until(CellFinished)
    assert progress.cost_usd == pytest.approx(0.013)
    progress.caps = Caps(**budget)
    return progress


def test_the_status_tells_what_was_spent_of_what_there_is():
    status = frame(spending(usd=1.0, tokens=5_000, calls=50))[-1]
    assert "spent $0.013 of $1.00" in status
    assert "4 of 50 calls" in status
    assert "440 of 5,000 tokens" in status
    assert " of " not in frame(spending())[-1].replace("turn 1 of 20", "")


def test_a_narrow_terminal_keeps_the_budget_longest():
    assert "spent $0.013 of $1.00" in frame(spending(usd=1.0), columns=34)[-1]


def test_the_caps_of_a_run_also_hold_for_the_users_own_cells():
    progress = Progress()
    progress.apply(started(budget_usd=2.0, budget_calls=9))
    progress.apply(AnswerGiven(**HERE, answer=Answer("a")))
    progress.apply(CellStarted(**HERE, turn=0, cell=1, code="x"))
    assert progress.caps == Caps(usd=2.0, calls=9)
    progress.apply(started(run_id="next"))
    progress.apply(AnswerGiven(**HERE, answer=Answer("a")))


def test_the_line_of_a_batch_tells_distinct_calls_and_the_time_left():
    progress = progress_until(BatchStarted)
    progress.apply(BatchStarted(**{**HERE, "at": 110.0}, batch=1, size=100, distinct=10, max_concurrent=10))
    for call in range(2, 6):
        progress.apply(CallStarted(**HERE, call=call, role="sub", model="small", messages=(), batch=1))
        progress.apply(CallFinished(**HERE, call=call, reply=Reply(text="r", usage=Usage(calls=1))))
    line = frame(progress, now=118.0)[-2]
    assert " 4 of 10 calls · 0 in flight · 12 s left · 100 prompts, 10 distinct" in line


def test_a_call_that_was_stopped_or_never_made_did_not_fail_but_is_done():
    progress = progress_until(CallFailed)
    for kind in ("Cancelled", "BudgetExceeded", "DeadlineExceeded"):
        key = progress.calls + 1
        progress.apply(CallStarted(**HERE, call=key, role="sub", model="small", messages=(), batch=1))
        progress.apply(CallFailed(**HERE, call=key, kind=kind, error="x"))
    assert (progress.failed_calls, progress.batch().failed) == (0, 0)


def test_calls_that_failed_but_were_billed_count_as_spent():
    progress = progress_until(CallFailed)
    before = progress.usage.total_tokens
    billed = {"usage": Usage(calls=1, input_tokens=7), "cost_usd": 0.5}
    progress.apply(CallFailed(**HERE, call=2, kind="BadReply", error="x", **billed))
    assert progress.usage.total_tokens == before + 7
    assert progress.cost_usd == pytest.approx(0.51)
