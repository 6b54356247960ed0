"""Facts about processes, read from `/proc` where the platform has it."""

from __future__ import annotations

import contextlib
import os

__all__ = ["crowd", "descendants", "is_zombie", "virtual_bytes"]


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
