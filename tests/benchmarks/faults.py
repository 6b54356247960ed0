"""What faults cost: the same batch against a real HTTP server, with and without them, and ten children of ten calls.

    python tests/benchmarks/faults.py [--small]

Ratios within one run; absolute times depend on the machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from openai_server import OpenAIServer, dropped, failed, rate_limited, reply

from rlm import RLM_REPL, ScriptedClient, Sub_RLM

LATENCY_S = 0.2


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="a fifth of the calls")
    calls = 100 if parser.parse_args().small else 500

    without, _ = batch(calls, at_once=50, faulty=False)
    with_faults, requests = batch(calls, at_once=50, faulty=True)
    print(f"{calls} calls of {LATENCY_S} s at 50 in flight, over HTTP")
    print(
        f"  fault-free                                  {without:6.2f} s  {without / (calls / 50 * LATENCY_S):5.2f} x ideal"
    )
    print(
        f"  10 % 429, 5 % 500, 2 % dropped connections  {with_faults:6.2f} s  {with_faults / without:5.2f} x fault-free"
    )
    print(f"  requests: {requests}, of which {requests - calls} were asked again")

    seconds, ideal = children(1.0)
    print(f"ten child runs with ten calls each: {seconds:.2f} s, {seconds / ideal:.2f} x ideal")


def fault(number):
    if number % 10 == 3:
        return rate_limited(retry_after=0.05)
    if number % 20 == 7:
        return failed(500)
    if number % 50 == 11:
        return dropped("headers")
    return None


def batch(calls: int, *, at_once: int, faulty: bool) -> tuple[float, int]:
    def answer(request):
        return (fault(request.number) if faulty else None) or reply(
            request.prompt.upper(), latency_s=LATENCY_S
        )

    with OpenAIServer(answer) as server:
        model = Sub_RLM("small", base_url=server.base_url, api_key="sk-test")
        model.batch_completion(["warm up"])
        warmed_up = server.requests
        prompts = [f"prompt {number}" for number in range(calls)]
        started = time.perf_counter()
        answers = model.batch_completion(prompts, max_concurrent=at_once)
        seconds = time.perf_counter() - started
        model.close()
    assert answers == [prompt.upper() for prompt in prompts], "an answer was lost"
    return seconds, server.requests - warmed_up


def children(latency_s: float) -> tuple[float, float]:
    """A root turn, a turn of each child, and the calls of each child: three latencies in a row at best."""

    def root(call):
        if call.depth == 0:
            return "```repl\nFINAL(rlm_batch([(str(n), str(n)) for n in range(10)], max_concurrent=10))\n```"
        return "```repl\nFINAL(llm_batch([context + str(n) for n in range(10)]))\n```"

    client = ScriptedClient(root=root, sub=lambda call: call.messages[-1].content, latency_s=latency_s)
    with RLM_REPL(client=client, max_depth=2) as rlm:
        rlm.completion("x", "warm up")
        started = time.perf_counter()
        answer = rlm.completion("x", "a question")
        seconds = time.perf_counter() - started
    assert answer.value == [[f"{n}{m}" for m in range(10)] for n in range(10)]
    return seconds, 3 * latency_s


if __name__ == "__main__":
    main()
