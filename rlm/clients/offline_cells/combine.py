"""Turn 3 of a search: compare the quotes and answer with the best."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlm.clients.offline_cells.given import (
        CAVEAT,
        FINAL,
        TERMS,
        chosen,
        missing,
        pieces,
        replies,
        texts,
    )

# The cell:
import re

# A reply's line reads `[start:end] covers 0.83, rank 0.91`: positions in the text, share of the terms' weight.
LINE = re.compile(r"^\[(\d+):(\d+)\] covers ([\d.]+), rank ([\d.]+)", re.MULTILINE)
quotes = {}
for i, reply in zip(chosen, replies, strict=True):
    where = pieces[i][0]
    for start, end, covers, rank in LINE.findall(reply):
        quote = texts[where][int(start) : int(end)]  # taken from the text again, so it is verbatim
        quotes.setdefault(quote, (float(rank), float(covers), f"{where}[{start}:{end}]"))

best = sorted(quotes.items(), key=lambda item: -item[1][0])[:3]
enough = [(quote, source) for quote, (rank, covers, source) in best if covers >= 0.6 and rank >= 0.8 * best[0][1][0]]
failed = sum(not reply for reply in replies)

lines = []
if enough:
    lines.append("The passages that match the question best:" if len(enough) > 1 else "The passage that matches the question best:")
    shown = enough
else:
    unused = ", ".join(f"“{word}”" for word in missing)
    why = f"the text never uses {unused}" if missing else "no passage has enough of the question's terms together"
    lines.append(f"NOT FOUND: {why}.")
    shown = [(quote, source) for quote, (_, _, source) in best[:2]]
    if shown:
        lines.append("The nearest passages, which may have nothing to do with it:")
lines += [f"\n“{quote}”\n— {source}" for quote, source in shown]
if enough and missing:
    lines.append("\nThe text never uses: " + ", ".join(missing) + ".")
if failed:
    lines.append(f"\n{failed} of {len(replies)} sub-calls failed, so something may have been missed.")
lines.append(f"\nNo language model was used: searched {len(pieces):,} pieces for {', '.join(TERMS)}, read {len(chosen)}. {CAVEAT}")
FINAL("\n".join(lines))
