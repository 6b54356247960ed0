"""System calls that Python has no function for, made through ctypes and the C library."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["LibcError", "call", "libc"]

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP = 1, 4, 22
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
CLONE_NEWTIME, CLONE_NEWCGROUP = 0x00000080, 0x02000000
NEW_NAMESPACES = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET


class LibcError(OSError):
    """The kernel refused a call, or this platform does not have it."""


def libc() -> Any:
    """Return the C library; raises `LibcError` where ctypes is missing, as in some small images."""
    try:
        import ctypes

        return ctypes.CDLL(None, use_errno=True)
    except (ImportError, OSError, TypeError) as error:
        raise LibcError(f"no ctypes: {error}") from None


def call(name: str, *arguments: Any) -> int:
    """Call a function of the C library; raises `LibcError` with its error if it returns less than 0."""
    function = getattr(libc(), name)
    import ctypes

    result = int(function(*arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise LibcError(number, f"{name}: {os.strerror(number)}")
    return result
