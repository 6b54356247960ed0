"""Turn 2 of a search: choose the pieces that could answer, and let sub-calls read them."""

# ruff: noqa: PLR2004, T201 - a cell prints what the model is to see, and its numbers stand where they are used
from __future__ import annotations

from rlm.offline.cells.given import KINDS, QUESTION, TERMS, llm_batch, texts

# isort: split
# The cell:
import heapq
import math
import re
from collections import Counter


def cut(text: str, size: int) -> list[tuple[int, int]]:
    """Pieces of at most `size` characters that end, where they can, with a paragraph, line or sentence."""
    spans = []
    start = 0
    while start < len(text):
        end = start + size
        if end < len(text):
            breaks = (text.rfind(mark, start + size // 2, end) for mark in ("\n\n", "\n", ". ", " "))
            end = next((found + 1 for found in breaks if found > start), end)
        spans.append((start, end))
        start = end
    return spans


def matcher(stem: str) -> re.Pattern[str]:
    """The forms of a word; scripts without spaces (from U+2E80 on) are matched anywhere."""
    stem, *irregular = stem.split("|")
    if stem >= "\u2e80":
        return re.compile(re.escape(stem))
    short = rf"(?:[edsn]|es|[ds]t|{re.escape(stem[-1:])}?(?:ed|er|ers|ing))?"
    ending = r"\w{0,4}" if len(stem) > 4 else short
    regular = re.escape(stem) + ending
    if stem.endswith("y") and stem[-2:-1] not in "aeiou":
        regular = rf"{re.escape(stem[:-1])}(?:y|ys|ies|ied|ying)"
    return re.compile(rf"\b(?:{'|'.join([regular, *irregular])})\b")


total = sum(map(len, texts.values()))
size = min(3_000, max(600, total // 200))
pieces = [(where, start, end) for where, text in texts.items() for start, end in cut(text, size)]

# Which key terms does each piece use? `in` is the fast test, the pattern the exact one.
matchers = [(word, stem.split("|"), matcher(stem)) for word, stem in TERMS.items()]
used = []
for where, start, end in pieces:
    passage = texts[where][start:end].lower()
    near = [term for term in matchers if any(form.rstrip("y") in passage for form in term[1])]
    used.append(tuple(word for word, _, forms in near if forms.search(passage)))

# A word is worth the more, the fewer pieces use it; a word that no piece uses is worth most, and missing.
frequency = Counter(word for words in used for word in words)
weight = {word: math.log(1 + len(pieces) / (frequency[word] or 0.5)) ** 2 for word in TERMS}
for word in KINDS:  # "which city": the answer is a city, and seldom says so
    weight[word] *= 0.2
rarest_first = sorted(TERMS, key=lambda word: frequency[word])
missing = [word for word in TERMS if not frequency[word]]
print(
    f"{len(pieces):,} piece{'s' * (len(pieces) != 1)}; used by:",
    ", ".join(f"{word} {frequency[word]:,}" for word in rarest_first),
)

worth = {words: sum(weight[word] for word in words) for words in set(used)}
chosen = heapq.nlargest(40, (i for i, words in enumerate(used) if words), key=lambda i: worth[used[i]])
terms = ", ".join(f"{word} {weight[word]:.2f}" for word in rarest_first)
replies = llm_batch(
    "Quote the sentences of the passage that answer the question, or reply NOT FOUND.\n"
    f"Question: {QUESTION}\nKey terms, rarest first: {terms}\n"
    f"Passage from character {pieces[i][1]}:\n{texts[pieces[i][0]][pieces[i][1] : pieces[i][2]]}"
    for i in chosen
)
answered = sum(bool(reply) and reply != "NOT FOUND" for reply in replies)
print(
    f"{len(chosen)} sub-call{'s' * (len(chosen) != 1)} read the best pieces; {answered} found a sentence to quote"
)
