"""Numbers with their nouns, and texts cut to a length, for messages, prompts and reports."""

from __future__ import annotations

__all__ = ["clipped", "counted"]

_IRREGULAR = {"reply": "replies", "batch": "batches", "child": "children", "query": "queries"}


def counted(number: int, noun: str) -> str:
    """Return the number with its noun in the right form: `1 call`, `2,000 calls`, `2 failed replies`."""
    if number == 1:
        return f"1 {noun}"
    first, _, last = noun.rpartition(" ")
    return f"{number:,} {f'{first} ' if first else ''}{_IRREGULAR.get(last, f'{last}s')}"


def clipped(text: str, limit: int) -> str:
    """Return the text, cut to `limit` characters with an ellipsis as the last."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
