from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import anyio
import anyio.lowlevel
import pytest
from blockbuster import blockbuster_ctx

from rlm._async.portal import lease


@pytest.fixture
def portal():
    with lease() as portal:
        yield portal


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert [thread for thread in threading.enumerate() if thread.name == "rlm-portal"] == []


async def double(number):
    await anyio.lowlevel.checkpoint()
    return 2 * number


async def thread_name():
    await anyio.lowlevel.checkpoint()
    return threading.current_thread().name


def test_a_blocking_call_gives_the_result(portal):
    assert portal.call(double, 21) == 42


def test_all_leases_share_one_thread(portal):
    with lease() as other:
        assert portal.call(thread_name) == other.call(thread_name) == "rlm-portal"
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("rlm-portal") == 1


def test_a_lease_that_is_never_used_starts_no_thread():
    with lease():
        assert "rlm-portal" not in [thread.name for thread in threading.enumerate()]


def test_the_thread_outlives_every_lease_but_the_last():
    first, second = lease(), lease()
    assert first.call(double, 1) == second.call(double, 1) == 2
    first.close()
    assert second.call(double, 2) == 4
    second.close()
    assert "rlm-portal" not in [thread.name for thread in threading.enumerate()]


def test_closing_twice_gives_back_one_lease():
    first, second = lease(), lease()
    assert first.call(double, 1) == second.call(double, 1)
    first.close()
    first.close()
    assert second.call(double, 2) == 4
    second.close()


def test_a_closed_portal_refuses(portal):
    portal.close()
    with pytest.raises(RuntimeError, match="closed"):
        portal.call(double, 1)
    with pytest.raises(RuntimeError, match="closed"):
        anyio.run(portal.acall, double, 1)


def test_a_new_lease_starts_a_new_thread_after_the_last_was_closed():
    for _ in range(3):
        with lease() as portal:
            assert portal.call(double, 1) == 2


def test_fifty_threads_call_at_once(portal):
    inside, everybody = [], anyio.Event()

    async def meet(number):
        inside.append(number)
        if len(inside) == 50:
            everybody.set()
        await everybody.wait()
        return number

    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(lambda number: portal.call(meet, number), range(50))) == list(range(50))


def test_two_thousand_calls_cost_no_thread_each(portal):
    threads = {portal.call(thread_name) for _ in range(2000)}
    assert threads == {"rlm-portal"}


def test_it_works_inside_a_running_loop_as_in_jupyter(portal):
    async def cell():
        return portal.call(double, 4)

    assert anyio.run(cell) == 8


def test_it_refuses_to_block_its_own_loop(portal):
    async def inner():
        return portal.call(double, 1)

    with pytest.raises(RuntimeError, match="await the async twin"):
        portal.call(inner)


def test_acall_on_its_own_loop_just_awaits(portal):
    async def inner():
        return await portal.acall(double, 3)

    assert portal.call(inner) == 6


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_acall_works_from_any_loop(portal, backend):
    async def main():
        results = {}

        async def one(number):
            results[number] = await portal.acall(double, number)

        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(one, number)
        return results

    assert anyio.run(main, backend=backend) == {number: 2 * number for number in range(100)}


def test_acall_never_blocks_the_loop_it_is_called_on():
    async def main():
        portal = lease()
        with blockbuster_ctx():
            assert await portal.acall(double, 1) == 2
            await portal.acall(anyio.sleep, 0.01)
            with anyio.move_on_after(0.01):
                await portal.acall(anyio.sleep_forever)
            await portal.aclose()

    anyio.run(main)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_cancelling_acall_waits_until_the_function_has_cleaned_up(portal, backend):
    log = []

    async def function(started):
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.02)
                log.append("cleaned up")

    async def main():
        started = threading.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(portal.acall, function, started)
            await anyio.to_thread.run_sync(started.wait)
            tasks.cancel_scope.cancel()
        log.append("returned")

    anyio.run(main, backend=backend)
    assert log == ["cleaned up", "returned"]


def test_a_call_cancelled_before_it_began_does_not_begin(portal):
    begun = []

    async def function():
        begun.append(True)
        await anyio.sleep_forever()
        begun.append("and went on")

    async def main():
        with anyio.CancelScope() as scope:
            scope.cancel()
            await portal.acall(function)
        return scope.cancelled_caught

    assert portal.call(double, 1) == 2
    assert anyio.run(main)
    assert "and went on" not in begun


def test_an_exception_keeps_its_type_and_traceback(portal):
    class MyError(Exception):
        pass

    async def raise_it():
        raise MyError("with words")

    with pytest.raises(MyError, match="with words") as caught:
        portal.call(raise_it)
    assert "raise_it" in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, StopIteration, TimeoutError])
def test_even_a_rude_exception_reaches_its_caller_and_hurts_no_other(portal, kind):
    async def raise_it():
        raise kind

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(portal.call, anyio.sleep, 0.05)
        with pytest.raises((kind, RuntimeError)):
            portal.call(raise_it)
        assert other.result() is None


