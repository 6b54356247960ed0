"""Turn 3 of a search: compare the quotes and answer with the best."""

# ruff: noqa: PLR2004 - a cell's numbers stand where they are used
from __future__ import annotations

from rlm.offline.cells.given import (
    CAVEAT,
    FINAL,
    KINDS,
    TERMS,
    chosen,
    frequency,
    missing,
    pieces,
    replies,
    texts,
)

# isort: split
# The cell:
import re

# A line of a reply reads `[120:187] has ark, mountain; covers 0.83, rank 0.91`.
LINE = re.compile(r"^\[(\d+):(\d+)\] has (.+); covers ([\d.]+), rank ([\d.]+)$", re.MULTILINE)
unused = sorted(missing, key=lambda word: word in KINDS)  # “long” of “how long” says the least
wanted = {word for word in TERMS if word not in KINDS and word not in missing}
quotes: dict[str, tuple[bool, float, str]] = {}
near = set()  # quotes with every word of the question that the text uses at all
for i, reply in zip(chosen, replies, strict=True):
    where = pieces[i][0]
    for start, end, has, covers, rank in LINE.findall(reply):
        quote = texts[where][int(start) : int(end)]  # taken from the text again, so it is verbatim
        words = [word for word in has.split(", ") if word not in KINDS]
        # One word is not enough of a witness, unless hardly any piece uses it.
        is_backed = len(words) >= min(2, len(TERMS) - len(KINDS)) or any(
            frequency[word] <= 2 for word in words
        )
        if len(wanted) > 1 and wanted <= set(words):
            near.add(quote)
        fits = float(covers) >= 0.6 and is_backed
        quotes.setdefault(quote, (fits, float(rank), f"{where}[{start}:{end}]"))

failed = sum(not reply for reply in replies)
best = sorted(quotes.items(), key=lambda item: item[1][:2], reverse=True)[:3]
shown = [(quote, source) for quote, (fits, rank, source) in best if fits and rank >= 0.8 * best[0][1][1]]
if shown:
    lines = ["The passages that match the question's words best:"]
else:
    shown = [(quote, source) for quote, (_, _, source) in best[:2]]
    reason = "no passage has enough of the question's words together"
    if not pieces:
        reason = "there is no text"
    elif unused:
        reason = "the text never uses " + ", ".join(f"“{word}”" for word in unused[:10])
    if 0 < failed == len(replies):
        reason = "nothing could be read"
    lines = [f"NOT FOUND: {reason}."]
    nearest = "The nearest passages, which may have nothing to do with it:"
    if unused and any(quote in near for quote, _ in shown):
        nearest = "These passages have all the other words, and may answer it in other words:"
    lines += [nearest] if shown else []

lines += [f"\n“{quote}”\n— {source}" for quote, source in shown]
if missing and not lines[0].startswith("NOT FOUND"):
    lines.append("\nThe text never uses: " + ", ".join(missing[:10]) + ".")
if failed:
    lines.append(f"\n{failed} of {len(replies)} sub-calls failed, so something may have been missed.")
searched = f"{len(pieces):,} piece{'s' * (len(pieces) != 1)}"
lines.append(f"\nNo language model was used: {searched} searched, {len(chosen)} read, by rules.")
FINAL("\n".join(lines) + f" {CAVEAT}".rstrip())
