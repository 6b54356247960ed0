"""Show events on a terminal, or as plain lines in a pipe or a log.

    RLM_REPL(..., on_event=show_on_stderr())

`story` turns events into entries of a kind and a text; `plain` and `live` paint them. Both read `run_state`, which adds
the events up.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Protocol

from rlm.display.plain import PlainLines

if TYPE_CHECKING:
    from typing import TextIO

    from rlm.events import Event

__all__ = ["Display", "PlainLines", "is_live_terminal", "show_on_stderr"]


class Display(Protocol):
    """Listener that shows events. It is called in the thread of rlm's event loop, returns soon and never raises."""

    def __call__(self, event: Event) -> None:
        """Show one event."""
        ...

    def close(self) -> None:
        """Show the rest and leave the terminal clean. Idempotent."""
        ...


def show_on_stderr(*, verbosity: int = 0) -> Display:
    """Return a live view if stderr is a terminal that can redraw lines, plain lines otherwise.

    Args:
        verbosity: 0 for turns, cells and batches; 1 adds whole cells, child runs and retries; 2 adds every call.
    """
    if is_live_terminal(sys.stderr):
        from rlm.display.live import LiveView

        return LiveView(sys.stderr, verbosity=verbosity)
    return PlainLines(sys.stderr, verbosity=verbosity)


def is_live_terminal(file: TextIO | None) -> bool:
    """Return True if lines can be redrawn on `file`: a terminal that is not dumb and encodes line-drawing characters."""
    try:
        return (
            file is not None
            and file.isatty()
            and os.environ.get("TERM", "") not in {"", "dumb", "unknown"}
            and (file.encoding or "").lower().startswith("utf")
        )
    except ValueError:  # a closed file
        return False
