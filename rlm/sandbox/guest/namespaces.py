"""Namespaces: a view of the machine with no other processes, no network, and a scratch folder in memory."""

from __future__ import annotations

import contextlib
import os
import sys

from .folders import most_entries
from .libc import NEW_NAMESPACES, PR_SET_PDEATHSIG, Refused, call, libc
from .limits import OPEN_FILES
from .trials import in_child

__all__ = ["enter_namespaces", "numbers_are_limited"]


RESERVED_NUMBERS = 300
SPARE_NUMBERS = 16
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000


def enter_namespaces(scratch: str, scratch_bytes: int, processes: int, *, remove: bool) -> str:
    """Go on in namespaces of its own, as process 1 of them; '' or why not.

    It is tried in a throw-away child first, because a half-way entry cannot be undone. The calling process stays
    outside as the parent of the one that returns, and ends with it; it removes the scratch folder then, where asked.
    """
    if sys.platform != "linux":
        return f"{sys.platform} has no namespaces"
    with contextlib.suppress(Refused):
        libc()  # loaded here once, and not by each of the processes that follow
    reason = _try_namespaces(scratch, scratch_bytes, processes)
    if reason:
        return reason
    _enter(scratch, scratch_bytes, processes, remove=remove)
    return ""


def _try_namespaces(scratch: str, scratch_bytes: int, processes: int) -> str:
    def trial() -> bytes:
        _enter(scratch, scratch_bytes, processes, remove=False)
        return b"ok"

    told = in_child(trial)
    return "" if told == b"ok" else told.decode("utf-8", "replace") or "the kernel ended the trial"


def _enter(scratch: str, scratch_bytes: int, processes: int, *, remove: bool) -> None:
    user, group = os.getuid(), os.getgid()
    call("unshare", NEW_NAMESPACES)
    for file, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        with open(f"/proc/self/{file}", "w") as writing:  # noqa: PTH123 - no pathlib here
            writing.write(text)
    call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    options = f"size={scratch_bytes},nr_inodes={most_entries(scratch_bytes)},mode=700"
    call("mount", b"scratch", scratch.encode(), b"tmpfs", flags, options.encode())
    os.chdir(scratch)
    _become_first_process(scratch if remove else "")
    call("mount", b"proc", b"/proc", b"proc", flags, None)
    _limit_numbers(processes)


def _limit_numbers(processes: int) -> None:
    """Leave so many process numbers in this namespace: a fork bomb ends there, root's too (Linux 6.14).

    The kernel gives out numbers below RESERVED_NUMBERS only once, so the counting starts above them.
    """
    most = RESERVED_NUMBERS + processes + SPARE_NUMBERS
    for name, number in (("pid_max", most), ("ns_last_pid", RESERVED_NUMBERS)):
        with contextlib.suppress(OSError), open(f"/proc/sys/kernel/{name}", "w") as writing:  # noqa: PTH123
            writing.write(str(number))


def numbers_are_limited(processes: int) -> bool:
    """Whether this namespace runs out of process numbers soon enough, found by looking."""
    try:
        with open("/proc/sys/kernel/pid_max") as file:  # noqa: PTH123 - no pathlib here
            return int(file.read()) <= RESERVED_NUMBERS + processes + SPARE_NUMBERS
    except (OSError, ValueError):
        return False


def _become_first_process(remove: str) -> None:
    """Return in a child that is process 1; this process waits for it, removes a folder and ends as it does."""
    import signal

    pid = os.fork()
    if pid:
        os.closerange(0, 2)
        os.closerange(3, OPEN_FILES)
        status = os.waitpid(pid, 0)[1]
        if remove:
            os.chdir("/")
            with contextlib.suppress(OSError):
                call("umount2", remove.encode(), 0)
            with contextlib.suppress(OSError):
                os.rmdir(remove)  # noqa: PTH106 - no pathlib here
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    call("prctl", PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    os.setsid()
