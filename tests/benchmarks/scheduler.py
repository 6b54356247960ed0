"""What the scheduler itself costs, against a client in this process.

    python tests/benchmarks/scheduler.py          # all of it, about 30 seconds
    python tests/benchmarks/scheduler.py --small  # a tenth of it

Times are given as ratios to the ideal (calls x latency / in flight), costs in CPU time, so that a busy machine does not
change what they say.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from fake_provider import FakeProvider, broken, call, dropped, price, too_many

from rlm.scheduler import Budget, Scheduler
from rlm.settings import SchedulerSettings
from rlm.values import Reply, Usage

ANSWER = Reply(text="yes", usage=Usage(calls=1, input_tokens=10, output_tokens=1))


class Sleeper:
    """Answers after a while and does nothing else."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def complete(self, call):
        if self.seconds:
            await anyio.sleep(self.seconds)
        return ANSWER


async def batch_seconds(client, size, width, **settings):
    """Wall time of one batch."""
    tree = Scheduler(client, SchedulerSettings(**settings)).tree(run_id="benchmark")
    calls = [call(str(number)) for number in range(size)]
    started = time.perf_counter()
    replies = await tree.complete_all(calls, max_concurrent=width)
    seconds = time.perf_counter() - started
    assert all(isinstance(reply, Reply) for reply in replies), "an answer was lost"
    return seconds


async def cpu_per_call(size, budget=None, **settings):
    """CPU milliseconds per call through an endpoint that answers at once, at 100 in flight."""
    scheduler = Scheduler(Sleeper(0), SchedulerSettings(**settings), price=price)
    tree = scheduler.tree(run_id="benchmark", budget=budget)
    calls = [call(str(number)) for number in range(size)]
    started = time.process_time()
    await tree.complete_all(calls, max_concurrent=100)
    cpu = time.process_time() - started
    await scheduler.aclose()
    return cpu / size * 1000


async def most_bytes_per_call(size):
    """The most memory a batch takes beyond its calls and its answers, in bytes per call."""
    tree = Scheduler(Sleeper(0.001)).tree(run_id="benchmark")
    calls = [call(str(number)) for number in range(size)]
    gc.collect()
    tracemalloc.start()
    replies = await tree.complete_all(calls, max_concurrent=100)
    gc.collect()
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(replies) == size
    return peak - kept, kept


async def main(scale):
    """Print the table."""
    size = 1000 // scale
    ideal = size * 0.2 / 100
    for name, settings in (("fixed at 100", {"max_concurrent": 100}), ("adaptive", {})):
        seconds = await batch_seconds(Sleeper(0.2), size, 100, **settings)
        print(f"{size:,} calls of 200 ms, 100 in flight, gate {name}: {seconds / ideal:.3f} x ideal")

    faults = ((0.10, too_many(0.05)), (0.05, broken()), (0.02, dropped))
    without = await batch_seconds(FakeProvider(seconds=1.0), 500 // scale, 50)
    faulty = await batch_seconds(FakeProvider(seconds=1.0, faults=faults), 500 // scale, 50)
    print(
        f"{500 // scale} calls of 1 s with 17 % faults, 50 in flight: {faulty / without:.2f} x without faults"
    )

    for number in (1000 // scale, 10_000 // scale):
        extra, kept = await most_bytes_per_call(number)
        print(
            f"batch of {number:,}: {extra / 1024:,.0f} KiB beyond its answers, "
            f"which take {kept / number:,.0f} bytes each"
        )

    with tempfile.TemporaryDirectory() as folder:
        stored = {"cache": "on", "cache_folder": folder}
        for name, budget, settings in (
            ("bare", None, {}),
            ("with a budget", Budget(dollars=1000), {}),
            ("with rates", None, {"requests_per_minute": 1e9, "tokens_per_minute": 1e9}),
            ("cache, all missed", None, stored),
            ("cache, all found", None, stored),
        ):
            cpu = await cpu_per_call(10_000 // scale, budget, **settings)
            print(f"CPU per call, {name}: {cpu:.3f} ms")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--small", action="store_true", help="a tenth of it")
    anyio.run(main, 10 if arguments.parse_args().small else 1)
