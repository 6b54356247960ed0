# ruff: noqa: PTH208 - /proc as the kernel shows it
"""What a guest costs: start, cells, transfer, memory, recovery.

    python tests/benchmarks/sandbox.py            # contexts of 1 MB and 100 MB
    python tests/benchmarks/sandbox.py --small    # 1 MB and 10 MB, a few seconds
    python tests/benchmarks/sandbox.py --large    # and 1 GB

Each figure is the best of several runs and the median, in milliseconds, next to what it aims at.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import anyio

from rlm.sandbox.launchers import local
from rlm.sandbox.session import open_session
from rlm.sandbox.shared_contexts import ContextRef
from rlm.settings import SandboxSettings

MB = 1_000_000
SETTINGS = SandboxSettings(cell_timeout_s=20)


async def nobody(call):
    raise AssertionError(call)


async def timed(work, *arguments):
    began = time.perf_counter()
    result = await work(*arguments)
    return result, (time.perf_counter() - began) * 1000


def row(what, figures, aim=""):
    print(f"{what:<52}{min(figures):>9.1f}{statistics.median(figures):>9.1f}  {aim}")


async def starts(times):
    for tier in ("process", "confined", "isolated"):
        settings = SandboxSettings(highest_tier=tier)
        opened, closed = [], []
        for _ in range(times):
            session, spent = await timed(lambda settings=settings: open_session(settings))
            opened.append(spent)
            closed.append((await timed(session.aclose))[1])
            assert session.isolation.tier == tier, session.isolation
        row(f"guest ready, cold, {tier}", opened, "aim 100")
        row(f"guest closed, {tier}", closed)


def private_and_shared(pid):
    """The memory of the whole guest, each shared page counted once among those that share it (PSS), in bytes."""
    total = 0
    for process in (pid, *descendants(pid)):
        with contextlib.suppress(ProcessLookupError):  # one that has ended has no memory
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def descendants(pid):
    found = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split():
            found += [int(child), *descendants(child)]
    return found


async def cells(size, times, aim):
    text = "the quick brown fox jumps over the lazy dog, as foxes do on days like this one.\n" * (size // 80)
    name = f"{len(text) / MB:,.0f} MB"
    session = await open_session(SETTINGS)
    _, loaded = await timed(session.load, text)
    _, used = await timed(lambda: session.run("len(context)", serve=nobody))
    row(f"{name} of text loaded and used", [loaded + used], "aim 500 at 100 MB")
    spent = [(await timed(lambda: session.run("x = 1", serve=nobody)))[1] for _ in range(times)]
    row(f"a trivial cell with its snapshot, {name}", spent, aim)
    recovered = []
    for _ in range(max(3, times // 10)):
        await session.run("import os; os._exit(1)", serve=nobody)
        result, milliseconds = await timed(lambda: session.run("x", serve=nobody))
        assert (result.state, result.stdout) == ("kept", "1\n"), result
        recovered.append(milliseconds)
    row(f"the cell after one that died, {name}", recovered, "aim 50 after the kill")
    if sys.platform == "linux":
        memory = private_and_shared(session._guest._process.pid)
        print(
            f"{f'memory of the guest, {name}':<52}{memory / MB:>9.0f} MB       aim {1.2 * len(text) / MB + 60:,.0f} MB"
        )
    await session.aclose()


async def child_contexts(size, times):
    """From rlm_query to the end of the child's first cell, its context from the shelf and through the host."""
    text = "the quick brown fox jumps over the lazy dog, as foxes do on days like this one.\n" * (size // 80)
    best = {}
    for way, launcher in (
        ("from the shelf", None),
        ("through the host", dataclasses.replace(local(), keeps_descriptors=False)),
    ):
        parent = await open_session(SETTINGS, launcher=launcher)
        await parent.load(text)

        ready, asked = [], []

        async def serve(call, launcher=launcher, ready=ready, asked=asked):
            context = call.arguments["context"]
            piece = context if isinstance(context, ContextRef) else None
            child = await open_session(SETTINGS, launcher=launcher, parent_context=piece)
            await child.load(context)
            result = await child.run("len(context)", serve=nobody)
            assert int(result.stdout) == len(text) - 1, result
            ready.append((time.perf_counter() - asked[-1]) * 1000)
            await child.aclose()
            return ""

        for _ in range(times):
            asked.append(time.perf_counter())
            result = await parent.run("rlm_query('q', context[1:])", serve=serve, context_refs=True)
            assert result.outcome == "ok", result
        await parent.aclose()
        row(f"child context {len(text) / MB:,.0f} MB, {way}", ready)
        best[way] = min(ready)
    print(
        f"{'  through the host, as often as long':<52}{best['through the host'] / best['from the shelf']:>9.1f}"
    )


async def leaks(times):
    def traces():
        gc.collect()
        children = list(descendants(os.getpid())) if sys.platform == "linux" else []
        return len(os.listdir("/proc/self/fd")), threading.active_count(), len(children)

    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        await (await open_session(SETTINGS)).aclose()
        before = traces()
        began = time.perf_counter()
        for _ in range(times):
            session = await open_session(SETTINGS)
            await session.run("1", serve=nobody)
            await session.aclose()
        each = (time.perf_counter() - began) * 1000 / times
        await anyio.sleep(0.1)
        left = [after - was for after, was in zip(traces(), before, strict=True)]
        folders = len(os.listdir(folder))
        tempfile.tempdir = None
    print(f"{f'{times} sessions, one cell each, per session':<52}{each:>9.1f}")
    print(f"  left behind: {left[2]} processes, {left[0]} descriptors, {left[1]} threads, {folders} folders")
    assert (*left, folders) == (0, 0, 0, 0)


async def main(small, large):
    print(f"{'milliseconds':<52}{'best':>9}{'median':>9}")
    await starts(3 if small else 10)
    await cells(1 * MB, 10 if small else 50, "")
    await cells(10 * MB if small else 100 * MB, 10 if small else 50, "aim 5 at 100 MB")
    await child_contexts(10 * MB, 3 if small else 10)
    await child_contexts(100 * MB, 2 if small else 5)
    if large:
        await cells(1000 * MB, 20, "aim 15 at 1 GB")
    await leaks(5 if small else 100)


if __name__ == "__main__":
    anyio.run(main, "--small" in sys.argv, "--large" in sys.argv)
