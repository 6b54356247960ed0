from __future__ import annotations

import anyio
import pytest
from fake_provider import FakeProvider, call, too_many
from hypothesis import given
from hypothesis import strategies as st

from rlm.scheduler import Scheduler
from rlm.scheduler.rate_limiter import MINUTE, Window
from rlm.settings import SchedulerSettings
from rlm.values import RateLimits, Reply, Usage


@given(
    limit=st.integers(1, 50),
    steps=st.lists(st.tuples(st.floats(0, 40), st.integers(1, 60)), min_size=1, max_size=60),
)
def test_no_minute_ever_holds_more_than_the_limit(limit, steps):
    """Except for a single amount that is larger than the limit itself, which goes out alone."""
    window, now, sent = Window(limit), 0.0, []
    for pause, amount in steps:
        now += pause
        delay = window.delay(amount, now)
        now += delay
        assert window.delay(amount, now) == pytest.approx(0, abs=1e-5)
        window.record(amount, now)
        sent.append((now, amount))
    for end, _ in sent:
        inside = [amount for at, amount in sent if end - MINUTE + 1e-3 < at <= end]
        assert sum(inside) <= limit or len(inside) == 1


def test_a_corrected_amount_makes_room_at_once():
    window = Window(100)
    taken = window.record(100, 0.0)
    assert window.delay(50, 1.0) == 59
    window.correct(taken, 10)
    assert window.delay(50, 1.0) == 0


def test_an_amount_that_is_corrected_after_its_minute_changes_nothing():
    window = Window(100)
    taken = window.record(50, 0.0)
    assert window.delay(100, 61.0) == 0
    window.correct(taken, 5000)
    window.record(60, 61.0)
    assert window.delay(40, 61.0) == 0
    assert window.delay(41, 61.0) == MINUTE


def test_a_refused_request_takes_no_tokens_from_the_minute(virtual_time):
    provider = FakeProvider(faults=((1.0, too_many()),))

    async def main():
        settings = SchedulerSettings(tokens_per_minute=100)
        tree = Scheduler(provider, settings, count_tokens=lambda _: 60).tree(run_id="r")

        async def heal():
            await anyio.sleep(0.05)
            provider.faults = ()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(heal)
            started = anyio.current_time()
            await tree.complete(call("a"))
            return anyio.current_time() - started

    assert anyio.run(main, **virtual_time) < 5


def test_what_remains_by_the_endpoints_own_account_is_respected_until_it_is_full_again():
    window = Window(None)
    window.update(None, 2, 30, 0.0)
    for _ in range(2):
        assert window.delay(1, 0.0) == 0
        window.record(1, 0.0)
    assert window.delay(1, 10.0) == 20
    assert window.delay(1, 31.0) == 0


def test_the_lower_of_what_the_user_set_and_what_the_endpoint_says_holds():
    window = Window(10)
    window.update(500, None, None, 0.0)
    assert window.limit == 10
    window.update(5, None, None, 0.0)
    assert window.limit == 5


async def _times(provider, settings, size, width=50, **changes):
    tree = Scheduler(provider, settings, count_tokens=lambda _: 10).tree(run_id="r")
    await tree.complete_all([call(str(n), **changes) for n in range(size)], max_concurrent=width)
    return [at for at, _ in provider.requests]


def test_calls_wait_for_the_requests_per_minute(virtual_time):
    provider = FakeProvider()

    async def main():
        started = anyio.current_time()
        times = await _times(provider, SchedulerSettings(requests_per_minute=30), 90)
        return [at - started for at in times]

    times = anyio.run(main, **virtual_time)
    for first in range(60):
        assert times[first + 30] - times[first] >= MINUTE - 1e-3
    assert times[-1] <= 2 * MINUTE + 5


def test_calls_wait_for_the_tokens_per_minute_and_are_counted_by_what_they_used(virtual_time):
    provider = FakeProvider(usage=lambda _: Usage(calls=1, input_tokens=10, output_tokens=10))

    async def main():
        started = anyio.current_time()
        settings = SchedulerSettings(tokens_per_minute=1000)
        times = await _times(provider, settings, 100, max_output_tokens=90)
        return [at - started for at in times]

    times = anyio.run(main, **virtual_time)
    assert (
        sum(at < MINUTE for at in times) == 46
    )  # 1000 a minute at 20 each, less the 100 that the last may use
    assert times[-1] < 3 * MINUTE


def test_limits_are_learned_from_replies(virtual_time):
    limits = RateLimits(requests_per_minute=60)
    provider = FakeProvider(answer=lambda _: Reply(text="x", rate_limits=limits))

    async def main():
        times = await _times(provider, SchedulerSettings(max_concurrent=5), 120, width=5)
        return times[-1] - times[0]

    assert MINUTE - 2 < anyio.run(main, **virtual_time) < MINUTE + 20


def test_a_model_that_waits_for_its_rate_holds_up_no_other(virtual_time):
    provider = FakeProvider()

    async def main():
        settings = SchedulerSettings(max_concurrent=2, requests_per_minute=1)
        tree = Scheduler(provider, settings).tree(run_id="r")
        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(tree.complete, call(str(number), model="slow"))
            await anyio.sleep(5)
            with anyio.fail_after(1.5):
                await tree.complete(call("now", model="other"))
            tasks.cancel_scope.cancel()

    anyio.run(main, **virtual_time)


def test_a_cancelled_wait_leaves_the_line_in_order(virtual_time):
    provider = FakeProvider()

    async def main():
        tree = Scheduler(provider, SchedulerSettings(requests_per_minute=1)).tree(run_id="r")
        await tree.complete(call("first"))
        with anyio.move_on_after(10):
            await tree.complete_all([call("a"), call("b")], max_concurrent=2)
        await tree.complete(call("last"))
        return provider.prompts

    assert anyio.run(main, **virtual_time) == ["first", "last"]
