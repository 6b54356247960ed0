"""Reasons why a guest did not start, each in one sentence with its cure."""

from __future__ import annotations

import errno
import re
import resource
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlm.sandbox.launchers.command import Launcher

__all__ = ["command_failure", "guest_failure", "resource_failure"]

REFUSAL = "rlm guest: "
LINE_CHARS = 300
TOO_OLD = "{python} is older than Python 3.11, which a guest needs: pass local(python=...) with a newer one"
LIBRARY = (
    "{python} does not find a shared library ({line}): set LD_LIBRARY_PATH (DYLD_LIBRARY_PATH on macOS) as for that "
    "Python, and name it in the launcher's inherit"
)
# What the log of a guest contains → the sentence.
KNOWN = (
    (r"future feature annotations is not defined|Unknown option: -I", TOO_OLD),
    (r"error while loading shared libraries|Error loading shared library|Library not loaded", LIBRARY),
    (
        r"No module named '?encodings|failed to get the Python codec",
        (
            "{python} does not find its standard library: set PYTHONHOME as for that Python, and name it in the launcher's "
            "inherit; or unset it, if it belongs to another Python"
        ),
    ),
    (
        r"pyenv: .*(command not found|is not installed)",
        "{python} is a shim of pyenv without a Python of that version: pass the path that `pyenv prefix` shows",
    ),
    (
        r"No usable temporary directory",
        "the guest found no folder to write temporary files in: set TMPDIR to one, or mount a writable /tmp",
    ),
    (
        r"MemoryError|Cannot allocate memory",
        "memory is exhausted or limited ({line}): raise the limit (ulimit -v, or the container's)",
    ),
    (
        r"BlockingIOError|Resource temporarily unavailable",
        "no further process may start ({line}): raise the limit (ulimit -u, or the container's --pids-limit)",
    ),
)


def resource_failure(error: OSError) -> str:
    """Return why the host could not make the log or the scratch folder of a guest."""
    what = f"the log file or scratch folder of a guest could not be made: {error}"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{what}: {_open_files_cure()}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{what}: free some space, or set TMPDIR to a folder with space"
    return f"{what}: set TMPDIR to a folder that this user may write to"


def command_failure(launcher: Launcher, error: OSError) -> str:
    """Return why the command of a launcher could not be executed."""
    cures = {
        errno.ENOENT: "install it, or correct the launcher's prefix and python",
        errno.EACCES: "give a path that this user may execute",
        errno.ENOEXEC: "it is no program for this machine; give another path",
        errno.EMFILE: _open_files_cure(),
        errno.ENFILE: _open_files_cure(),
        errno.EAGAIN: "raise the limit of processes (ulimit -u, or the container's --pids-limit)",
        errno.ENOMEM: "raise the limit of memory (ulimit -v, or the container's)",
    }
    cure = cures.get(error.errno or 0)
    return f"the {launcher.name} launcher did not start: {error}" + (f": {cure}" if cure else "")


def guest_failure(launcher: Launcher, reason: str, log: str, status: int | None) -> str:
    """Return why a guest that was started did not get ready.

    Args:
        launcher: started it.
        reason: what the host observed.
        log: the end of the guest's log.
        status: of its exit; negative for a signal.
    """
    start = f"the guest did not start with the {launcher.name} launcher: "
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for line in lines:
        if line.startswith(REFUSAL):
            return start + line.removeprefix(REFUSAL)
    for pattern, sentence in KNOWN:
        for line in lines:
            if re.search(pattern, line):
                return start + sentence.format(python=launcher.python, line=line[:LINE_CHARS])
    if lines:
        return f"{start}{reason}; its log ends: {lines[-1][:LINE_CHARS]}"
    if status:
        ended = f"signal {-status} ended it" if status < 0 else f"it ended with exit status {status}"
        return f"{start}{ended} and wrote nothing to its log; try its command by hand: {_words(launcher)}"
    return f"{start}{reason}, and it wrote nothing to its log; try its command by hand: {_words(launcher)}"


def _words(launcher: Launcher) -> str:
    return " ".join([*launcher.prefix, launcher.python, "-I", "-c", "'print(1)'"])


def _open_files_cure() -> str:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return f"this process may have {soft} open files; close some, or raise the limit (ulimit -n)"
