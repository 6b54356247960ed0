from __future__ import annotations

from itertools import islice

import anyio
import pytest
from labelling import SCHEMA, label, read_csv, write_csv

from rlm.bulk import JobGroup, astream_rows, map_rows, stream_rows, streaming
from rlm.errors import AuthenticationFailed, ConnectionFailed, InputError, JobStopped, Refused
from rlm.scheduler import Budget
from rlm.settings import SchedulerSettings
from rlm.testing.scripted import ScriptedClient

OPTIONS = {"schema": SCHEMA, "model": "m", "rows_per_call": 1}


def rows_of(number):
    return [{"text": f"number {n}"} for n in range(number)]


class Slow:
    """Answers even numbers at once, and odd ones later."""

    def __init__(self):
        self.calls = 0

    async def complete(self, call):
        self.calls += 1
        reply = await ScriptedClient(label).complete(call)
        if '"odd"' in reply.text:
            await anyio.sleep(0.05)
        return reply


def test_rows_come_in_the_order_in_which_they_finish_each_once():
    got = list(stream_rows(rows_of(10), "Label {{text}}", client=Slow(), **OPTIONS))
    assert [row.index % 2 for row in got] == [0] * 5 + [1] * 5
    assert {row.index: row.row for row in got} == {
        n: {"text": f"number {n}", "label": "odd" if n % 2 else "even"} for n in range(10)
    }


def test_equal_rows_rules_and_failures_are_streamed_as_well():
    def reply(call):
        return Refused("not this") if "number 3" in call.messages[0].content else label(call)

    rows = [*rows_of(5), *rows_of(5), {"other": 1}]
    rule = lambda row: {"label": "odd"} if row["text"] == "number 0" else None  # noqa: E731
    got = list(stream_rows(rows, "Label {{text}}", client=ScriptedClient(reply), rule=rule, **OPTIONS))
    assert sorted(row.index for row in got) == list(range(11))
    assert {row.index: row.kind for row in got if row.failed} == {
        3: "Refused",
        8: "Refused",
        10: "InputError",
    }
    assert {row.row["label"] for row in got if row.index in {0, 5}} == {"odd"}
    assert next(row for row in got if row.index == 3).reason == "not this"


def test_with_several_opinions_a_row_comes_when_all_have_been_given():
    options = {**OPTIONS, "model": ("a", "b"), "pilot": 2, "confirm": lambda _estimate: True}
    got = list(stream_rows(rows_of(6), "Label {{text}}", client=ScriptedClient(label), **options))
    assert sorted(row.index for row in got) == list(range(6))
    assert all(row.row["agreement"] == 1.0 for row in got)


def test_rows_that_are_too_many_to_be_held_come_at_the_end(monkeypatch):
    monkeypatch.setattr(streaming, "ROWS_HELD", 3)
    got = list(stream_rows(rows_of(50), "Label {{text}}", client=ScriptedClient(label), **OPTIONS))
    assert sorted(row.index for row in got) == list(range(50))


def test_a_loop_that_is_left_early_cancels_the_job_and_what_was_answered_is_kept(tmp_path):
    source = write_csv(tmp_path / "in.csv", [f"number {n}" for n in range(600)])
    journal, client = tmp_path / "labels.journal", Slow()
    options = {**OPTIONS, "checkpoint": journal, "client": client, "max_concurrent": 10}
    assert len(list(islice(stream_rows(source, "Label {{text}}", **options), 30))) == 30
    asked = client.calls
    assert asked < 300  # the job waited for its consumer
    got = list(stream_rows(source, "Label {{text}}", resume=True, **options))
    assert len(got) == 600
    assert client.calls <= 600 + 10


def test_an_output_is_written_as_well(tmp_path):
    options = {**OPTIONS, "output": tmp_path / "out.csv", "client": ScriptedClient(label)}
    got = list(stream_rows(rows_of(7), "Label {{text}}", **options))
    assert [row["label"] for row in read_csv(tmp_path / "out.csv")] == [
        row.row["label"] for row in sorted(got, key=lambda row: row.index)
    ]


def test_bad_input_and_stops_are_raised_in_the_loop():
    with pytest.raises(InputError, match="asks for"):
        next(stream_rows(rows_of(1), "Label {{txt}}", client=ScriptedClient(label), **OPTIONS))
    finished = stream_rows(
        rows_of(9), "Label {{text}}", client=ScriptedClient(label), budget=Budget(calls=4), **OPTIONS
    )
    got = list(islice(finished, 4))
    assert len({row.index for row in got}) == 4
    with pytest.raises(JobStopped, match="calls is used up"):
        next(finished)


@pytest.mark.anyio
async def test_callers_with_a_loop_take_rows_in_a_context_and_have_the_report_after_it():
    indices = []
    async with astream_rows(rows_of(5), "Label {{text}}", client=Slow(), **OPTIONS) as finished:
        async for row in finished:
            indices.append(row.index)  # noqa: PERF401 - a reader should see the loop
    assert indices == [0, 2, 4, 1, 3]
    assert finished.report.answered == 5


@pytest.mark.anyio
async def test_an_async_loop_may_be_left_early_and_failures_are_raised_as_they_are():
    client = Slow()
    async with astream_rows(rows_of(500), "Label {{text}}", client=client, **OPTIONS) as finished:
        async for row in finished:
            assert row.row["label"] == "even"
            break
    assert finished.report is None
    refused = ScriptedClient(lambda _call: AuthenticationFailed("wrong key"))
    async with astream_rows(rows_of(5), "Label {{text}}", client=refused, **OPTIONS) as finished:
        with pytest.raises(JobStopped, match="wrong key"):
            await anext(finished)


@pytest.mark.anyio
async def test_an_error_of_the_callers_own_leaves_the_context_as_itself():
    async def divide_by_zero():
        async with astream_rows(rows_of(50), "Label {{text}}", client=Slow(), **OPTIONS) as finished:
            async for row in finished:
                row.index /= 0

    with pytest.raises(ZeroDivisionError):
        await divide_by_zero()


@pytest.mark.anyio
async def test_streams_of_one_group_share_its_concurrency_limit():
    client, indices = ScriptedClient(label, latency_s=0.01), []

    async def take(jobs, prompt):
        async with jobs.astream_rows(rows_of(20), prompt, **OPTIONS) as finished:
            indices.extend([row.index async for row in finished])

    async with JobGroup(client=client, max_concurrent=3) as jobs, anyio.create_task_group() as tasks:
        tasks.start_soon(take, jobs, "Label {{text}}")
        tasks.start_soon(take, jobs, "Name {{text}}")
    assert sorted(indices) == sorted([*range(20), *range(20)])
    assert client.most_in_flight == 3


def test_an_endpoint_that_is_never_reached_leaves_no_empty_output(tmp_path):
    def unreachable(_call):
        return ConnectionFailed("connection refused")

    options = {
        **OPTIONS,
        "output": tmp_path / "out.csv",
        "scheduler": SchedulerSettings(max_attempts=1),
    }
    with pytest.raises(
        JobStopped, match="no row got an answer; the last one failed by ConnectionFailed"
    ) as caught:
        map_rows(rows_of(3), "Label {{text}}", client=ScriptedClient(unreachable), **options)
    assert isinstance(caught.value.cause, ConnectionFailed)
    assert not (tmp_path / "out.csv").exists()
    report = map_rows(
        rows_of(3), "Label {{text}}", client=ScriptedClient(label), resume=True, **options
    ).report
    assert report.answered == 3
