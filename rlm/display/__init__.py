"""Events on a terminal, or as plain lines in a pipe or a log.

    RLM_REPL(..., on_event=show_on_stderr())

A display is a callable that takes events, as `Emit` does, and has a `close`. It never raises into the run.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from rlm.display.display import Display
from rlm.display.lines import PlainLines

if TYPE_CHECKING:
    from typing import TextIO

__all__ = ["Display", "PlainLines", "is_live_terminal", "show_on_stderr"]


def show_on_stderr(*, verbosity: int = 0) -> Display:
    """A live view where stderr is a terminal that can redraw lines, plain lines otherwise.

    Args:
        verbosity: 0 for turns, cells and batches; 1 adds whole cells, child runs and retries; 2 adds every call.
    """
    if is_live_terminal(sys.stderr):
        from rlm.display.live import LiveView

        return LiveView(sys.stderr, verbosity=verbosity)
    return PlainLines(sys.stderr, verbosity=verbosity)


def is_live_terminal(file: TextIO | None) -> bool:
    """Whether lines can be redrawn on it: a terminal that is not dumb, in an encoding with line drawing."""
    try:
        return (
            file is not None
            and file.isatty()
            and os.environ.get("TERM", "") not in {"", "dumb", "unknown"}
            and (file.encoding or "").lower().startswith("utf")
        )
    except ValueError:  # a closed file
        return False
