"""Namespaces of the guest's own: users, processes, network, mounts, IPC and host name.

Prevents: seeing or signalling other processes; any network, also the loopback of the machine; filling the disk, since
scratch is a file system in memory with a quota of bytes and of entries; outliving the supervisor, since the kernel
kills every process of a process namespace when its process 1 ends.
Remains: the mounts are the machine's own, so paths can be seen where Landlock allows it or by `stat`. Containers
without the right to create user namespaces, and distributions that restrict them, have none of this.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from .folders import max_entries
from .libc import NEW_NAMESPACES, PR_SET_PDEATHSIG, LibcError, call, libc
from .limits import MAX_OPEN_FILES
from .trials import in_child

__all__ = ["enter", "pids_are_limited"]

RESERVED_PIDS = 300
SPARE_PIDS = 16
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000


def enter(scratch: str, scratch_bytes: int, processes: int, *, remove: bool) -> str:
    """Continue as process 1 of new namespaces; return '' or the reason why not.

    The calling process stays outside: it waits for the one that returns from here, and then ends with its status.

    Args:
        scratch: folder over which a file system in memory is mounted.
        scratch_bytes: its quota.
        processes: how many processes and threads the cells may have.
        remove: have the process outside remove the scratch folder at the end.
    """
    if sys.platform != "linux":
        return f"{sys.platform} has no namespaces"
    with contextlib.suppress(LibcError):
        libc()  # loaded here once, and not by each of the processes that follow
    reason = _try_to_enter(scratch, scratch_bytes, processes)
    if reason:
        return reason
    _enter(scratch, scratch_bytes, processes, remove=remove)
    return ""


def _try_to_enter(scratch: str, scratch_bytes: int, processes: int) -> str:
    """Enter in a child that then ends: `unshare` may succeed and a later step fail, which cannot be undone."""

    def trial() -> bytes:
        _enter(scratch, scratch_bytes, processes, remove=False)
        return b"ok"

    output = in_child(trial)
    return "" if output == b"ok" else output.decode("utf-8", "replace") or "the kernel ended the trial"


def _enter(scratch: str, scratch_bytes: int, processes: int, *, remove: bool) -> None:
    user, group = os.getuid(), os.getgid()
    call("unshare", NEW_NAMESPACES)
    for file, text in (
        ("setgroups", "deny"),  # the kernel asks for this before an ordinary user may map a group
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        with open(f"/proc/self/{file}", "w") as writing:  # noqa: PTH123 - no pathlib in guests
            writing.write(text)
    call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)  # our mounts must not reach the machine's
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    options = f"size={scratch_bytes},nr_inodes={max_entries(scratch_bytes)},mode=700"
    call("mount", b"scratch", scratch.encode(), b"tmpfs", flags, options.encode())
    os.chdir(scratch)  # the folder below the mount was the working directory
    _become_process_1(scratch if remove else "")
    call("mount", b"proc", b"/proc", b"proc", flags, None)  # the old one shows the machine's processes
    _limit_pids(processes)


def _become_process_1(remove: str) -> None:
    """Return in a child: `unshare` puts only children into the new process namespace, the first as process 1.

    If the process outside is killed, the kernel kills process 1 (PDEATHSIG), and with it the whole namespace.
    """
    pid = os.fork()
    if pid:
        os.closerange(0, 2)  # a copy of the pipes here would hide from the host that the guest has ended
        os.closerange(3, MAX_OPEN_FILES)
        status = os.waitpid(pid, 0)[1]
        if remove:
            os.chdir("/")
            with contextlib.suppress(OSError):
                call("umount2", remove.encode(), 0)
            with contextlib.suppress(OSError):
                os.rmdir(remove)  # noqa: PTH106 - no pathlib in guests
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    call("prctl", PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    os.setsid()  # else its process group is 0 in here, which is no group that could be signalled


def _limit_pids(processes: int) -> None:
    """Leave few process numbers in this namespace: a fork bomb ends there, root's too (Linux 6.14).

    The kernel uses numbers below RESERVED_PIDS only once, so the counting starts above them.
    """
    for name, number in (("pid_max", _pid_max(processes)), ("ns_last_pid", RESERVED_PIDS)):
        with contextlib.suppress(OSError), open(f"/proc/sys/kernel/{name}", "w") as writing:  # noqa: PTH123
            writing.write(str(number))


def pids_are_limited(processes: int) -> bool:
    """Return True if this namespace runs out of process numbers soon enough."""
    try:
        with open("/proc/sys/kernel/pid_max") as file:  # noqa: PTH123 - no pathlib in guests
            return int(file.read()) <= _pid_max(processes)
    except (OSError, ValueError):
        return False


def _pid_max(processes: int) -> int:
    return RESERVED_PIDS + processes + SPARE_PIDS
