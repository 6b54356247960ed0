from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import anyio
import pytest
from labelling import SCHEMA, answer, items_in, label, parity, read_csv, write_csv
from openai_server import OpenAIServer

from rlm.bulk import JobGroup
from rlm.errors import BudgetExceeded, JobStopped, SettingsError
from rlm.metering.prices import Price
from rlm.scheduler import Budget
from rlm.settings import SchedulerSettings
from rlm.testing.scripted import ScriptedClient
from rlm.values import Reply, Usage

PRICES = {"m": Price(input=1.0, output=1.0)}


def rows_of(number):
    return [{"text": f"number {n}"} for n in range(number)]


OPTIONS = {"schema": SCHEMA, "model": "m", "rows_per_call": 5}


class Provider:
    """Answers after a while; records the most calls in flight and the bill."""

    def __init__(self, latency_s=0.01):
        self.latency_s = latency_s
        self.now = self.most = self.calls = 0

    async def complete(self, call):
        self.now += 1
        self.calls += 1
        self.most = max(self.most, self.now)
        try:
            await anyio.sleep(self.latency_s)
        finally:
            self.now -= 1
        usage = Usage(calls=1, input_tokens=len(call.messages[0].content) // 4, output_tokens=40)
        return Reply(text=label(call), model=call.model, usage=usage)


def tables(folder, number=3, rows=100):
    """Tables whose rows differ, so that no two jobs ask the same."""
    return [
        write_csv(folder / f"in{table}.csv", [f"table {table} number {row}" for row in range(rows)])
        for table in range(number)
    ]


def answers_in(journals):
    there = [journal for journal in journals if journal.exists()]  # one that holds nothing goes
    lines = [line for journal in there for line in journal.read_text().splitlines()]
    return sum(len(json.loads(line).get("a", ())) for line in lines)


async def map_all(jobs, sources, outcomes, **options):
    """Map all tables at once; outcomes by name, errors among them."""

    async def one(source):
        output = source.with_name(source.name.replace("in", "out"))
        try:
            outcomes[source.name] = await jobs.amap_rows(
                source, "Label {{text}}", output=output, **{**OPTIONS, **options}
            )
        except JobStopped as stop:
            outcomes[source.name] = stop

    async with anyio.create_task_group() as tasks:
        for source in sources:
            tasks.start_soon(one, source)


@pytest.mark.anyio
async def test_concurrent_jobs_share_one_limit_and_each_reports_its_own_share(tmp_path):
    provider, outcomes = Provider(), {}
    async with JobGroup(client=provider, max_concurrent=6, prices=PRICES) as jobs:
        await map_all(jobs, tables(tmp_path), outcomes)
        whole = jobs.cost_summary()
    assert 4 <= provider.most <= 6
    reports = [mapped.report for mapped in outcomes.values()]
    assert [report.usage.calls for report in reports] == [20, 20, 20]
    assert all(report.seconds > 0 and 0 < report.cost_usd < whole["cost_usd"] for report in reports)
    assert whole["cost_usd"] == pytest.approx(sum(report.cost_usd for report in reports))
    assert whole["calls"] == provider.calls == 60


@pytest.mark.anyio
async def test_concurrent_jobs_never_pass_the_budget_stop_together_and_lose_nothing(tmp_path):
    provider, outcomes = Provider(latency_s=0.1), {}  # all jobs have begun before one can end
    sources = tables(tmp_path)
    async with JobGroup(client=provider, budget=Budget(calls=31), max_concurrent=12) as jobs:
        await map_all(jobs, sources, outcomes)
        assert jobs.cost_summary()["calls"] == 31
        assert jobs.cost_summary()["possibly_billed"]["calls"] == 0
    assert provider.calls == 31
    assert all(isinstance(stop, JobStopped) for stop in outcomes.values())
    assert all(isinstance(stop.cause, BudgetExceeded) for stop in outcomes.values())

    provider.calls = 0
    async with JobGroup(client=provider) as jobs:
        await map_all(jobs, sources, outcomes, resume=True)
    assert provider.calls == 60 - 31
    reports = [mapped.report for mapped in outcomes.values()]
    assert sum(report.resumed for report in reports) == 31 * 5
    assert [len(read_csv(tmp_path / f"out{n}.csv")) for n in range(3)] == [100, 100, 100]


@pytest.mark.anyio
async def test_a_job_that_ends_at_the_budget_does_not_cancel_what_the_others_have_paid_for(tmp_path):
    """In a task group of the caller's, which cancels the others as soon as one fails."""
    provider = Provider(latency_s=0.05)
    sources = tables(tmp_path)

    async def all_at_once():
        async with (
            JobGroup(client=provider, budget=Budget(calls=20), max_concurrent=20) as jobs,
            anyio.create_task_group() as tasks,
        ):
            for source in sources:
                output = source.with_suffix(".jsonl")
                job = partial(jobs.amap_rows, source, "Label {{text}}", output=output, **OPTIONS)
                tasks.start_soon(job)

    with pytest.raises(ExceptionGroup) as caught:
        await all_at_once()
    assert caught.group_contains(JobStopped)
    assert provider.calls == 20
    assert answers_in([Path(f"{source.with_suffix('.jsonl')}.journal") for source in sources]) == 20 * 5


@pytest.mark.anyio
async def test_a_budget_in_dollars_holds_over_all_jobs_at_any_price_of_a_call(tmp_path):
    provider, outcomes = Provider(), {}
    group = JobGroup(client=provider, budget=0.004, prices=PRICES, max_concurrent=12)
    async with group as jobs:
        await map_all(jobs, tables(tmp_path), outcomes, max_output_tokens=200)
        spent = jobs.cost_summary()["cost_usd"]
    assert 0.003 < spent <= 0.004
    assert all(isinstance(stop, JobStopped) for stop in outcomes.values())


@pytest.mark.anyio
async def test_a_budget_of_one_job_is_a_part_of_the_groups_and_stops_only_that_job(tmp_path):
    provider, outcomes = Provider(), {}
    first, second, _ = tables(tmp_path)
    async with JobGroup(client=provider, budget=Budget(calls=100)) as jobs:
        await map_all(jobs, [first], outcomes, budget=Budget(calls=3))
        await map_all(jobs, [second], outcomes)
    assert isinstance(outcomes["in0.csv"], JobStopped)
    assert outcomes["in1.csv"].report.answered == 100
    assert provider.calls == 23


def test_a_group_serves_blocking_callers_from_many_threads(tmp_path):
    provider = Provider()
    with JobGroup(client=provider, max_concurrent=4) as jobs, ThreadPoolExecutor() as threads:
        label_one = lambda source: jobs.map_rows(source, "Label {{text}}", **OPTIONS)  # noqa: E731
        results = list(threads.map(label_one, tables(tmp_path)))
    assert [result.report.answered for result in results] == [100, 100, 100]
    assert provider.most == 4
    assert results[0].rows[1]["label"] == "odd"


def test_failed_rows_are_retried_in_a_group(tmp_path):
    (source,) = tables(tmp_path, 1)
    output = tmp_path / "out.csv"
    silent = ScriptedClient(lambda call: "?" if "number 42" in call.messages[0].content else label(call))
    with JobGroup(client=silent) as jobs:
        assert jobs.map_rows(source, "Label {{text}}", output=output, **OPTIONS).report.failed == 1
    with JobGroup(client=ScriptedClient(label)) as jobs:
        assert jobs.retry_rows(f"{output}.failed.jsonl").report.failed == 0


@pytest.mark.anyio
async def test_equal_calls_of_two_jobs_are_answered_from_one_cache(tmp_path):
    provider, outcomes = Provider(), {}
    (source,) = tables(tmp_path, 1)
    settings = SchedulerSettings(cache="on", cache_folder=str(tmp_path / "cache"))
    async with JobGroup(client=provider, scheduler=settings) as jobs:
        await map_all(jobs, [source], outcomes)
        await map_all(jobs, [source], outcomes, overwrite=True)
    assert provider.calls == 20
    assert outcomes[source.name].report.stored == 20


def test_a_group_that_is_not_open_says_how_to_open_it():
    with pytest.raises(RuntimeError, match=r"with JobGroup\(...\) as jobs"):
        JobGroup(client=ScriptedClient([])).map_rows([{"a": 1}], "{{a}}")


def test_an_unknown_option_is_named():
    with JobGroup(client=ScriptedClient([])) as jobs, pytest.raises(TypeError, match="shema"):
        jobs.map_rows([{"a": 1}], "{{a}}", shema="label: str")


def test_models_may_have_temperatures_of_their_own(tmp_path):
    client = ScriptedClient(label)
    with JobGroup(client=client) as jobs:
        options = {"schema": SCHEMA, "model": ("a", "b", "c"), "temperature": {"a": 0.1, "b": 0.9}}
        jobs.map_rows([{"text": "number 1"}], "Label {{text}}", **options)
        assert {call.model: call.temperature for call in client.calls} == {"a": 0.1, "b": 0.9, "c": None}
        with pytest.raises(SettingsError, match="names 'd', which is none of the models a, b, c"):
            jobs.map_rows([{"text": "number 1"}], "Label", **{**options, "temperature": {"d": 0.1}})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_group_refuses_jobs_in_a_forked_child_and_can_be_left_there():
    with JobGroup(client=ScriptedClient(label), max_concurrent=2) as jobs:
        jobs.map_rows(rows_of(2), "Label {{text}}", schema=SCHEMA)
        child = os.fork()
        if not child:
            signal.alarm(20)
            code = 1
            try:
                with pytest.raises(RuntimeError, match="belongs to the process that was forked"):
                    jobs.map_rows(rows_of(2), "Label {{text}}", schema=SCHEMA)
                jobs.__exit__(None, None, None)
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert jobs.map_rows(rows_of(2), "Label {{text}}", schema=SCHEMA).report.answered == 2


def test_a_group_that_is_left_ends_the_jobs_of_other_threads():
    asked = threading.Event()

    async def slow(call):
        asked.set()
        await anyio.sleep_forever()

    with ThreadPoolExecutor() as threads:
        with JobGroup(client=ScriptedClient(slow)) as jobs:
            job = threads.submit(jobs.map_rows, rows_of(2), "Label {{text}}", schema=SCHEMA)
            assert asked.wait(20)
        with pytest.raises(RuntimeError, match="this group was closed while this was running"):
            job.result(20)


def test_a_job_within_a_loop_over_the_rows_of_another_may_meet_the_budget_of_both():
    options = {"schema": SCHEMA, "rows_per_call": 1}

    def loop():
        with JobGroup(client=ScriptedClient(label), budget=Budget(calls=30), max_concurrent=2) as jobs:
            for _ in jobs.stream_rows(rows_of(400), "Label {{text}}", **options):
                jobs.map_rows(rows_of(20), "Rate {{text}}", **options)

    with pytest.raises(JobStopped, match="budget of 30 calls is used up"):
        loop()


def test_two_jobs_of_one_group_survive_a_kill_in_the_middle(tmp_path):
    sources = tables(tmp_path, 2)
    command = [sys.executable, str(Path(__file__).with_name("group_job.py")), str(tmp_path)]
    with OpenAIServer(lambda request: answer(request.prompt, parity), latency_s=0.05) as server:
        journals = [Path(f"{tmp_path / f'out{n}.csv'}.journal") for n in range(2)]
        with subprocess.Popen([*command, server.base_url]) as process:
            while not all(journal.exists() and journal.stat().st_size > 1_500 for journal in journals):
                assert process.poll() is None
                time.sleep(0.005)
            process.kill()
        before = sum(len(items_in(prompt)) for prompt in server.prompts)
        done = subprocess.run([*command, server.base_url], capture_output=True, text=True, check=True)
        after = sum(len(items_in(prompt)) for prompt in server.prompts)
    asked, resumed = map(int, done.stdout.split())
    assert (asked + resumed, after - before) == (200, asked)
    assert before <= resumed + 2 * 4 * 5
    for number, source in enumerate(sources):
        assert [row["text"] for row in read_csv(tmp_path / f"out{number}.csv")] == [
            row["text"] for row in read_csv(source)
        ]
