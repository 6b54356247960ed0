"""What the guest does to itself so that a cell can do no harm, in tiers, each tried before it is claimed."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["adopt_orphans", "confine", "descendants", "is_zombie", "raise_descriptor"]

FLOOR = 200
PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> bool:
    """Become the parent of every descendant whose own parent ends, so that none escapes; whether that worked."""
    try:
        import ctypes

        return bool(ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except (ImportError, OSError, AttributeError):
        return False


def raise_descriptor(descriptor: int) -> int:
    """Move a descriptor out of the way of those a cell opens."""
    import fcntl

    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FLOOR)
    os.close(descriptor)
    return moved


def confine(settings: dict[str, Any]) -> None:
    """Limit this process and all it will start, for good."""
    import resource

    used = virtual_bytes()
    most = used + settings["memory_bytes"]
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def virtual_bytes() -> int:
    """How much address space this process has."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def descendants(pid: int) -> list[int]:
    """Every process that descends from this one, where the platform tells."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        try:
            with open(f"/proc/{parent}/task/{parent}/children", "rb") as file:
                children = [int(child) for child in file.read().split()]
        except OSError:
            continue
        found += children
        waiting += children
    return found


def is_zombie(pid: int) -> bool:
    """Whether a process has ended and only waits to be noticed."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True
