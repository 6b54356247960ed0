"""The last lines of a terminal, drawn over and over.

One write per frame, which overwrites the frame before instead of clearing it first, so nothing flickers. The
cursor is never hidden and no mode is switched on: a process that is killed leaves the terminal in order.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Line", "Region"]

Line = tuple[str, int]
"""A line as it is sent, colours included, and how many columns it takes."""

TO_LINE_END = "\x1b[K"
TO_SCREEN_END = "\x1b[J"


class Region:
    """The frame at the bottom of a terminal, and the text that scrolls away above it."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._frame: list[Line] = []

    def size(self) -> tuple[int, int]:
        """Columns and rows of the terminal as it is now."""
        try:
            size = os.get_terminal_size(self._file.fileno())
        except (OSError, ValueError):
            return 80, 24
        return size.columns or 80, size.lines or 24

    def draw(self, frame: Sequence[Line], above: str = "") -> None:
        """Replace the frame; `above` are whole lines that stay, and scroll away in time.

        Raises:
            OSError: the terminal is gone.
        """
        columns, rows = self.size()
        frame = list(frame)[-max(1, rows - 1) :]
        if not above and frame == self._frame:
            return
        kept = above.removesuffix("\n").split("\n") if above else []
        lines = [f"{text}{TO_LINE_END}\n" for text in kept]
        lines += [
            f"{text}{TO_LINE_END}" + ("\n" if index < len(frame) - 1 else "")
            for index, (text, _) in enumerate(frame)
        ]
        self._file.write(f"{self._to_its_start(columns)}{''.join(lines)}{TO_SCREEN_END}")
        self._file.flush()
        self._frame = frame

    def clear(self) -> None:
        """Take the frame away; what is written next begins where it began."""
        if self._frame:
            self.draw([])

    def _to_its_start(self, columns: int) -> str:
        """Back to the frame's first line, also where a narrower terminal has wrapped its lines since."""
        rows = sum(max(1, -(-width // columns)) for _, width in self._frame)
        return f"\r\x1b[{rows - 1}A" if rows > 1 else "\r"
