from __future__ import annotations

import asyncio

import anyio
import anyio.lowlevel
import pytest
from blockbuster import blockbuster_ctx
from fake_provider import FakeProvider, broken, call, dropped, price, too_many

from rlm.clients.base import Client
from rlm.errors import BadReply, BadRequest, ConnectionFailed, RateLimited, ServerError, SettingsError
from rlm.events import BatchFinished, BatchStarted, CallFailed, CallFinished, CallRetried, CallStarted
from rlm.scheduler import Budget, Scheduler
from rlm.settings import SchedulerSettings
from rlm.testing.scripted import ScriptedClient
from rlm.values import Reply, Usage

BACKENDS = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])


@pytest.mark.parametrize("max_concurrent", [50, "auto"])
@pytest.mark.parametrize("retry_after", [None, 0.1])
def test_faults_cost_no_answer_and_little_time(virtual_time, max_concurrent, retry_after):
    """10 % 429, 5 % 500 and 2 % dropped connections over 500 calls of a second at 50 in flight."""
    faults = ((0.10, too_many(retry_after)), (0.05, broken()), (0.02, dropped))
    provider = FakeProvider(faults=faults)
    events = []

    async def main():
        scheduler = Scheduler(provider, SchedulerSettings(max_concurrent=max_concurrent), price=price)
        tree = scheduler.tree(run_id="r", emit=events.append)
        started = anyio.current_time()
        replies = await tree.complete_all([call(str(n)) for n in range(500)], max_concurrent=50)
        return replies, anyio.current_time() - started, tree.ledger

    replies, seconds, ledger = anyio.run(main, **virtual_time)
    assert [reply.text for reply in replies] == [f"answer to {n}" for n in range(500)]
    assert set(provider.answered.values()) == {1}
    assert len(provider.requests) == 500 + sum(provider.failures.values())
    assert provider.most_in_flight <= 50
    assert seconds <= 1.5 * 500 / 50
    assert ledger.usage == sum((reply.usage for reply in replies), Usage())
    retries = [event for event in events if isinstance(event, CallRetried)]
    assert len(retries) == sum(provider.failures.values())
    if retry_after is not None:
        assert all(event.wait_s >= 0.1 for event in retries if event.error == "slow down")


def test_the_ledger_agrees_with_the_providers_own_count(virtual_time):
    """With children, retries, batches, equal prompts, and failures that were billed."""

    def billed_garbage():
        return BadReply("garbage", usage=Usage(calls=1, input_tokens=7, output_tokens=3))

    faults = ((0.1, too_many()), (0.1, broken()), (0.1, billed_garbage))
    provider = FakeProvider(
        faults=faults,
        usage=lambda call: Usage(
            calls=1, input_tokens=len(call.messages[0].content), output_tokens=5, cached_tokens=1
        ),
    )

    async def main():
        tree = Scheduler(provider, price=price).tree(run_id="r")

        async def child(depth):
            await tree.complete(call(f"root of {depth}", depth=depth, role="root"))
            calls = [call(f"{depth} {n % 30}", depth=depth, model=f"m{n % 3}") for n in range(60)]
            await tree.complete_all(calls, max_concurrent=8)
            if depth < 3:
                async with anyio.create_task_group() as tasks:
                    for _ in range(2):
                        tasks.start_soon(child, depth + 1)

        await child(0)
        return tree.ledger

    ledger = anyio.run(main, **virtual_time)
    assert provider.failures["BadReply"] > 0
    assert ledger.usage == provider.billed
    assert ledger.cost_usd == pytest.approx(provider.billed_usd)
    for parts in (ledger.by_model, ledger.by_depth):
        assert sum((spent.usage for spent in parts.values()), Usage()) == provider.billed


def test_the_events_of_a_tree_tell_of_every_call_from_beginning_to_end(virtual_time):
    events = []
    provider = FakeProvider(faults=((0.2, too_many()),))

    async def main():
        tree = Scheduler(provider).tree(run_id="root", emit=events.append)
        await tree.complete(call("a", role="root"))
        calls = [call(str(n), run_id="child", depth=1) for n in range(20)]
        await tree.complete_all(calls, max_concurrent=5)
        with anyio.move_on_after(0.5):
            await tree.complete(call("never"))

    anyio.run(main, **virtual_time)
    started = [event for event in events if isinstance(event, CallStarted)]
    assert [event.call for event in started] == list(range(1, 23))
    assert [event.run_id for event in started] == ["root", *["child"] * 20, "root"]
    assert [event.batch for event in started] == [None, *[1] * 20, None]
    assert (started[0].role, started[0].messages[0].content) == ("root", "a")
    ends = {event.call for event in events if isinstance(event, (CallFinished, CallFailed))}
    assert ends == set(range(1, 23))
    assert [event.kind for event in events if isinstance(event, CallFailed)] == ["Cancelled"]
    batch = [event for event in events if isinstance(event, (BatchStarted, BatchFinished))]
    assert (batch[0].size, batch[0].run_id, batch[0].depth, batch[1].failed) == (20, "child", 1, 0)


