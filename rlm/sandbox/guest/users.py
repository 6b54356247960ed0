"""The user that cells run as, and the capabilities that they give up."""

from __future__ import annotations

import contextlib
import os

from .libc import PR_SET_DUMPABLE, LibcError, call, libc

__all__ = ["PRIVATE_USERS", "become_private_user", "drop_capabilities"]

PRIVATE_USERS = 0x70000000
CAPABILITY_VERSION = 0x20080522


def become_private_user(scratch: str) -> str:
    """As root, become a user that owns no file but scratch and has no other process; return '' or the reason why not.

    Prevents: access to root's files where Landlock is missing; a fork bomb, since RLIMIT_NPROC does not bind root, in
    a user namespace neither. A process that is not root keeps its user, and with it that user's files.
    """
    if os.geteuid() != 0:
        return ""
    if not readable_by_all(os.__file__):
        return f"cells run as root, because other users cannot read {os.path.dirname(os.__file__)}"  # noqa: PTH120 - no pathlib in guests
    user = PRIVATE_USERS + os.getpid()  # another one for each guest of this machine
    try:
        os.chown(scratch, user, user)
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    except OSError as error:
        return f"cells run as root, because changing the user failed: {error}"
    with contextlib.suppress(LibcError):
        # Changing the user cleared this. Then /proc/self belongs to root, and no user namespace can be set up.
        call("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)
    return ""


def readable_by_all(path: str) -> bool:
    """Return True if any user may read this file."""
    try:
        if not os.stat(path).st_mode & 0o004:  # noqa: PTH116 - no pathlib in guests: it is slow to import
            return False
        while path != os.path.dirname(path):  # noqa: PTH120
            path = os.path.dirname(path)  # noqa: PTH120
            if not os.stat(path).st_mode & 0o001:  # noqa: PTH116
                return False
    except OSError:
        return False
    return True


def drop_capabilities() -> None:
    """Give up the capabilities of root, and those that process 1 of a user namespace has in it; raises `LibcError`."""
    libc()  # raises `LibcError` where there is no ctypes
    import ctypes

    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    none = (ctypes.c_uint32 * 6)()
    call("capset", header, none)
