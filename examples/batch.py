"""The same prompts in a loop and in a batch, through a real guest, measured.

    python examples/batch.py

The model is a script that answers after 0.2 seconds, so no key is needed and the figures are about the runtime.
"""

from __future__ import annotations

from rlm import REPLEnv, ScriptedClient

LATENCY_S = 0.2
PROMPTS = 20

SEQUENTIAL = "loop = [llm_query(prompt) for prompt in prompts]"
BATCH = "batch = llm_batch(prompts, max_concurrent=10)"


def main() -> None:
    client = ScriptedClient(lambda call: call.messages[-1].content.upper(), latency_s=LATENCY_S)
    setup = f"prompts = [f'section {{number}}' for number in range({PROMPTS})]"
    with REPLEnv(client=client, setup_code=setup) as repl:
        one_by_one = repl.code_execution(SEQUENTIAL)
        at_once = repl.code_execution(BATCH)
        same = repl.code_execution("loop == batch").stdout.strip()

    ideal = LATENCY_S * PROMPTS / 10
    print(f"{PROMPTS} prompts of {LATENCY_S} s each")
    print(f"  llm_query in a loop   {one_by_one.execution_time:6.2f} s")
    print(f"  llm_batch, 10 at once {at_once.execution_time:6.2f} s   (ideal {ideal:.2f} s)")
    print(f"  {one_by_one.execution_time / at_once.execution_time:.1f} times faster; same answers: {same}")


if __name__ == "__main__":
    main()
