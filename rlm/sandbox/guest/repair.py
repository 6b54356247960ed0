"""Repair of what cells change in the interpreter that they share with later cells."""

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
    "cancel_timers",
    "forgive_refused_modes",
    "restore_builtins",
    "restore_handlers",
    "set_handlers_aside",
]


def restore_builtins(pristine: dict[str, Any]) -> None:
    """Give back the builtins that a cell deleted or replaced; what it added stays."""
    now = vars(builtins)
    dict.update(now, pristine)
    sys.displayhook = show
    sys.excepthook = sys.__excepthook__


def cancel_timers() -> None:
    """A timer of a cell ends with it: it would go off in a process that waits, and end it."""
    for name in ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF"):
        signal.setitimer(getattr(signal, name), 0)


def set_handlers_aside() -> dict[int, Any]:
    """While no cell runs no handler of a cell does; those to put back when the next one runs."""
    aside: dict[int, Any] = {}
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if callable(handler) and not isinstance(handler, signal.Handlers):
            aside[number] = handler
            signal.signal(number, signal.SIG_IGN)
        elif number == signal.SIGCHLD and handler is signal.SIG_IGN:
            aside[number] = handler
    if signal.SIGCHLD in aside:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, nobody could learn how a child ended
    return aside


def restore_handlers(handlers: dict[int, Any]) -> None:
    """Put the handlers of cells back in their place."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


def forgive_refused_modes() -> None:
    """Let `shutil.copy` and its kin copy files: that a copy keeps a mode and times of its own here is no failure."""
    import shutil

    for name in ("copymode", "copystat"):
        setattr(shutil, name, _forgiving(getattr(shutil, name)))


def _forgiving(function: Callable[..., None]) -> Callable[..., None]:
    def copied(*arguments: Any, **options: Any) -> None:
        with contextlib.suppress(PermissionError):
            function(*arguments, **options)

    copied.__name__, copied.__doc__ = function.__name__, function.__doc__
    return copied
