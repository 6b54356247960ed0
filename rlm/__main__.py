"""The `rlm` command, also as `python -m rlm`.

From the first import to the interpreter's end Ctrl-C is quiet. While the command is imported, and after it has
ended, nothing is in flight that would have to be put in order: there the process just leaves. In between it is the
command's to cancel what runs and say what was spent.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["main"]

INTERRUPTED = 130


def main() -> int:
    """Run the command line of this process; gives the exit code."""
    ours = (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )  # not where it is ignored, as by nohup
    if ours:
        signal.signal(signal.SIGINT, _leave)
    from rlm.cli import main as run

    try:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return run()
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        if ours:
            signal.signal(signal.SIGINT, _leave)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
