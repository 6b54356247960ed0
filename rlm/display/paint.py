"""Paint entries of the story for one terminal, in its colours or without any (`NO_COLOR`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TextIO

from rich.console import Console
from rich.syntax import Syntax
from rich.text import Text

from rlm.display.story import CLIPPED_CHARS
from rlm.display.text import first_lines, last_lines, one_line
from rlm.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rlm.display.region import FrameLine
    from rlm.display.story import Entry, Kind

__all__ = ["Painter"]

VERBOSE_LINES: Final = 1_000
"""The most lines of one entry that are shown with `-v`."""

OUTPUT_MARGIN: Final = "│ "


class _Look(NamedTuple):
    """Appearance of a kind of entry.

    `lines` is how many lines are shown without `-v`, 0 for an entry that is one line. `rule` is the title of a
    horizontal rule above the text, `title_style` its colour.
    """

    style: str = ""
    margin: str = ""
    margin_style: str = "dim"
    lines: int = 0
    rule: str = ""
    title_style: str = "cyan"


_OUTPUT: Final = _Look(margin=OUTPUT_MARGIN, lines=10)
_LOOKS: Final[dict[Kind, _Look]] = {
    "question": _Look("bold", lines=6),
    "context": _Look("dim"),
    "models": _Look("dim"),
    "turn": _Look(),
    "prose": _Look(lines=6),
    "code": _Look(margin="  ", lines=16),
    "stdout": _OUTPUT,
    "stderr": _OUTPUT._replace(style="yellow"),
    "error": _OUTPUT._replace(style="red"),
    "cell": _Look("dim", margin="└ "),
    "warning": _Look("yellow", margin="! ", margin_style="yellow"),
    "failed prompts": _Look("yellow", margin="! ", margin_style="yellow"),
    "retry": _Look("yellow", margin="  "),
    "failed call": _Look("red", margin="  "),
    "call": _Look("dim", margin="  "),
    "answered": _Look("dim", rule="Answered", title_style="green"),
    "limit": _Look("yellow", rule="Stopped", title_style="yellow"),
    "spent": _Look("dim"),
    "stopped": _Look(rule="Stopped", title_style="yellow"),
    "failed": _Look("red", rule="Failed", title_style="red"),
}


class Painter:
    """Paints for one terminal.

    Args:
        file: the terminal.
        verbosity: 0 shows the first lines of prose and code, and the last ones of output.
    """

    def __init__(self, file: TextIO, *, verbosity: int = 0) -> None:
        self._console = Console(file=file, highlight=False, markup=False, emoji=False)
        self._verbosity = verbosity

    def paint(self, entry: Entry, depth: int, columns: int) -> str:
        """Return the entry of a run at `depth` as whole lines, wrapped or cut at `columns`."""
        if depth and entry.kind != "warning":
            style = "red" if entry.kind == "failed" else "dim" if entry.kind == "cell" else "cyan"
            return self._wrapped(
                Text(f"child run: {entry.line}", style=style), _Look(margin="  " * depth), columns
            )
        look = _LOOKS[entry.kind]
        if entry.kind == "turn":
            return self._sent([Text(), _rule(entry.text, columns, "cyan")])
        above = [Text(), _rule(look.rule, columns, look.title_style)] if look.rule else []
        below = [Text()] if entry.kind in {"answered", "spent"} else []
        return self._sent(above) + "".join(self._body(entry, look, columns)) + self._sent(below)

    def frame_line(self, text: Text, columns: int) -> FrameLine:
        """Return the text as one line that is cut at `columns`."""
        text = text.copy()
        text.truncate(columns, overflow="ellipsis")
        return self._sent([text]).removesuffix("\n"), text.cell_len

    def _body(self, entry: Entry, look: _Look, columns: int) -> Iterator[str]:
        if not look.lines:
            if line := one_line(entry.text if entry.kind != "call" else entry.line, CLIPPED_CHARS):
                yield self._wrapped(Text(line, style=look.style), look, columns)
            return
        most = VERBOSE_LINES if self._verbosity else look.lines
        shows_end = look.margin == OUTPUT_MARGIN
        lines, more = (last_lines if shows_end else first_lines)(entry.text, most, CLIPPED_CHARS)
        left_out = Text(
            f"… {counted(more, 'line' if shows_end else 'more line')}{' before' * shows_end}", style="dim"
        )
        if more and shows_end:
            yield self._wrapped(left_out, look, columns)
        if entry.kind == "code":
            yield self._wrapped(_highlighted("\n".join(lines)), look, columns, cut=not self._verbosity)
        elif lines:
            yield self._wrapped(Text("\n".join(lines), style=look.style), look, columns)
        if more and not shows_end:
            yield self._wrapped(left_out, look, columns)

    def _wrapped(self, text: Text, look: _Look, columns: int, *, cut: bool = False) -> str:
        margin = Text(look.margin, style=look.margin_style)
        width = max(4, columns - margin.cell_len)
        wrapped = text.split(allow_blank=True) if cut else text.wrap(self._console, width)
        if cut:
            for line in wrapped:
                line.truncate(width, overflow="ellipsis")
        below = margin if look.margin == OUTPUT_MARGIN else Text(" " * margin.cell_len)
        return self._sent(
            Text.assemble(below if index else margin, line) for index, line in enumerate(wrapped)
        )

    def _sent(self, lines: Iterable[Text]) -> str:
        with self._console.capture() as capture:
            for line in lines:
                line.rstrip()
                self._console.print(line, soft_wrap=True)
        return capture.get()


def _rule(title: str, columns: int, style: str) -> Text:
    return Text.assemble(
        ("── ", style), (title, f"bold {style}"), (f" {'─' * max(0, columns - len(title) - 4)}", style)
    )


def _highlighted(code: str) -> Text:
    """Colour Python with the terminal's own sixteen colours, which are readable on light and dark backgrounds."""
    text = Syntax("", "python", theme="ansi_dark", background_color="default").highlight(code)
    text.rstrip()
    text.no_wrap, text.overflow = False, "fold"
    return text
