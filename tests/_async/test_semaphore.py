from __future__ import annotations

import asyncio

import anyio

from rlm._async.semaphore import FairSemaphore, Permit


async def _stand(semaphore, group, order, seconds=1.0):
    await semaphore.acquire(group)
    order.append(group)
    try:
        await anyio.sleep(seconds)
    finally:
        semaphore.release()


def test_groups_take_turns_and_each_keeps_its_order(virtual_time):
    async def main():
        semaphore, order = FairSemaphore(1), []
        async with anyio.create_task_group() as tasks:
            for group in ["big"] * 6 + ["small"] * 2 + ["late"]:
                tasks.start_soon(_stand, semaphore, group, order)
                await anyio.lowlevel.checkpoint()
        return order

    order = anyio.run(main, **virtual_time)
    assert order == ["big", "big", "small", "late", "big", "small", "big", "big", "big"]


def test_no_more_than_its_size_are_in_and_it_may_be_resized(virtual_time):
    async def main():
        semaphore, order, seen = FairSemaphore(2), [], []

        async def watch():
            for _ in range(9):
                await anyio.sleep(0.5)
                seen.append(semaphore.in_use)

        async with anyio.create_task_group() as tasks:
            for number in range(12):
                tasks.start_soon(_stand, semaphore, number, order)
            tasks.start_soon(watch)
            await anyio.sleep(1.75)
            semaphore.resize(4)
            await anyio.sleep(1)
            semaphore.resize(1)
        assert semaphore.in_use == 0
        return seen

    seen = anyio.run(main, **virtual_time)
    assert seen[:3] == [2, 2, 2]
    assert max(seen) == 4
    assert seen[-1] == 1


def test_a_cancelled_task_leaves_the_line_in_order(virtual_time):
    async def main():
        semaphore, order = FairSemaphore(1), []
        await semaphore.acquire("first")
        async with anyio.create_task_group() as tasks:
            with anyio.move_on_after(1):
                await _stand(semaphore, "impatient", order)
            tasks.start_soon(_stand, semaphore, "patient", order)
            await anyio.wait_all_tasks_blocked()
            semaphore.release()
        assert not semaphore.is_full
        return order

    assert anyio.run(main, **virtual_time) == ["patient"]


def test_a_task_that_is_cancelled_at_the_moment_it_is_admitted_lets_the_next_one_in():
    """With asyncio's own cancellation, which can overtake an event that is already set."""

    async def main():
        semaphore, order = FairSemaphore(1), []
        await semaphore.acquire("first")
        admitted = asyncio.create_task(_stand(semaphore, "admitted", order, 0))
        last = asyncio.create_task(_stand(semaphore, "last", order, 0))
        await anyio.wait_all_tasks_blocked()
        semaphore.release()
        admitted.cancel()
        await last
        return order, semaphore.in_use

    assert anyio.run(main) == (["last"], 0)


def test_a_place_is_held_once_and_given_back_once(virtual_time):
    async def main():
        semaphore = FairSemaphore(2)
        permit = Permit(semaphore)
        for _ in range(2):
            await permit.acquire()
        held = semaphore.in_use
        for _ in range(2):
            permit.release()
        return held, semaphore.in_use

    assert anyio.run(main, **virtual_time) == (1, 0)
