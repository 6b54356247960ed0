from __future__ import annotations

from dataclasses import replace

import pytest
from display.happenings import HERE, started, whole_run

from rlm.display.progress import Progress
from rlm.events import AnswerGiven, BatchFinished, CallFinished, CellFinished, CellOutput, RunFailed
from rlm.values import Answer


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
