"""Turn 2 without a question: the context may contain one, so it becomes the prompt of a sub-call."""

from __future__ import annotations

from rlm.offline.cells.given import FINAL, llm_query, texts

# isort: split
# The cell:
prompt = "\n\n".join(texts.values())[:100_000]
FINAL(
    llm_query(prompt)
    if prompt
    else "NOT FOUND: there is no question and no text. No language model was used."
)
