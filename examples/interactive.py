"""Several questions about one text, with your own Python in between.

    python examples/interactive.py

Without a key it uses the `offline` client, which only finds, counts and quotes.
"""

from __future__ import annotations

import os

from rlm import RLM_REPL, OfflineClient, RLMSession
from rlm.offline.demo import python_topics


def main() -> None:
    client = None if os.environ.get("OPENAI_API_KEY") else OfflineClient()
    with RLM_REPL(client=client) as rlm, rlm.session(python_topics()) as session:
        ask(session, "What does the `with` statement guarantee about __exit__?")

        cell = session.run("mentions = context.count('decorator'); mentions")
        print(f"Your own cell says: {cell.stdout.strip()} mentions of 'decorator'.\n")

        ask(session, "How many times does the text mention 'generator'?")
        names = [variable.name for variable in session.variables()]
        print(f"The cells left {len(names)} variables, yours too: {'mentions' in names}")
        spent = rlm.cost_summary()
        dollars = "at no known price" if spent["cost_usd"] is None else f"${spent['cost_usd']:.4f}"
        print(f"Spent: {spent['calls']} calls, {spent['total_tokens']:,} tokens, {dollars}.")


def ask(session: RLMSession, question: str) -> None:
    print(f"Question: {question}\n\n{session.ask(question)}\n")


if __name__ == "__main__":
    main()
