"""The order in which the guest confines itself, and the trial that finds out what is in force.

The supervisor calls `isolate` once, before it forks a worker. The first worker calls `confine` before it runs any
cell; every later worker is a fork of it, so the measures hold for all of them and cannot be undone.

    tier       measures, each in a module of its own
    process    a clean environment, a scratch folder; limits on memory, files, file size, core dumps (`limits`); no
               capabilities (`users`), no new privileges; killed with the supervisor (`worker_process`)
    confined   and Landlock for files and signals (`landlock`), seccomp for system calls (`seccomp`)
    isolated   and namespaces for processes, network, mounts, IPC; scratch in memory with a quota (`namespaces`)

The order matters. The private user comes first, while this process is still root. Namespaces come second: seccomp
would refuse them, and mounting scratch in them needs capabilities that `confine` drops. seccomp comes last, since it
refuses calls that the measures before it make.

What remains in every tier: bugs of the kernel that the allowed system calls reach, side channels, `stat` of any path,
and the sum of memory over several processes. In `process`, a hostile cell may do all that its user may do.
"""

from __future__ import annotations

import contextlib
import marshal  # noqa: TID251 - between two processes of the guest that have run no cell
import os
import sys

from . import landlock, limits, namespaces, seccomp, users
from .libc import PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, LibcError, call
from .trials import ATTEMPTS, in_child, is_refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["adopt_orphans", "confine", "confine_and_try", "isolate", "lower_priority", "probe"]

M_ARENA_MAX = -8
PRIORITY_RAISED, PRIORITY_NORMAL, PRIORITY_LOWERED = -20, 0, 10


def isolate(settings: dict[str, Any], missing: dict[str, str]) -> list[str]:
    """In the supervisor: take the measures that the settings ask for, and find out which hold.

    Args:
        settings: of START; gets `quota` (scratch is limited), `bounds_processes` and `counts_processes` (the kernel
            limits the number of processes, by RLIMIT_NPROC in the latter case).
        missing: gets the reason for each measure that could not be taken.

    Returns:
        The names of the measures in force.
    """
    levels: list[str] = []
    if settings["confine"]:
        stays_root = users.become_private_user(settings["scratch"])
        if stays_root:
            missing["private user"] = stays_root
    if settings["namespaces"]:
        reason = namespaces.enter(
            settings["scratch"],
            settings["scratch_bytes"],
            settings["processes"],
            remove=settings["owns_scratch"],
        )
        if reason:
            missing["namespaces"] = reason
        else:
            levels += ["namespaces", "scratch quota"]
            settings["quota"] = True
    # RLIMIT_NPROC counts all processes of a user, so it is of use only if the user has no others: in a user namespace
    # of our own, or as a private user. It never binds root; there the namespace's range of numbers does.
    if os.getuid() != 0 and (settings["quota"] or os.getuid() >= users.PRIVATE_USERS):
        settings["counts_processes"] = settings["bounds_processes"] = True
        levels.append("process limit")
    elif settings["quota"] and namespaces.pids_are_limited(settings["processes"]):
        settings["bounds_processes"] = True
        levels.append("process limit")
    else:
        raise_priority()
        missing["process limit"] = "the kernel does not count them for this user: they are watched instead"
    held, refused = probe(settings)
    missing.update(refused)
    return levels + held


def adopt_orphans() -> None:
    """Become the parent of each descendant whose parent ends, so that `procfs.descendants` finds all of them.

    Elsewhere than on Linux, a process that a cell has orphaned is not found and outlives the session.
    """
    with contextlib.suppress(LibcError, AttributeError):
        call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def raise_priority() -> None:
    """Get processor time before any number of the cell's processes, to count and kill them; only root may."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY_RAISED)


def lower_priority() -> None:
    """In a worker: undo `raise_priority`; if the supervisor could not raise its own, go below it instead."""
    with contextlib.suppress(OSError):
        was_raised = os.getpriority(os.PRIO_PROCESS, 0) == PRIORITY_RAISED
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY_NORMAL if was_raised else PRIORITY_LOWERED)


def confine(settings: dict[str, Any]) -> dict[str, str]:
    """In the first worker: confine this process and all it will start, for good.

    Returns:
        The reason for each measure that could not be taken.
    """
    limits.set_limits(settings)
    with contextlib.suppress(OSError, AttributeError):
        users.drop_capabilities()
    with contextlib.suppress(LibcError, AttributeError):
        # Each thread's own arena would reserve 64 MB of addresses, which RLIMIT_AS counts as memory.
        call("mallopt", M_ARENA_MAX, 1)
    if sys.platform != "linux":
        return {"landlock": f"{sys.platform} has none", "seccomp": f"{sys.platform} has none"}
    try:
        # No set-uid program gives privileges to a cell; without this, Landlock and seccomp would need root.
        call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        # No other process of the same user may read this one's memory and environment, or trace it.
        call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    except LibcError as error:
        return {"landlock": str(error), "seccomp": str(error)}
    if not settings["confine"]:
        return {"landlock": "not asked for", "seccomp": "not asked for"}
    measures: dict[str, Callable[[], None]] = {
        "landlock": lambda: landlock.restrict_files(settings["scratch"]),
        "seccomp": lambda: seccomp.filter_calls(may_truncate=landlock.handles_truncation()),
    }
    missing: dict[str, str] = {}
    for name, measure in measures.items():
        try:
            measure()
        except OSError as error:
            missing[name] = str(error)
    return missing


def probe(settings: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Confine a forked child as a worker will be, and return what it found: see `confine_and_try`."""
    output = in_child(lambda: marshal.dumps(confine_and_try(settings)))
    try:
        held, missing = marshal.loads(output)  # noqa: S302 - of a child that has run no cell
    except (EOFError, ValueError, TypeError):
        return [], {"confinement": f"the trial ended early: {output.decode('utf-8', 'replace')[:200]}"}
    return held, missing


def confine_and_try(settings: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Confine this process and try what no cell may do.

    Returns:
        The names of the kinds of attempts that were refused, and the reason for each that was not.
    """
    missing = confine(settings)
    held = [name for name, attempts in ATTEMPTS.items() if all(map(is_refused, attempts))]
    for name in ATTEMPTS:
        if name not in held:
            missing.setdefault(
                name, missing.get("landlock" if name == "files" else "seccomp", "tried: not refused")
            )
    return held, missing
