"""Ask a question of a document far longer than a prompt.

    python examples/long_document.py                                  # Python's own documentation, no key needed
    python examples/long_document.py contract.txt "Who may terminate, and when?"
    python examples/long_document.py --depth 2                        # each section is read by a run of its own

With OPENAI_API_KEY set it asks OpenAI's models; without, the `offline` client, which only finds and quotes.
First the sections of the document are read at once, then the question is asked of the whole. At depth 1 a section is
one call to the sub-model; at depth 2 it is a child run with a REPL of its own, so it may be far longer than a prompt.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rlm import RLM_REPL, OfflineClient
from rlm.offline.demo import python_topics

QUESTION = "What does the debugger command tbreak do?"

BY_CALLS = """
size = 40_000
sections = [context[start:start + size] for start in range(0, len(context), size)]
notes = llm_batch(
    [f"{question}\\n\\nReply with the sentences that answer it, or NOT FOUND.\\n\\n{section}" for section in sections]
)
found = [number for number, note in enumerate(notes) if note and "NOT FOUND" not in note]
print(f"{len(sections)} sections read in one batch; those that have something: {found}")
"""

BY_CHILD_RUNS = """
size = max(100_000, -(-len(context) // 4))
sections = [context[start:start + size] for start in range(0, len(context), size)]
notes = rlm_batch([(question, section) for section in sections])
found = [number for number, note in enumerate(notes) if note and "NOT FOUND" not in note]
print(f"{len(sections)} sections read by child runs; those that have something: {found}")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask a question of a document far longer than a prompt.")
    parser.add_argument("document", nargs="?", type=Path, help="by default, Python's own documentation")
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--depth", type=int, choices=(1, 2), default=1)
    options = parser.parse_args()
    client = None if os.environ.get("OPENAI_API_KEY") else OfflineClient()

    read_sections = BY_CALLS if options.depth == 1 else BY_CHILD_RUNS
    document = options.document or python_topics()
    with RLM_REPL(client=client, max_depth=options.depth) as rlm, rlm.session(document) as session:
        print(f"Question: {options.question}\n")
        print(session.run(f"question = {options.question!r}\n{read_sections}").stdout)
        answer = session.ask(options.question)
        print(answer)
        print(
            f"\n[{answer.status}, {answer.turns} turns, {answer.usage.calls} calls, {answer.seconds:.1f} s]"
        )
        by_depth = {depth: spent["calls"] for depth, spent in rlm.cost_summary()["by_depth"].items()}
        print(f"[calls by depth, sections included: {by_depth}]")


if __name__ == "__main__":
    main()
