"""Count what a question takes: calls and tokens of one real run against a local server with scripted replies.

    python docs/cost.py

The prompts are those that any model would get; the replies are written out in tests/support/lease_model.py. Tokens are
counted as one for four characters.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from lease_model import lease_server

from rlm import RLM_REPL


def main() -> None:
    """Ask the question of the README, and print what it took."""
    question = "Which clauses let the tenant leave early?"
    with lease_server() as server, RLM_REPL(base_url=server.base_url, api_key="none") as rlm:
        answer = rlm.completion(ROOT / "examples" / "data" / "lease.txt", question)
        print(answer, end="\n\n")
        print(
            f"{answer.usage.calls} calls, {server.input_tokens:,} input tokens, {server.output_tokens:,} output tokens"
        )


if __name__ == "__main__":
    main()
