"""What the guest does to itself so that a cell can do no harm, in tiers, each tried before it is claimed.

    process    a process of its own with a clean environment, its own scratch folder, and limits: memory, files,
               file size, processes, core dumps; no new privileges; a leash that kills it when the supervisor ends
    confined   and Landlock (files: read what Python needs, write scratch; no signals to the outside) and seccomp
               (no sockets, no programs, no signals, no namespaces, no debugging, no kernel interfaces)
    isolated   and namespaces of its own: users, processes, network, mounts, IPC; scratch in memory, with a quota

Everything is the standard library and ctypes. What this platform or kernel does not have is left out and named in
the report. The supervisor calls `enter_namespaces` once and `probe` to learn what holds; every worker is a
descendant of one process that called `confine`.
"""

from __future__ import annotations

import contextlib
import marshal  # noqa: TID251 - between two processes of the guest that have run no cell
import os
import sys

from . import landlock, limits, namespaces, seccomp, users
from .libc import PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, Refused, call
from .trials import ATTEMPTS, in_child, is_refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["adopt_orphans", "confine", "confine_and_try", "isolate", "probe", "yield_to_supervisor"]


M_ARENA_MAX = -8
FIRST, ORDINARY, LATER = -20, 0, 10


def isolate(settings: dict[str, Any], missing: dict[str, str]) -> list[str]:
    """Everything that is asked for and that this machine gives; the names of what holds."""
    levels: list[str] = []
    if settings["confine"]:
        stays_root = users.become_private_user(settings["scratch"])
        if stays_root:
            missing["private user"] = stays_root
    if settings["namespaces"]:
        reason = namespaces.enter_namespaces(
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
    is_root = os.getuid() == 0
    if not is_root and (settings["quota"] or os.getuid() >= users.PRIVATE_USERS):
        settings["counts_processes"] = settings["bounds_processes"] = True
        levels.append("process limit")
    elif settings["quota"] and namespaces.numbers_are_limited(settings["processes"]):
        settings["bounds_processes"] = True
        levels.append("process limit")
    else:
        come_first()
        missing["process limit"] = "the kernel does not count them for this user: they are watched instead"
    held, refused = probe(settings)
    missing.update(refused)
    return levels + held


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, so that none escapes."""
    with contextlib.suppress(Refused, AttributeError):
        call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def come_first() -> None:
    """Be scheduled before any number of processes a cell could start; only root may, and only it needs to."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, FIRST)


def yield_to_supervisor() -> None:
    """In a worker: undo `come_first`; where it was not allowed, step back instead."""
    with contextlib.suppress(OSError):
        came_first = os.getpriority(os.PRIO_PROCESS, 0) == FIRST
        os.setpriority(os.PRIO_PROCESS, 0, ORDINARY if came_first else LATER)


def probe(settings: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """What a confined process can and cannot do, found by trying in a throw-away one."""
    told = in_child(lambda: marshal.dumps(confine_and_try(settings)))
    try:
        held, missing = marshal.loads(told)  # noqa: S302 - of a child that has run no cell
    except (EOFError, ValueError, TypeError):
        return [], {"confinement": f"the trial ended early: {told.decode('utf-8', 'replace')[:200]}"}
    return held, missing


def confine_and_try(settings: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Confine this process and try what it can do: what is in force, and what is not and why."""
    missing = confine(settings)
    held = [name for name, attempts in ATTEMPTS.items() if all(map(is_refused, attempts))]
    for name in ATTEMPTS:
        if name not in held:
            missing.setdefault(
                name, missing.get("landlock" if name == "files" else "seccomp", "tried: not refused")
            )
    return held, missing


def confine(settings: dict[str, Any]) -> dict[str, str]:
    """Limit this process and all it will start, for good; what could not be done, and why."""
    missing: dict[str, str] = {}
    limits.limit_resources(settings)
    with contextlib.suppress(OSError, AttributeError):
        users.drop_capabilities()
    with contextlib.suppress(Refused, AttributeError):
        # Each thread would reserve 64 MB of addresses for itself, which count as memory.
        call("mallopt", M_ARENA_MAX, 1)
    if sys.platform != "linux":
        return {"landlock": f"{sys.platform} has none", "seccomp": f"{sys.platform} has none"}
    try:
        call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    except Refused as error:
        return {"landlock": str(error), "seccomp": str(error)}
    if not settings["confine"]:
        return {"landlock": "not asked for", "seccomp": "not asked for"}
    measures: dict[str, Callable[[], None]] = {
        "landlock": lambda: landlock.restrict_files(settings["scratch"]),
        "seccomp": lambda: seccomp.filter_calls(may_truncate=landlock.landlock_truncates()),
    }
    for name, measure in measures.items():
        try:
            measure()
        except OSError as error:
            missing[name] = str(error)
    return missing
