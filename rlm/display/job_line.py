"""Progress of a job over rows: one line that is overwritten on a terminal, elsewhere a new line now and then."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Final, Self

from rlm.display.text import money, one_line, seconds
from rlm.wording import counted

if TYPE_CHECKING:
    from rlm.bulk import JobProgress

__all__ = ["JobLine", "job_in_words"]

LEFT_OUT_FIRST: Final = ("tokens/s", "at once", "rows/s")
NEWS_S: Final = 10.0
"""Seconds between two lines that are not overwritten."""
NEWS_COLUMNS: Final = 200
TROUBLE_COLUMNS: Final = 70


class JobLine:
    """The last line on stderr while a job runs; a context manager that ends the line."""

    def __init__(self) -> None:
        self._is_shown = False
        self._is_terminal = sys.stderr.isatty()
        self._last_line_at = time.monotonic()

    def show(self, progress: JobProgress) -> None:
        """Overwrite the line; if stderr is no terminal, write a new one every `NEWS_S` seconds."""
        if self._is_terminal:
            line = job_in_words(progress, shutil.get_terminal_size().columns - 1)
            _write(f"\r\x1b[K{line}")
            self._is_shown = True
        elif time.monotonic() - self._last_line_at >= NEWS_S:
            self._last_line_at = time.monotonic()
            _write(f"{job_in_words(progress, NEWS_COLUMNS)}\n")

    def end(self) -> None:
        """Keep the line on the screen; the next output starts below it."""
        if self._is_shown:
            self._is_shown = False
            _write("\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def job_in_words(progress: JobProgress, columns: int) -> str:
    """Return the progress as a line of at most `columns` characters; the least important parts are left out first."""
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
