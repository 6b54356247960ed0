"""Repair of what a cell changes in the interpreter that it shares with later cells and with the worker's own code.

What is not repaired here counts as damage: a worker that cannot fork the next one is rolled back (`supervisor`).
"""

from __future__ import annotations

import builtins
import contextlib
import signal
import sys

from .echo import show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = [
    "allow_copies_without_mode",
    "cancel_timers",
    "restore_builtins",
    "restore_handlers",
    "suspend_handlers",
]


def restore_builtins(pristine: dict[str, Any]) -> None:
    """Put back the builtins that a cell deleted or replaced, and the hooks; keep names that it added."""
    dict.update(vars(builtins), pristine)
    sys.displayhook = show
    sys.excepthook = sys.__excepthook__


def cancel_timers() -> None:
    """Cancel the timers of a cell: their signals would otherwise end the waiting worker."""
    for name in ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF"):
        signal.setitimer(getattr(signal, name), 0)


def suspend_handlers() -> dict[int, Any]:
    """Ignore each signal that a cell handles, and return its handlers for `restore_handlers`.

    While no cell runs, a handler of a cell would run inside the worker's own code, and may raise in it.
    """
    handlers: dict[int, Any] = {}
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if callable(handler) and not isinstance(handler, signal.Handlers):
            handlers[number] = handler
            signal.signal(number, signal.SIG_IGN)
        elif number == signal.SIGCHLD and handler is signal.SIG_IGN:
            handlers[number] = handler
    if signal.SIGCHLD in handlers:
        # Ignored, the kernel would reap children itself, and REAP could not learn how one ended.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return handlers


def restore_handlers(handlers: dict[int, Any]) -> None:
    """Install the handlers of earlier cells again, for the cell that begins."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


def allow_copies_without_mode() -> None:
    """Make `shutil.copy` and similar functions succeed although seccomp refuses to set the copy's mode and times."""
    import shutil

    for name in ("copymode", "copystat"):
        setattr(shutil, name, _without_permission_error(getattr(shutil, name)))


def _without_permission_error(function: Callable[..., None]) -> Callable[..., None]:
    def copied(*arguments: Any, **options: Any) -> None:
        with contextlib.suppress(PermissionError):
            function(*arguments, **options)

    copied.__name__, copied.__doc__ = function.__name__, function.__doc__
    return copied
