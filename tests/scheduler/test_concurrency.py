from __future__ import annotations

import random

import anyio
import pytest
from fake_provider import FakeProvider, broken, call, too_many

from rlm.scheduler import Scheduler
from rlm.scheduler.concurrency import AdaptiveLimit, ConcurrencyLimit
from rlm.settings import SchedulerSettings


def _observe(width, answered=0, refused=0):
    for outcome in ["answered"] * answered + ["overloaded"] * refused:
        width.observe(outcome, was_full=True)
    return width.limit


def test_an_adaptive_width_doubles_per_round_until_a_window_has_many_refusals():
    width = AdaptiveLimit(first=8)
    assert _observe(width, answered=8) == 16
    assert _observe(width, answered=16) == 32
    assert _observe(width, answered=20, refused=12) == 40  # a capacity of 40 was met, and the start is over
    assert _observe(width, answered=40) == 41


def test_a_careful_width_narrows_by_half_the_share_of_refusals_and_widens_by_one():
    width = AdaptiveLimit(first=8)
    _observe(width, refused=8)
    for _ in range(30):
        _observe(width, answered=width.limit)
    before = width.limit
    assert _observe(width, answered=before - before // 5, refused=before // 5) == pytest.approx(
        before * 0.9 + 1, abs=1
    )


def test_refusals_that_come_whatever_the_width_do_not_narrow_it():
    width = AdaptiveLimit(first=8)
    _observe(width, refused=8)
    for _ in range(200):
        _observe(width, answered=9, refused=1)
    assert width.limit > 8


def test_an_adaptive_width_does_not_grow_on_calls_that_did_not_need_it():
    width = AdaptiveLimit(first=4)
    for _ in range(100):
        width.observe("answered", was_full=False)
    assert width.limit == 4


def test_a_width_stays_between_one_and_the_widest_whatever_happens():
    draw = random.Random(3)
    width = AdaptiveLimit(first=4, highest=50)
    for step in range(5000):
        trouble = 1.0 if step % 1000 < 100 else 0.02
        width.observe("overloaded" if draw.random() < trouble else "answered", was_full=True)
        assert 1 <= width.limit <= 50


def test_failures_that_are_no_overload_leave_the_width_alone():
    width = AdaptiveLimit(first=4)
    for _ in range(100):
        width.observe("other", was_full=True)
    assert width.limit == 4


def test_a_fixed_gate_counts_all_models_together_and_never_adapts(virtual_time):
    async def main():
        gate = ConcurrencyLimit(2)
        await gate.acquire("a", None)
        await gate.acquire("b", None)
        with anyio.move_on_after(1) as waited:
            await gate.acquire("c", None)
        gate.release("a", "overloaded")
        gate.release("b", "overloaded")
        return waited.cancelled_caught, gate.limit("a")

    assert anyio.run(main, **virtual_time) == (True, 2)


def test_models_have_widths_of_their_own(virtual_time):
    async def main():
        gate = ConcurrencyLimit("auto")
        for _ in range(gate.limit("slow")):
            await gate.acquire("slow", None)
        with anyio.fail_after(1):
            await gate.acquire("fast", None)
        for _ in range(gate.limit("slow")):
            gate.release("slow", "overloaded")
        return gate.limit("slow"), gate.limit("fast")

    slow, fast = anyio.run(main, **virtual_time)
    assert slow < fast


async def _batch(tree, size, width):
    calls = [call(str(number)) for number in range(size)]
    started = anyio.current_time()
    replies = await tree.complete_all(calls, max_concurrent=width)
    assert [reply.text for reply in replies] == [f"answer to {number}" for number in range(size)]
    return anyio.current_time() - started


@pytest.mark.parametrize("capacity", [10, 20, 200])
def test_the_gate_finds_what_an_endpoint_takes(virtual_time, capacity):
    """A server with a fixed capacity is used well, and is not hammered."""
    provider = FakeProvider(capacity=capacity)
    size = 20 * capacity

    async def main():
        return await _batch(Scheduler(provider).tree(run_id="r"), size, 400)

    seconds = anyio.run(main, **virtual_time)
    ideal = size / capacity
    assert seconds < 1.9 * ideal
    assert len(provider.requests) < 2 * size + 200


def test_refusals_that_have_nothing_to_do_with_load_do_not_choke_the_gate(virtual_time):
    provider = FakeProvider(faults=((0.1, too_many()), (0.05, broken())))

    async def main():
        return await _batch(Scheduler(provider).tree(run_id="r"), 1000, 50)

    assert anyio.run(main, **virtual_time) < 2 * 1000 / 50


def test_a_small_batch_is_not_stuck_behind_a_large_one(virtual_time):
    provider = FakeProvider()

    async def main():
        tree = Scheduler(provider, SchedulerSettings(max_concurrent=10)).tree(run_id="r")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_batch, tree, 500, 100)
            await anyio.sleep(0.5)
            started = anyio.current_time()
            await tree.complete(call("root"))
            alone = anyio.current_time() - started
            await _batch(tree, 10, 10)
            return alone, anyio.current_time() - started - alone

    alone, batch = anyio.run(main, **virtual_time)
    assert alone <= 2
    assert batch <= 4
