"""The user that cells run as, and the privileges that they give up."""

from __future__ import annotations

import contextlib
import os

from .libc import PR_SET_DUMPABLE, Refused, call

__all__ = ["PRIVATE_USERS", "become_private_user", "drop_capabilities"]


PRIVATE_USERS = 0x70000000
CAPABILITY_VERSION = 0x20080522


def become_private_user(scratch: str) -> str:
    """Root becomes a user that owns nothing and that nobody else is; '' or why not.

    Limits on processes do not bind root, and a namespace does not change that.
    """
    if os.geteuid() != 0:
        return ""
    if not readable_by_all(os.__file__):
        return f"root stays root: other users cannot read {os.path.dirname(os.__file__)}"  # noqa: PTH120 - no pathlib here
    user = PRIVATE_USERS + os.getpid()
    try:
        os.chown(scratch, user, user)
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    except OSError as error:
        return f"root stays root: {error}"
    with contextlib.suppress(Refused):
        call("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)  # else /proc/self is root's and no user can be mapped
    return ""


def readable_by_all(path: str) -> bool:
    """Whether any user could read this file."""
    try:
        if not os.stat(path).st_mode & 0o004:  # noqa: PTH116 - no pathlib here: it is slow to import
            return False
        while path != os.path.dirname(path):  # noqa: PTH120
            path = os.path.dirname(path)  # noqa: PTH120
            if not os.stat(path).st_mode & 0o001:  # noqa: PTH116
                return False
    except OSError:
        return False
    return True


def drop_capabilities() -> None:
    """Give up what root may do, and what a namespace's first process may do in it."""
    import ctypes

    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    none = (ctypes.c_uint32 * 6)()
    call("capset", header, none)
