"""Limits of the kernel (`setrlimit`) on the processes that run cells: memory, open files, file size.

They bound each process: its memory, its open files, the size of one file. The sum over several processes is bounded
only by the number of processes; a cgroup around the guest would bound the sum itself.

Hard limits are set once. Soft limits are lower while a cell runs, by a margin: after a MemoryError or with all files
open, the worker itself can still report the cell and fork. A cell can raise its soft limits and use up the margin; it
then loses its own report.
"""

from __future__ import annotations

import contextlib
import resource

from .procfs import address_space_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

__all__ = ["MAX_OPEN_FILES", "SET_LIMITS", "cell_limits", "memory_limit", "set_limits"]

MAX_OPEN_FILES = 256
MARGIN_FILES = 64
MARGIN_BYTES = 64 << 20
MARGIN_PROCESSES = 8
SET_LIMITS: set[str] = set()
"""Names of the limits that this process has set for itself, and so may move."""


def set_limits(settings: dict[str, Any]) -> None:
    """Set the hard limits of this process and of all it will start."""
    wanted = {
        "RLIMIT_AS": address_space_bytes() + settings["memory_bytes"] + MARGIN_BYTES,
        "RLIMIT_NOFILE": MAX_OPEN_FILES + MARGIN_FILES,
        "RLIMIT_NPROC": settings["processes"] + MARGIN_PROCESSES,
        "RLIMIT_FSIZE": settings["scratch_bytes"],
        "RLIMIT_CORE": 0,  # a core dump would hold the context
        "RLIMIT_MEMLOCK": 0,  # locked memory cannot be swapped out
    }
    if not settings["counts_processes"]:
        del wanted["RLIMIT_NPROC"]  # it would count processes of the same user that are not ours
    for name, limit in wanted.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (limit, limit))
            SET_LIMITS.add(name)


@contextlib.contextmanager
def cell_limits() -> Iterator[None]:
    """Keep the margin from the cell that runs in this block."""
    _set_soft_limits(margins=1)
    try:
        yield
    finally:
        _set_soft_limits(margins=0)


def _set_soft_limits(*, margins: int) -> None:
    by_name = {"RLIMIT_AS": MARGIN_BYTES, "RLIMIT_NOFILE": MARGIN_FILES, "RLIMIT_NPROC": MARGIN_PROCESSES}
    for name, margin in by_name.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            limit = getattr(resource, name)
            hard = resource.getrlimit(limit)[1]
            if hard != resource.RLIM_INFINITY and name in SET_LIMITS:
                resource.setrlimit(limit, (hard - margin * margins, hard))


@contextlib.contextmanager
def memory_limit(extra_bytes: int) -> Iterator[None]:
    """Let this process allocate so many bytes more in this block; beyond, `MemoryError`. No limit without `/proc`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = address_space_bytes() + extra_bytes + MARGIN_BYTES
    try:
        if soft == resource.RLIM_INFINITY or wanted < soft:
            resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