def test_a_call_that_runs_while_the_last_lease_is_closed_is_told():
    portal = lease()
    started = threading.Event()

    async def function():
        started.set()
        await anyio.sleep_forever()

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(portal.call, function)
        started.wait()
        portal.close()
        with pytest.raises(RuntimeError, match="portal was closed"):
            call.result()


def test_leases_opened_and_closed_from_many_threads_lose_no_call():
    def work(number):
        for _ in range(20):
            with lease() as portal:
                assert portal.call(double, number) == 2 * number
        return number

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == list(range(8))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_context_variables_of_the_caller_are_seen(portal, backend):
    trace = ContextVar("trace", default="none")

    async def read():
        await anyio.lowlevel.checkpoint()
        return trace.get()

    async def main():
        trace.set("span-1")
        return await portal.acall(read)

    assert anyio.run(main, backend=backend) == "span-1"
    assert portal.call(read) == "none"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_gets_a_loop_of_its_own(portal):
    assert portal.call(double, 1) == 2
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if portal.call(double, 5) == 10 and lease().call(double, 6) == 12 else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert portal.call(double, 2) == 4


def run_script(script, **options):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


SLOW = """
import anyio
from rlm._async.portal import lease

async def slow():
    print("started", flush=True)
    try:
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.02)
        print("cleaned up", flush=True)
"""


def test_ctrl_c_cancels_the_call_waits_for_its_end_and_is_raised_again():
    script = SLOW + (
        "portal = lease()\n"
        "try:\n    portal.call(slow)\n"
        "except KeyboardInterrupt:\n    print('interrupted', portal.call(anyio.sleep, 0))\n"
    )
    with run_script(script) as process:
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (out, err, process.returncode) == ("cleaned up\ninterrupted None\n", "", 0)


def test_the_interpreter_ends_cleanly_when_nobody_closed():
    script = SLOW + (
        "import threading\n"
        "portal = lease()\n"
        "portal.call(anyio.sleep, 0)\n"
        "threading.Thread(target=portal.call, args=(slow,), daemon=True).start()\n"
        "portal.call(anyio.sleep, 0.05)\n"
    )
    with run_script(script) as process:
        out, err = process.communicate(timeout=20)
    assert out == "started\ncleaned up\n"
    assert "Event loop" not in err
    assert process.returncode == 0


async def cancel_what_it_awaits():
    task = asyncio.get_running_loop().create_task(asyncio.sleep(60))
    task.cancel()
    return await task


async def raise_a_cancellation():
    raise asyncio.CancelledError


async def cancel_itself():
    asyncio.current_task().cancel()
    await asyncio.sleep(60)


@pytest.mark.parametrize("stray", [cancel_what_it_awaits, raise_a_cancellation, cancel_itself])
def test_a_stray_cancellation_is_an_error_of_its_call_and_hurts_no_other(portal, stray):
    with ThreadPoolExecutor(1) as pool:
        finish = portal.call(_new_event)
        other = pool.submit(portal.call, finish.wait)
        with pytest.raises(RuntimeError, match="the portal did not request") as caught:
            portal.call(stray)
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)
        portal.post(finish.set)
        other.result(timeout=10)
    assert portal.call(double, 1) == 2


async def _new_event():
    await anyio.lowlevel.checkpoint()
    return anyio.Event()


def test_a_loop_that_broke_down_is_replaced_at_the_next_call(portal):
    def break_down():
        raise SystemExit

    assert portal.call(double, 1) == 2
    portal.post(break_down)
    with pytest.raises(RuntimeError, match="closed"):
        portal.call(anyio.sleep_forever)
    assert portal.call(double, 2) == 4


def test_a_stream_collected_on_the_loop_itself_blocks_nobody(portal):
    ended = threading.Event()

    async def produce(put):
        put(1)
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    streams = [portal.iterate(produce)]
    assert next(streams[0]) == 1

    async def collect():
        await anyio.lowlevel.checkpoint()
        streams.clear()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(portal.call, collect).result(timeout=10)
        assert ended.wait(10)


def test_the_last_lease_may_be_closed_on_its_own_loop():
    portal = lease()

    async def close():
        await portal.aclose()
        return "closed"

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(portal.call, close).result(timeout=10) == "closed"
    for thread in threading.enumerate():
        if thread.name == "rlm-portal":
            thread.join(10)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_what_must_finish_does_so_though_the_waiting_is_cancelled(portal, backend):
    log = []

    async def close():
        await anyio.sleep(0.02)
        log.append("closed")

    async def main():
        with anyio.CancelScope() as scope:
            scope.cancel()
            await portal.afinish(close)

    anyio.run(main, backend=backend)
    assert log == ["closed"]


def test_on_the_own_loop_the_waiting_for_what_must_finish_can_be_cancelled(portal):
    ended = threading.Event()

    async def run():
        with anyio.CancelScope() as scope:

            async def close():
                scope.cancel()
                while not left:
                    await anyio.lowlevel.checkpoint()
                ended.set()

            left = []
            await portal.afinish(close)
        left.append(True)
        return scope.cancelled_caught

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(portal.call, run).result(timeout=10)
    assert ended.wait(10)
