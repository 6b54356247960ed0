"""One line of progress on stderr: overwritten on a terminal, elsewhere a new line now and then."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Final, Self

from rlm.display.text import money, one_line, seconds
from rlm.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm.bulk import JobProgress

__all__ = ["StatusLine", "job_in_words", "reading_in_words"]

NEWS_S: Final = 10.0
"""Seconds between two lines that are not overwritten."""
NEWS_COLUMNS: Final = 200
TROUBLE_COLUMNS: Final = 70
LEFT_OUT_FIRST: Final = ("tokens/s", "at once", "rows/s")


class StatusLine:
    """The last line on stderr while something runs; a context manager that ends the line."""

    def __init__(self) -> None:
        self._is_shown = False
        self._is_terminal = sys.stderr.isatty()
        self._last_line_at = time.monotonic()

    def show(self, line: Callable[[int], str]) -> None:
        """Overwrite the line with what `line(columns)` returns; where stderr is no terminal, print one each `NEWS_S`."""
        if self._is_terminal:
            _write(f"\r\x1b[K{line(shutil.get_terminal_size().columns - 1)}")
            self._is_shown = True
        elif time.monotonic() - self._last_line_at >= NEWS_S:
            self._last_line_at = time.monotonic()
            _write(f"{line(NEWS_COLUMNS)}\n")

    def end(self) -> None:
        """Keep the line on the screen; the next output starts below it."""
        self._finish("\n")

    def clear(self) -> None:
        """Remove the line; the next output starts in its place."""
        self._finish("\r\x1b[K")

    def _finish(self, code: str) -> None:
        if self._is_shown:
            self._is_shown = False
            _write(code)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def reading_in_words(name: str, done: int, size: int, columns: int) -> str:
    """Return the progress of reading a file, in megabytes; `size` is 0 if it is not known."""
    whole = f" of {size / 1e6:,.0f}" if size else ""
    amount = f"{done / 1e6:,.0f}{whole} MB"
    return f"reading {one_line(name, max(10, columns - len(amount) - 10))}: {amount}"


def job_in_words(progress: JobProgress, columns: int) -> str:
    """Return the progress of a job as a line of at most `columns` characters; the least important parts go first."""
    parts = list(_parts(progress))
    for name in LEFT_OUT_FIRST:
        if len(" · ".join(parts)) <= columns:
            break
        parts = [part for part in parts if not part.endswith(name)]
    return " · ".join(parts)[:columns]


def _parts(progress: JobProgress) -> list[str]:
    cap = f" of {money(progress.budget_usd)}" if progress.budget_usd is not None else ""
    left = progress.seconds_left
    parts = [
        f"{progress.rows:,} of {counted(progress.total, 'row')}",
        f"{progress.rows_per_second:,.0f} rows/s",
        f"{progress.tokens_per_second:,.0f} tokens/s" if progress.tokens else "",
        f"{money(progress.cost_usd)}{cap}" if progress.cost_usd is not None else "",
        f"{progress.failed:,} failed" if progress.failed else "",
        f"{progress.max_concurrent:,} at once",
        one_line(progress.trouble, TROUBLE_COLUMNS) if progress.trouble else "",
        f"{seconds(left)} left" if left is not None and progress.rows < progress.total else "",
    ]
    return [part for part in parts if part]
