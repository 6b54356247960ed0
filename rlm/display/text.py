r"""Text that others wrote, made safe to show, and numbers made short.

What models, cells and files say may hold terminal control codes. `visible` writes each of them out, so that a
cell that prints `ESC [2J` shows as `\x1b[2J` and clears no screen, and a bidirectional override reorders nothing.
Clipping happens before anything else looks at the text: a line of a megabyte costs no more than one of a hundred
characters.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = [
    "count",
    "first_lines",
    "last_lines",
    "money",
    "one_line",
    "seconds",
    "tail_of",
    "visible",
    "width_of",
]

# C0 and C1 controls but newline and tab; line separators and bidirectional controls; byte order mark and
# interlinear annotations; lone surrogates, which no terminal can be sent.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_RETURNS = re.compile("\r+\n")


def visible(text: str) -> str:
    """The text with every control code written out as Python would; tabs become four spaces."""
    return _HIDDEN.sub(_written_out, _RETURNS.sub("\n", text)).replace("\t", "    ")


def one_line(text: str, chars: int) -> str:
    """The text as one safe line of at most about `chars` characters."""
    return _clipped(" ".join(visible(text[: 4 * chars]).split()), chars, more=len(text) > 4 * chars)


def first_lines(text: str, lines: int, chars: int) -> tuple[list[str], int]:
    """The first lines, each safe and clipped to `chars`, and how many lines follow them."""
    text = text.rstrip("\n")
    total = text.count("\n") + 1 if text else 0
    head = text.split("\n", lines)[:lines] if text else []
    return [_safe_line(line, chars) for line in head], total - len(head)


def last_lines(text: str, lines: int, chars: int) -> tuple[list[str], int]:
    """The last lines, each safe and clipped to `chars`, and how many lines came before them."""
    text = text.rstrip("\n")
    total = text.count("\n") + 1 if text else 0
    tail = text.rsplit("\n", lines)[-lines:] if text else []
    return [_safe_line(line, chars) for line in tail], total - len(tail)


def tail_of(text: str, lines: int, columns: int) -> list[str]:
    """The end of a text that is still being written: its last lines, safe, and folded at `columns`."""
    end = visible(text[-lines * columns :])
    return [piece for line in end.rstrip("\n").split("\n") for piece in _folded(line, columns)][-lines:]


def width_of(text: str) -> int:
    """How many columns of a terminal a line takes: wide East Asian characters two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def count(number: int, noun: str) -> str:
    """`1 call`, `1,234 calls`."""
    plural = {"reply": "replies", "batch": "batches"}.get(noun, f"{noun}s")
    return f"{number:,} {noun if number == 1 else plural}"


def seconds(value: float) -> str:
    """A duration: `0.2 s`, `12 s`, `3 min 05 s`, `2 h 07 min`."""
    if value < 10:  # noqa: PLR2004
        return f"{max(value, 0):.1f} s"
    whole = round(value)
    if whole < 60:  # noqa: PLR2004
        return f"{whole} s"
    if whole < 3600:  # noqa: PLR2004
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def money(dollars: float) -> str:
    """Dollars, with as many digits as small sums need."""
    if dollars >= 1 or not dollars:
        return f"${dollars:,.2f}"
    precise = f"{dollars:.4f}"
    return f"${precise[:4]}{precise[4:].rstrip('0')}"


def _written_out(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def _safe_line(line: str, chars: int) -> str:
    return _clipped(visible(line[: chars + 1].removesuffix("\r")), chars, more=len(line) > chars + 1)


def _folded(line: str, columns: int) -> list[str]:
    pieces, start, width = [], 0, 0
    for index, character in enumerate(line):
        taken = _columns(character)
        if width + taken > columns and index > start:
            pieces.append(line[start:index])
            start, width = index, 0
        width += taken
    return [*pieces, line[start:]]


def _clipped(text: str, chars: int, *, more: bool) -> str:
    return f"{text[: chars - 1]}…" if more or len(text) > chars else text


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
