"""Styled text → what a terminal is sent, in its colours or without any (`NO_COLOR`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.syntax import Syntax
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlm.display.region import Line

__all__ = ["Block", "Painter", "highlighted"]


@dataclass(frozen=True, slots=True)
class Block:
    """Lines of styled text behind a margin; `hanging` means that only the first line shows the margin's signs.

    Long lines wrap, or are `cut`.
    """

    text: Text
    margin: str = ""
    margin_style: str = "dim"
    hanging: bool = False
    cut: bool = False


class Painter:
    """Paints for one terminal."""

    def __init__(self, file: TextIO) -> None:
        self._console = Console(file=file, highlight=False, markup=False, emoji=False)

    def paint(self, block: Block, columns: int) -> str:
        """The block, wrapped to `columns`, as whole lines."""
        margin = Text(block.margin, style=block.margin_style)
        width = max(4, columns - margin.cell_len)
        wrapped = block.text.split(allow_blank=True) if block.cut else block.text.wrap(self._console, width)
        if block.cut:
            for line in wrapped:
                line.truncate(width, overflow="ellipsis")
        below = Text(" " * margin.cell_len) if block.hanging else margin
        return self._sent(
            [Text.assemble(below if index else margin, line) for index, line in enumerate(wrapped)]
        )

    def frame_line(self, text: Text, columns: int) -> Line:
        """The text as one line that is cut at `columns`."""
        text = text.copy()
        text.truncate(columns, overflow="ellipsis")
        return self._sent([text]).removesuffix("\n"), text.cell_len

    def _sent(self, lines: Sequence[Text]) -> str:
        with self._console.capture() as capture:
            for line in lines:
                line.rstrip()
                self._console.print(line, soft_wrap=True)
        return capture.get()


def highlighted(code: str) -> Text:
    """Python in the terminal's own sixteen colours, so that it can be read on a light and a dark ground."""
    text = Syntax("", "python", theme="ansi_dark", background_color="default").highlight(code)
    text.rstrip()
    text.no_wrap, text.overflow = False, "fold"
    return text
