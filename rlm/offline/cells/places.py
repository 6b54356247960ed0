"""Turn 2 of a list: the headings, sections, documents, lines or paragraphs, all or those with a phrase."""

# ruff: noqa: PLR2004 - a cell's numbers stand where they are used
from __future__ import annotations

from rlm.offline.cells.given import CAVEAT, FINAL, UNIT, WANTED, texts

# isort: split
# The cell:
import re
from itertools import pairwise

STYLES = (
    r"^#{1,6} +(?P<title>\S.*)$",  # Markdown
    r"^(?P<title>\S.{0,150})\n([*=~^-])\2{2,}$",  # underlined
    r"^(?P<title>(?i:chapter|part|book|section|article|kapitel|teil|chapitre)\s+[\dIVXLC]+\b.{0,100})$",
    r"^(?P<title>\d+(?:\.\d+)*\.?\s+[^\W\d_].{0,100})$",  # 2.1 Title
)


def headings(text: str) -> list[tuple[int, int]]:
    """Positions of the titles, in the first style that the text uses more than once."""
    for style in STYLES:
        found = [hit.span("title") for hit in re.finditer(style, text, re.MULTILINE)]
        if len(found) > 1:
            return found
    return []


# Each place: the text it is in, its label (what is quoted), and its body (what is searched).
places = []
for where, text in texts.items():
    if UNIT in ("heading", "section"):
        for title, following in pairwise([*headings(text), (len(text), 0)]):
            places.append((where, title, title if UNIT == "heading" else (title[0], following[0])))
    elif UNIT == "document":
        places.append((where, (0, min(80, len(text))), (0, len(text))))
    else:  # a paragraph ends with an empty line, or, in a text that has none, with its line
        unit = r"(?:.+\n?)+" if UNIT == "paragraph" and re.search(r"\n[ \t]*\n", text.strip()) else r".+"
        for start, end in (hit.span() for hit in re.finditer(unit, text) if hit[0].strip()):
            places.append((where, (start, min(end, start + 150)), (start, end)))

phrase = re.compile(r"\s+".join(map(re.escape, WANTED.split())), re.IGNORECASE)
listed = [(where, label) for where, label, (start, end) in places if phrase.search(texts[where], start, end)]

which = f"{UNIT}s with “{WANTED}”" if WANTED else f"{UNIT}s"
lines = [f"Number of {which}: {len(listed):,}." if listed else f"NOT FOUND: there are no {which}."]
if not places:
    lines = [
        f"NOT FOUND: I see no {UNIT}s (looked for Markdown, underlined, “Chapter 1” and “1.2 Title” forms)."
    ]
for number, (where, (start, end)) in enumerate(listed[:200], 1):
    lines.append(f"{number}. “{texts[where][start:end]}” — {where}[{start}:{end}]")
if len(listed) > 200:
    lines.append(f"… and {len(listed) - 200:,} more.")
lines.append("\nNo language model was used: this was listed by code.")
FINAL("\n".join(lines) + f" {CAVEAT}".rstrip())