@pytest.mark.anyio
@BACKENDS
async def test_everything_at_once_works_on_both_event_loops(tmp_path):
    provider = FakeProvider(seconds=0.001, faults=((0.1, too_many()), (0.05, broken())))
    settings = SchedulerSettings(
        max_concurrent=20,
        cache="on",
        cache_folder=str(tmp_path),
        requests_per_minute=100_000,
        tokens_per_minute=10_000_000,
        first_backoff_s=0.001,
    )
    scheduler = Scheduler(provider, settings, price=price)
    tree = scheduler.tree(run_id="r", budget=Budget(dollars=100, tokens=10_000_000, calls=1000, seconds=100))
    assert isinstance(tree, Client)
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(lambda: tree.complete_all([call(str(n)) for n in range(50)], max_concurrent=10))
    replies = await tree.complete_all([call(str(n)) for n in range(50)], max_concurrent=50)
    assert all(reply.stored for reply in replies)
    await scheduler.aclose()
    assert provider.closed


@pytest.mark.anyio
async def test_nothing_blocks_the_event_loop(tmp_path):
    settings = SchedulerSettings(cache="on", cache_folder=str(tmp_path / "new"), requests_per_minute=1e6)
    with blockbuster_ctx():
        scheduler = Scheduler(FakeProvider(seconds=0), settings, price=price)
        tree = scheduler.tree(run_id="r", budget=Budget(dollars=1))
        await tree.complete_all([call(str(n)) for n in range(20)], max_concurrent=5)
        await scheduler.aclose()


@pytest.mark.anyio
@BACKENDS
async def test_a_client_that_never_waits_does_not_starve_the_loop():
    class Hasty:
        async def complete(self, call):
            return Reply(text="x")

    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await anyio.lowlevel.checkpoint()
            ticks += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tick)
        await (
            Scheduler(Hasty())
            .tree(run_id="r")
            .complete_all([call(str(n)) for n in range(200)], max_concurrent=4)
        )
        tasks.cancel_scope.cancel()
    assert ticks > 20


def test_trees_share_the_gate_and_nothing_else(virtual_time):
    provider = FakeProvider()

    async def main():
        scheduler = Scheduler(provider, SchedulerSettings(max_concurrent=3))
        trees = [scheduler.tree(run_id=str(n)) for n in range(4)]
        async with anyio.create_task_group() as tasks:
            for tree in trees:
                tasks.start_soon(
                    lambda tree=tree: tree.complete_all([call(str(n)) for n in range(9)], max_concurrent=9)
                )
        return [tree.ledger.usage.calls for tree in trees]

    assert anyio.run(main, **virtual_time) == [9] * 4
    assert provider.most_in_flight == 3


def test_levels_of_recursion_cannot_lock_each_other_out(virtual_time):
    """Ten runs that each wait for ten children, through a gate of one."""
    provider = FakeProvider()

    async def main():
        tree = Scheduler(provider, SchedulerSettings(max_concurrent=1)).tree(run_id="r")

        async def run(depth):
            await tree.complete(call(f"before {depth}", depth=depth))
            if depth < 2:
                async with anyio.create_task_group() as tasks:
                    for _ in range(10):
                        tasks.start_soon(run, depth + 1)
            await tree.complete(call(f"after {depth}", depth=depth))

        await run(0)
        return {depth: spent.usage.calls for depth, spent in tree.ledger.by_depth.items()}

    assert anyio.run(main, **virtual_time) == {0: 2, 1: 20, 2: 200}


def test_a_scheduler_may_be_made_outside_of_any_loop(virtual_time, tmp_path):
    settings = SchedulerSettings(cache="on", cache_folder=str(tmp_path), requests_per_minute=10)
    tree = Scheduler(FakeProvider(seconds=0), settings).tree(
        run_id="r", budget=Budget(tokens=100_000, seconds=5)
    )

    async def main():
        return await tree.complete(call("a"))

    assert anyio.run(main).text == "answer to a"


