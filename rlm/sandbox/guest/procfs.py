"""Facts about processes, read from `/proc` on Linux."""

from __future__ import annotations

import contextlib
import os
import sys
import time

__all__ = [
    "address_space_bytes",
    "count_tasks",
    "cpu_seconds_of",
    "descendants",
    "is_alone",
    "is_child",
    "is_zombie",
]


def descendants(pid: int) -> list[int]:
    """Return the numbers of all processes that descend from this one; none where there is no `/proc`."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        try:
            threads = os.listdir(f"/proc/{parent}/task")  # noqa: PTH208 - no pathlib in guests: slow to import
        except OSError:
            continue
        for thread in threads:
            with contextlib.suppress(OSError), open(f"/proc/{parent}/task/{thread}/children", "rb") as file:  # noqa: PTH123
                children = [int(child) for child in file.read().split()]
                found += children
                waiting += children
    return found


def count_tasks(pid: int, spared: set[int]) -> int:
    """Return the number of threads and processes that descend from this process, without those in `spared`.

    Children of this process that have ended are reaped first, and zombies of those in `spared` are not this cell's;
    other zombies count, since each takes a number.
    """
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    count = 0
    for descendant in descendants(pid):
        if descendant not in spared and not _is_zombie_of(descendant, spared):
            with contextlib.suppress(OSError):
                count += len(os.listdir(f"/proc/{descendant}/task"))  # noqa: PTH208
    return count


def is_zombie(pid: int) -> bool:
    """Return True if a process has ended, reaped or not."""
    try:
        return _stat_fields(pid)[0] in (b"Z", b"X")
    except OSError:
        return True


def _is_zombie_of(pid: int, parents: set[int]) -> bool:
    try:
        state, parent = _stat_fields(pid)[:2]
    except OSError:
        return False
    return state == b"Z" and int(parent) in parents


def is_alone(pid: int) -> bool:
    """Return False if a process has several threads, or a timer that may signal it; True where there is no `/proc`."""
    try:
        if len(os.listdir(f"/proc/{pid}/task")) > 1:  # noqa: PTH208
            return False
        with open(f"/proc/{pid}/timers", "rb") as file:  # noqa: PTH123
            return not file.read(1)
    except OSError:
        return True


def is_child(pid: int, parent: int) -> bool:
    """Return True if `parent` forked this process, and always where there is no `/proc`."""
    if sys.platform != "linux":
        return True
    try:
        return int(_stat_fields(pid)[1]) == parent
    except OSError:
        return False


def _stat_fields(pid: int) -> list[bytes]:
    """Return the fields after the name, which may itself hold spaces and parentheses: state, parent, and more."""
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
        return file.read().rpartition(b")")[2].split()


def cpu_seconds_of(pid: int) -> float:
    """Return the processor time that a process has used, or 0 if it has ended or this is not Linux."""
    try:
        # The kernel's clock of another process: its number inverted, times eight, plus two (clock_getcpuclockid).
        return time.clock_gettime((~pid << 3) | 2) if sys.platform == "linux" else 0.0
    except OSError:
        return 0.0


def address_space_bytes() -> int:
    """Return the size of this process's address space, or 0 where there is no `/proc`."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
