"""Turn 2 of a list: which headings, sections, documents, lines or paragraphs are there, or use a phrase?"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlm.clients.offline_cells.given import CAVEAT, FINAL, UNIT, WANTED, texts

# The cell:
import re

STYLES = (
    r"^#{1,6} +(?P<title>\S.*)$",  # Markdown
    r"^(?P<title>\S.{0,150})\n([*=~^-])\2{2,}$",  # underlined
    r"^(?P<title>(?i:chapter|part|book|section|article|kapitel|teil|chapitre)\s+[\dIVXLC]+\b.{0,100})$",
    r"^(?P<title>\d+(?:\.\d+)*\.?\s+[^\W\d_].{0,100})$",  # 2.1 Title
)


def headings(text: str) -> list[tuple[int, int]]:
    """Where the titles stand, in the first of the styles that the text uses more than once."""
    for style in STYLES:
        found = [hit.span("title") for hit in re.finditer(style, text, re.MULTILINE)]
        if len(found) > 1:
            return found
    return []


# Each place: the text it is in, its label (what is quoted), and its body (what is searched).
places = []
for where, text in texts.items():
    if UNIT in ("heading", "section"):
        titles = headings(text)
        ends = [start for start, _ in titles[1:]] + [len(text)]
        places += [(where, title, title if UNIT == "heading" else (title[0], end)) for title, end in zip(titles, ends, strict=True)]
    elif UNIT == "document":
        places.append((where, (0, min(80, len(text))), (0, len(text))))
    else:
        units = r".+" if UNIT == "line" else r"(?:.+\n?)+"
        places += [(where, hit.span(), hit.span()) for hit in re.finditer(units, text) if hit[0].strip()]

phrase = re.compile(r"\s+".join(map(re.escape, WANTED.split())), re.IGNORECASE)
listed = [(where, label) for where, label, (start, end) in places if phrase.search(texts[where], start, end)]

which = f"{UNIT}s mention “{WANTED}”" if WANTED else f"{UNIT}s are there"
lines = [f"{len(listed):,} {which}." if listed else f"NOT FOUND: no {which}."]
if not places:
    lines = [f"NOT FOUND: I see no {UNIT}s (looked for Markdown, underlined, “Chapter 1” and “1.2 Title” forms)."]
for number, (where, (start, end)) in enumerate(listed[:200], 1):
    lines.append(f"{number}. “{texts[where][start:end]}” — {where}[{start}:{end}]")
if len(listed) > 200:
    lines.append(f"… and {len(listed) - 200:,} more.")
lines.append(f"\nNo language model was used: this was listed by code. {CAVEAT}")
FINAL("\n".join(lines))
