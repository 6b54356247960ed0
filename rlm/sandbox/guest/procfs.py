"""Facts about processes, read from `/proc` where the platform has it."""

from __future__ import annotations

import contextlib
import os
import sys
import time

__all__ = ["cpu_seconds_of", "crowd", "descendants", "is_child", "is_zombie", "virtual_bytes"]


def descendants(pid: int) -> list[int]:
    """Every process that descends from this one, where the platform tells."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        try:
            threads = os.listdir(f"/proc/{parent}/task")  # noqa: PTH208 - no pathlib here
        except OSError:
            continue
        for thread in threads:
            with contextlib.suppress(OSError), open(f"/proc/{parent}/task/{thread}/children", "rb") as file:  # noqa: PTH123
                children = [int(child) for child in file.read().split()]
                found += children
                waiting += children
    return found


def crowd(pid: int, spared: set[int]) -> int:
    """How many threads and processes descend from this one, besides those of some processes.

    Its own children that have ended are taken note of first; others that have ended still take a number.
    """
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    count = 0
    for descendant in descendants(pid):
        if descendant not in spared:
            with contextlib.suppress(OSError):
                count += len(os.listdir(f"/proc/{descendant}/task"))  # noqa: PTH208 - no pathlib here
    return count


def is_zombie(pid: int) -> bool:
    """Whether a process has ended and only waits to be noticed."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - no pathlib here
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True


def virtual_bytes() -> int:
    """How much address space this process has, or 0 where nobody tells."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - no pathlib here
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def is_child(pid: int, parent: int) -> bool:
    """Whether one process was forked by the other; true as well where the platform does not tell."""
    if sys.platform != "linux":
        return True
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - no pathlib here
            return int(file.read().rpartition(b")")[2].split()[1]) == parent
    except OSError:
        return False


def cpu_seconds_of(pid: int) -> float:
    """How much processor time a process has used, or 0 where nobody tells."""
    try:
        # The kernel's clock of another process: its number inverted, times eight, plus two (clock_getcpuclockid).
        return time.clock_gettime((~pid << 3) | 2) if sys.platform == "linux" else 0.0
    except OSError:
        return 0.0
