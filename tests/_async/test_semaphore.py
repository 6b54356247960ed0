from __future__ import annotations

import asyncio

import anyio

from rlm._async.semaphore import Line, Place


async def _stand(line, group, order, seconds=1.0):
    await line.enter(group)
    order.append(group)
    try:
        await anyio.sleep(seconds)
    finally:
        line.leave()


def test_groups_take_turns_and_each_keeps_its_order(virtual_time):
    async def main():
        line, order = Line(1), []
        async with anyio.create_task_group() as tasks:
            for group in ["big"] * 6 + ["small"] * 2 + ["late"]:
                tasks.start_soon(_stand, line, group, order)
                await anyio.lowlevel.checkpoint()
        return order

    order = anyio.run(main, **virtual_time)
    assert order == ["big", "big", "small", "late", "big", "small", "big", "big", "big"]


def test_no_more_than_its_size_are_in_and_it_may_be_resized(virtual_time):
    async def main():
        line, order, seen = Line(2), [], []

        async def watch():
            for _ in range(9):
                await anyio.sleep(0.5)
                seen.append(line.inside)

        async with anyio.create_task_group() as tasks:
            for number in range(12):
                tasks.start_soon(_stand, line, number, order)
            tasks.start_soon(watch)
            await anyio.sleep(1.75)
            line.resize(4)
            await anyio.sleep(1)
            line.resize(1)
        assert line.inside == 0
        return seen

    seen = anyio.run(main, **virtual_time)
    assert seen[:3] == [2, 2, 2]
    assert max(seen) == 4
    assert seen[-1] == 1


def test_a_cancelled_task_leaves_the_line_in_order(virtual_time):
    async def main():
        line, order = Line(1), []
        await line.enter("first")
        async with anyio.create_task_group() as tasks:
            with anyio.move_on_after(1):
                await _stand(line, "impatient", order)
            tasks.start_soon(_stand, line, "patient", order)
            await anyio.wait_all_tasks_blocked()
            line.leave()
        assert not line.is_full
        return order

    assert anyio.run(main, **virtual_time) == ["patient"]


def test_a_task_that_is_cancelled_at_the_moment_it_is_admitted_lets_the_next_one_in():
    """With asyncio's own cancellation, which can overtake an event that is already set."""

    async def main():
        line, order = Line(1), []
        await line.enter("first")
        admitted = asyncio.create_task(_stand(line, "admitted", order, 0))
        last = asyncio.create_task(_stand(line, "last", order, 0))
        await anyio.wait_all_tasks_blocked()
        line.leave()
        admitted.cancel()
        await last
        return order, line.inside

    assert anyio.run(main) == (["last"], 0)


def test_a_place_is_held_once_and_given_back_once(virtual_time):
    async def main():
        line = Line(2)
        place = Place(line)
        for _ in range(2):
            await place.take()
        held = line.inside
        for _ in range(2):
            place.give_back()
        return held, line.inside

    assert anyio.run(main, **virtual_time) == (1, 0)
