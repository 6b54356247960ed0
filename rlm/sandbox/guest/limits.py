"""Resource limits of the processes that run cells, with a margin that only the code around a cell may use."""

from __future__ import annotations

import contextlib
import resource

from .procfs import virtual_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

__all__ = ["OPEN_FILES", "SET_LIMITS", "limit_resources", "limited", "within_memory"]


OPEN_FILES = 256
MARGIN_FILES = 64
MARGIN_BYTES = 64 << 20
MARGIN_PROCESSES = 8
SET_LIMITS: set[str] = set()  # which of the limits this process has set for itself


def limit_resources(settings: dict[str, Any]) -> None:
    """Set this process's limits; of memory and open files the harness keeps a margin for itself."""
    wanted = {
        "RLIMIT_AS": virtual_bytes() + settings["memory_bytes"] + MARGIN_BYTES,
        "RLIMIT_NOFILE": OPEN_FILES + MARGIN_FILES,
        "RLIMIT_NPROC": settings["processes"] + MARGIN_PROCESSES,
        "RLIMIT_FSIZE": settings["scratch_bytes"],
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
    }
    if not settings["counts_processes"]:
        del wanted["RLIMIT_NPROC"]
    for name, most in wanted.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (most, most))
            SET_LIMITS.add(name)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """A cell runs: the margin is not its to use."""
    _move_soft_limits(1)
    try:
        yield
    finally:
        _move_soft_limits(0)


def _move_soft_limits(cells: int) -> None:
    margins = {"RLIMIT_AS": MARGIN_BYTES, "RLIMIT_NOFILE": MARGIN_FILES, "RLIMIT_NPROC": MARGIN_PROCESSES}
    for name, margin in margins.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            limit = getattr(resource, name)
            hard = resource.getrlimit(limit)[1]
            if hard != resource.RLIM_INFINITY and name in SET_LIMITS:
                resource.setrlimit(limit, (hard - margin * cells, hard))


@contextlib.contextmanager
def within_memory(most: int) -> Iterator[None]:
    """Meanwhile this process may take so many bytes more, where the platform can hold it to that: `MemoryError`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = virtual_bytes() + most + MARGIN_BYTES
    try:
        if soft == resource.RLIM_INFINITY or wanted < soft:
            resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
