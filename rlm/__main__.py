"""The `rlm` command, also as `python -m rlm`.

Ctrl-C never prints a traceback. While the command is imported, and after it has ended, nothing needs cleaning up, so
the process exits at once. In between, the command cancels its runs and prints what was spent.
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
    """Run the command line of this process; return the exit code."""
    # Another handler stays: `nohup` and background shells ignore SIGINT.
    replaceable = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if replaceable:
        signal.signal(signal.SIGINT, _exit_at_once)
    from rlm.cli import main as run

    try:
        if replaceable:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return run()
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        if replaceable:
            signal.signal(signal.SIGINT, _exit_at_once)


def _exit_at_once(_signal: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
