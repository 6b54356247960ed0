from __future__ import annotations

import time

import anyio
import anyio.to_thread


def test_an_hour_passes_at_once_but_not_while_a_thread_works(virtual_time):
    async def main():
        seen = []

        async def work():
            await anyio.to_thread.run_sync(time.sleep, 0.05)
            seen.append(anyio.current_time())
            await anyio.sleep(3600)
            seen.append(anyio.current_time())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            await anyio.sleep(10)
            seen.append(anyio.current_time())
        return seen

    started = time.monotonic()
    assert anyio.run(main, **virtual_time) == [0, 10, 3600]
    assert time.monotonic() - started < 60
