"""Ask a question of a document far longer than a prompt.

    python examples/long_document.py                                  # Python's own documentation, no key needed
    python examples/long_document.py contract.txt "Who may terminate, and when?"

With OPENAI_API_KEY set it asks OpenAI's models; without, the `offline` client, which only finds and quotes.
First the sections of the document are read in one batch, then the question is asked of the whole.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rlm import RLM_REPL, OfflineClient
from rlm.clients.offline_demo import python_topics

QUESTION = "What does the debugger command tbreak do?"

READ_SECTIONS = """
size = 40_000
sections = [context[start:start + size] for start in range(0, len(context), size)]
notes = llm_batch(
    [f"{question}\\n\\nReply with the sentences that answer it, or NOT FOUND.\\n\\n{section}" for section in sections]
)
found = [number for number, note in enumerate(notes) if note and "NOT FOUND" not in note]
print(f"{len(sections)} sections read in one batch; {len(found)} of them have something: {found}")
"""


def main() -> None:
    document = Path(sys.argv[1]) if len(sys.argv) > 1 else python_topics()
    question = sys.argv[2] if len(sys.argv) > 2 else QUESTION
    client = None if os.environ.get("OPENAI_API_KEY") else OfflineClient()

    with RLM_REPL(client=client) as rlm, rlm.session(document) as session:
        print(session.run(f"question = {question!r}\n{READ_SECTIONS}").stdout)
        answer = session.ask(question)
        print(answer)
        print(
            f"\n[{answer.status}, {answer.turns} turns, {answer.usage.calls} calls, {answer.seconds:.1f} s]"
        )


if __name__ == "__main__":
    main()
