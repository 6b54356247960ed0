"""How far a job over rows is: one line of a terminal that is written over, or elsewhere a line now and then."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Self

import click

from rlm.display.text import count, money, one_line, seconds

if TYPE_CHECKING:
    from rlm.bulk import Progress

__all__ = ["ProgressLine", "in_words"]

LEFT_OUT_FIRST = ("tokens/s", "at once", "rows/s")
NEWS_S = 10.0
"""Seconds between two lines where they are not written over."""
NEWS_COLUMNS = 200
TROUBLE_COLUMNS = 70


class ProgressLine:
    """The last line on stderr, while it is shown; a context manager that ends it."""

    def __init__(self) -> None:
        self._is_shown = False
        self._is_terminal = sys.stderr.isatty()
        self._told_at = time.monotonic()

    def show(self, progress: Progress) -> None:
        """Write the line, over the one before; where that cannot be, as one of its own, if it is time for it."""
        if not self._is_terminal:
            if time.monotonic() - self._told_at >= NEWS_S:
                self._told_at = time.monotonic()
                click.echo(in_words(progress, NEWS_COLUMNS), err=True)
            return
        line = in_words(progress, shutil.get_terminal_size().columns - 1)
        click.echo(f"\r\x1b[K{line}", err=True, nl=False)
        self._is_shown = True

    def end(self) -> None:
        """Leave the line as it is; what comes next stands below it."""
        if self._is_shown:
            self._is_shown = False
            click.echo(err=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def in_words(progress: Progress, columns: int) -> str:
    """The progress as a line of at most so many characters; what is needed least is left out first."""
    parts = list(_parts(progress))
    for name in LEFT_OUT_FIRST:
        if len(" · ".join(parts)) <= columns:
            break
        parts = [part for part in parts if not part.endswith(name)]
    return " · ".join(parts)[:columns]


def _parts(progress: Progress) -> list[str]:
    cap = f" of {money(progress.budget_usd)}" if progress.budget_usd is not None else ""
    left = progress.seconds_left
    parts = [
        f"{progress.rows:,} of {count(progress.total, 'row')}",
        f"{progress.rows_per_second:,.0f} rows/s",
        f"{progress.tokens_per_second:,.0f} tokens/s" if progress.tokens else "",
        f"{money(progress.cost_usd)}{cap}" if progress.cost_usd is not None else "",
        f"{progress.failed:,} failed" if progress.failed else "",
        f"{progress.concurrency:,} at once",
        one_line(progress.trouble, TROUBLE_COLUMNS) if progress.trouble else "",
        f"{seconds(left)} left" if left is not None and progress.rows < progress.total else "",
    ]
    return [part for part in parts if part]
