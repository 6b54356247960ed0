"""Turn 2 of a count: the number of occurrences of a word or phrase."""

# ruff: noqa: PLR2004 - a cell's numbers stand where they are used
from __future__ import annotations

from rlm.offline.cells.given import CAVEAT, FINAL, WANTED, texts

# isort: split
# The cell:
import re

# Count whole words in any case; keep apart what is part of a longer word.
phrase = re.compile(r"\s+".join(map(re.escape, WANTED.split())), re.IGNORECASE)
whole: dict[str, int] = {}
sources: list[str] = []
as_written = inside = 0
for where, text in texts.items():
    for hit in phrase.finditer(text):
        start, end = hit.span()
        if re.match(r"\w", text[start - 1 : start]) or re.match(r"\w", text[end : end + 1]):
            inside += 1
            continue
        whole[where] = whole.get(where, 0) + 1
        as_written += hit[0] == WANTED
        if len(sources) < 3:
            first = text.find(" ", max(0, start - 40), start) + 1 or start
            last = text.rfind(" ", end, end + 40)
            last = last if last > 0 else end
            sources.append(f"\n“{text[first:last]}”\n— {where}[{first}:{last}]")

total = sum(whole.values())
if total:
    lines = [
        (
            f"“{WANTED}” occurs {total:,} {'time' if total == 1 else 'times'} as a whole word in any case "
            f"({as_written:,} exactly as written)."
        )
    ]
else:
    lines = [f"NOT FOUND: “{WANTED}” occurs 0 times as a whole word."]
if inside:
    lines.append(f"Longer words contain it {inside:,} more {'time' if inside == 1 else 'times'}.")
if len(texts) > 1 and whole:
    ranking = sorted(whole, key=lambda where: -whole[where])[:20]
    lines.append("By text: " + ", ".join(f"{where} {whole[where]:,}" for where in ranking) + ".")
if sources:
    lines += ["The first:" if len(sources) == 1 else f"The first {len(sources)}:", *sources]
lines.append("\nNo language model was used: this was counted by code.")
FINAL("\n".join(lines) + f" {CAVEAT}".rstrip())
