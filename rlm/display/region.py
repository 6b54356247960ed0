"""The last lines of a terminal, redrawn in place.

Each frame is one write that overwrites the frame before it without clearing it first, so nothing flickers. The cursor
is never hidden and no terminal mode is set: a process that is killed leaves a usable terminal. `rich.live` hides the
cursor, and a killed process would leave it hidden.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FrameLine", "Region"]

FrameLine = tuple[str, int]
"""A line with its escape codes, and the columns it takes."""

TO_LINE_END = "\x1b[K"
TO_SCREEN_END = "\x1b[J"


class Region:
    """The frame at the bottom of a terminal, below text that scrolls away."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._frame: list[FrameLine] = []

    def size(self) -> tuple[int, int]:
        """Return the current columns and rows of the terminal."""
        try:
            size = os.get_terminal_size(self._file.fileno())
        except (OSError, ValueError):
            return 80, 24
        return size.columns or 80, size.lines or 24

    def draw(self, frame: Sequence[FrameLine], above: str = "") -> None:
        """Replace the frame, and print the whole lines of `above` over it.

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
        self._file.write(f"{self._to_frame_start(columns)}{''.join(lines)}{TO_SCREEN_END}")
        self._file.flush()
        self._frame = frame

    def clear(self) -> None:
        """Remove the frame; the next output starts at its first line."""
        if self._frame:
            self.draw([])

    def _to_frame_start(self, columns: int) -> str:
        """Return the code that moves to the frame's first line, counting lines that a narrower terminal has wrapped."""
        rows = sum(max(1, -(-width // columns)) for _, width in self._frame)
        return f"\r\x1b[{rows - 1}A" if rows > 1 else "\r"
