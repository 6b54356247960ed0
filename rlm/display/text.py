r"""Make foreign text safe to print, and write numbers in a short form.

Models, cells and files may print terminal control codes. `visible` escapes each of them: a cell that prints `ESC [2J`
shows as `\x1b[2J` and does not clear the screen, and a bidirectional override does not reorder the line. Text is
clipped first, so that a line of a megabyte costs no more than one of a hundred characters.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = [
    "first_lines",
    "last_lines",
    "money",
    "one_line",
    "seconds",
    "tail_of",
    "visible",
]

# C0 and C1 controls but newline and tab; line separators and bidirectional controls; byte order mark and
# interlinear annotations; lone surrogates, which no terminal can be sent.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_RETURNS = re.compile("\r+\n")


def visible(text: str) -> str:
    """Escape every control code as Python would; tabs become four spaces."""
    return _HIDDEN.sub(_escaped, _RETURNS.sub("\n", text)).replace("\t", "    ")


def one_line(text: str, chars: int) -> str:
    """Return the text as one safe line of at most about `chars` characters."""
    return _clipped(" ".join(visible(text[: 4 * chars]).split()), chars, more=len(text) > 4 * chars)


def first_lines(text: str, lines: int, chars: int) -> tuple[list[str], int]:
    """Return the first lines, each safe and clipped to `chars`, and the number of lines after them."""
    text = text.rstrip("\n")
    total = text.count("\n") + 1 if text else 0
    head = text.split("\n", lines)[:lines] if text else []
    return [_safe_line(line, chars) for line in head], total - len(head)


def last_lines(text: str, lines: int, chars: int) -> tuple[list[str], int]:
    """Return the last lines, each safe and clipped to `chars`, and the number of lines before them."""
    text = text.rstrip("\n")
    total = text.count("\n") + 1 if text else 0
    tail = text.rsplit("\n", lines)[-lines:] if text else []
    return [_safe_line(line, chars) for line in tail], total - len(tail)


def tail_of(text: str, lines: int, columns: int) -> list[str]:
    """Return the last lines of a text that is still growing, safe and folded at `columns`."""
    end = visible(text[-lines * columns :])
    return [piece for line in end.rstrip("\n").split("\n") for piece in _folded(line, columns)][-lines:]


def seconds(value: float) -> str:
    """Return a duration: `0.2 s`, `12 s`, `3 min 05 s`, `2 h 07 min`."""
    if value < 10:  # noqa: PLR2004
        return f"{max(value, 0):.1f} s"
    whole = round(value)
    if whole < 60:  # noqa: PLR2004
        return f"{whole} s"
    if whole < 3600:  # noqa: PLR2004
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def money(dollars: float) -> str:
    """Return dollars with two digits, or up to four for amounts below $1."""
    if dollars >= 1 or not dollars:
        return f"${dollars:,.2f}"
    precise = f"{dollars:.4f}"
    return f"${precise[:4]}{precise[4:].rstrip('0')}"


def _escaped(match: re.Match[str]) -> str:
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
