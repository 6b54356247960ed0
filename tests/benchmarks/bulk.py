"""What a job over rows costs beside the calls: `python tests/benchmarks/bulk.py [--small]`.

    pipeline     rows at 50 ms a call, 20 rows per call, 50 in flight: wall time over that of the calls alone
    http         the same against a server in another process, and with a tenth of its requests refused at first
    packing      CPU to pack a row, and to read its answer
    resume       a job whose rows all have their answers: seconds until its output is written
    memory       peak memory of a process that maps many rows, less that of one that maps few

Apart from `http`, the model is a function in the same process that sleeps, so the numbers are those of everything but
a network.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from openai_server import OpenAIServer, rate_limited

from rlm.bulk import JobGroup, map_rows
from rlm.structured.packs import Task
from rlm.structured.schema import schema_of
from rlm.values import Reply, Usage

SCHEMA = "label: 'good'|'bad', score: float"
ROWS_PER_CALL = 20
IN_FLIGHT = 50
LATENCY_S = 0.05
VALUE = '{"label": "good", "score": 0.5}'
REPLIES = {
    count: f'{{"results": [{", ".join(f"""{{"id": {n}, "value": {VALUE}}}""" for n in range(1, count + 1))}]}}'
    for count in range(2, ROWS_PER_CALL + 1)
} | {1: VALUE}


class SleepingClient:
    """Answers after a while, and for next to no CPU."""

    def __init__(self, latency_s=LATENCY_S):
        self.latency_s = latency_s
        self.calls = 0

    async def complete(self, call):
        self.calls += 1
        if self.latency_s:
            await anyio.sleep(self.latency_s)
        count = call.messages[0].content.count('\n{"id": ')
        usage = Usage(calls=1, input_tokens=1_000, output_tokens=300)
        return Reply(text=REPLIES[max(count, 1)], model=call.model, usage=usage)


def write_rows(path, number):
    with path.open("w", encoding="utf-8") as file:
        file.write("n,text\n")
        file.writelines(f"{n},this is the text of row number {n} of this table\n" for n in range(number))


def job(source, output, client, **options):
    started = time.perf_counter()
    report = map_rows(
        source,
        "Label {{text}}",
        schema=SCHEMA,
        output=output,
        model="a-model",
        rows_per_call=ROWS_PER_CALL,
        max_concurrent=IN_FLIGHT,
        client=client,
        **options,
    ).report
    return time.perf_counter() - started, report


def pipeline(folder, number):
    source = folder / "in.csv"
    write_rows(source, number)
    job(source, folder / "warm.csv", SleepingClient(0), limit=100)
    return best_ratio(
        "pipeline", number, lambda turn: job(source, folder / f"out{turn}.csv", SleepingClient())
    )


def over_http(folder, number, *, faulty=False):
    """With one client for all turns, as a process that does several jobs has it: its connections are warm."""
    source, name = folder / "in.csv", "faulty" if faulty else "http"
    write_rows(source, number)
    command = [sys.executable, __file__, "--serve", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        base_url = server.stdout.readline().strip()
        try:
            with JobGroup(base_url=base_url, max_concurrent=IN_FLIGHT) as jobs:
                options = {"schema": SCHEMA, "model": "a-model", "rows_per_call": ROWS_PER_CALL}

                def one(turn):
                    output = folder / f"{name}{turn}.csv"
                    started = time.perf_counter()
                    report = jobs.map_rows(source, "Label {{text}}", output=output, **options).report
                    return time.perf_counter() - started, report

                one("warm")
                return best_ratio(name, number, one)
        finally:
            server.kill()


def best_ratio(name, number, one):
    ideal = -(-number // ROWS_PER_CALL // IN_FLIGHT) * LATENCY_S
    seconds = []
    for turn in range(5):
        started = time.process_time()
        taken, report = one(turn)
        assert report.answered == number
        seconds.append((taken, time.process_time() - started))
    best, cpu = min(seconds)
    print(
        f"{name:<10} {number:,} rows: {best:.3f} s, of which {cpu:.3f} s CPU, ideal {ideal:.3f} s, "
        f"ratio {best / ideal:.2f}"
    )
    return best / ideal


def serve(faulty):
    """In a process of its own: answer after a while, and refuse every tenth request where asked."""

    def respond(request):
        if faulty and request.number % 10 == 3:
            return rate_limited(retry_after=0.05)
        return REPLIES[max(request.prompt.count('\n{"id": '), 1)]

    with OpenAIServer(respond, latency_s=LATENCY_S, models=["a-model"]) as server:
        print(server.base_url, flush=True)
        threading.Event().wait()


def packing(number):
    task = Task("Label it.", schema_of(SCHEMA))
    contents = [{"text": f"this is the text of row number {n} of this table"} for n in range(ROWS_PER_CALL)]
    started = time.process_time()
    for _ in range(number):
        task.prompt(contents)
    packed = time.process_time() - started
    started = time.process_time()
    for _ in range(number):
        task.read(REPLIES[ROWS_PER_CALL], ROWS_PER_CALL)
    read = time.process_time() - started
    rows = number * ROWS_PER_CALL
    print(
        f"packing    {packed / rows * 1e6:.2f} µs to pack a row, {read / rows * 1e6:.2f} µs to read its answer"
    )


def resume(folder, number):
    source, output = folder / "resumed.csv", folder / "resumed-out.csv"
    write_rows(source, number)
    job(source, output, SleepingClient(0))
    client = SleepingClient()
    seconds, report = job(source, output, client, resume=True)
    assert (report.resumed, client.calls) == (number, 0)
    print(f"resume     {number:,} rows with their answers: {seconds:.2f} s")
    return seconds


def memory(folder, number):
    few, many = (peak_of(folder, rows) for rows in (1_000, number))
    print(f"memory     {many:.0f} MB for {number:,} rows, {few:.0f} MB for 1,000: {many - few:.0f} MB more")
    return many


def peak_of(folder, number):
    command = [sys.executable, __file__, "--peak", str(folder / f"peak-{number}"), str(number)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(folder, number):
    """In a process of its own: map so many rows, and print the most memory it ever had, in MB."""
    import resource

    folder.mkdir()
    write_rows(folder / "in.csv", number)
    job(folder / "in.csv", folder / "out.csv", SleepingClient(0))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak / (1024 * 1024 if sys.platform == "darwin" else 1024))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="less of everything, in a few seconds")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON at the end")
    parser.add_argument("--peak", nargs=2, metavar=("FOLDER", "ROWS"), help=argparse.SUPPRESS)
    parser.add_argument("--serve", choices=["http", "faulty"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve == "faulty")
        return
    if options.peak:
        print_peak(Path(options.peak[0]), int(options.peak[1]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ratio = pipeline(folder, 2_000 if options.small else 10_000)
        http_ratio = over_http(folder, 2_000 if options.small else 10_000)
        faulty_ratio = over_http(folder, 2_000 if options.small else 10_000, faulty=True)
        packing(100 if options.small else 2_000)
        seconds = resume(folder, 5_000 if options.small else 100_000)
        peak = memory(folder, 10_000 if options.small else 1_000_000)
    if options.json:
        print(
            json.dumps(
                {
                    "pipeline_ratio": ratio,
                    "http_ratio": http_ratio,
                    "faulty_http_ratio": faulty_ratio,
                    "resume_s": seconds,
                    "peak_mb": peak,
                }
            )
        )


if __name__ == "__main__":
    main()