@pytest.mark.parametrize("size", [0, 1, 2, 2000])
def test_a_batch_of_any_size_and_width(virtual_time, size):
    async def main():
        tree = Scheduler(FakeProvider()).tree(run_id="r")
        replies = await tree.complete_all([call(str(n)) for n in range(size)], max_concurrent=5000)
        assert [reply.text for reply in replies] == [f"answer to {n}" for n in range(size)]

    anyio.run(main, **virtual_time)


def test_a_width_below_one_is_refused(virtual_time):
    async def main():
        with pytest.raises(SettingsError, match="max_concurrent=0"):
            await Scheduler(FakeProvider()).tree(run_id="r").complete_all([call()], max_concurrent=0)

    anyio.run(main, **virtual_time)


def test_an_error_that_is_raised_is_the_last_attempts_own(virtual_time):
    last = RateLimited("the very last", retry_after=10_000)
    errors = [ServerError("first", status=500), last]

    class Provider(FakeProvider):
        def _fault(self):
            return errors.pop(0)

    async def main():
        with pytest.raises(RateLimited) as caught:
            await Scheduler(Provider()).tree(run_id="r").complete(call())
        return caught.value

    assert anyio.run(main, **virtual_time) is last


def test_a_batch_cancelled_in_the_middle_leaves_a_scheduler_that_works(virtual_time):
    """Whatever a call was waiting for when it was cancelled."""
    provider = FakeProvider(seconds=1, faults=((0.3, too_many()), (0.3, broken())))
    settings = SchedulerSettings(max_concurrent=3, requests_per_minute=100, tokens_per_minute=100_000)

    async def main():
        scheduler = Scheduler(provider, settings, price=price)
        for number in range(30):
            tree = scheduler.tree(run_id=str(number), budget=Budget(tokens=100_000))
            with anyio.move_on_after(0.37 * number):
                await tree.complete_all(
                    [call(str(n), max_output_tokens=500) for n in range(50)], max_concurrent=20
                )
            assert provider.in_flight == 0
        provider.faults = ()
        replies = await tree.complete_all(
            [call(str(n), max_output_tokens=5) for n in range(10)], max_concurrent=10
        )
        assert all(isinstance(reply, Reply) for reply in replies)

    anyio.run(main, **virtual_time)
    assert provider.most_in_flight == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_concurrent", 0),
        ("max_concurrent", 2.5),
        ("max_concurrent", "many"),
        ("call_timeout_s", None),
        ("requests_per_minute", 0),
        ("tokens_per_minute", "x"),
        ("max_attempts", 0),
        ("retry_patience_s", -1),
        ("cache", "yes"),
        ("cache_bytes", 0),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(name, value):
    with pytest.raises(SettingsError, match=f"^{name}="):
        SchedulerSettings(**{name: value})


def test_whoever_counts_tokens_is_told_what_the_endpoint_counted(virtual_time):
    seen = []

    async def main():
        scheduler = Scheduler(FakeProvider(), observe=lambda call, usage: seen.append((call, usage)))
        await scheduler.tree(run_id="r").complete(call("a"))

    anyio.run(main, **virtual_time)
    assert seen == [(call("a", run_id="r"), Usage(calls=1, input_tokens=10, output_tokens=2))]


def test_a_bad_request_is_asked_once(virtual_time):
    provider = FakeProvider(faults=((1.0, lambda: BadRequest("no")),))

    async def main():
        with pytest.raises(BadRequest):
            await Scheduler(provider).tree(run_id="r").complete(call())

    anyio.run(main, **virtual_time)
    assert len(provider.requests) == 1


@pytest.mark.anyio
async def test_a_client_that_cancels_itself_fails_its_call_and_nothing_else():
    async def answer(asked):
        if asked.messages[-1].content == "bad":
            raise asyncio.CancelledError
        return "ok"

    tree = Scheduler(ScriptedClient(answer), SchedulerSettings(max_attempts=1)).tree(run_id="r")
    calls = [call("a"), call("bad"), call("c")]
    first, failed, last = await tree.complete_all(calls, max_concurrent=2)
    assert (first.text, last.text) == ("ok", "ok")
    assert isinstance(failed, ConnectionFailed)
