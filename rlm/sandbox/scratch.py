"""Folders for guests to write in, none of which outlives its host for long.

A host that is killed cannot remove the folders of its guests. So each folder is locked by the host that made it,
for as long as that host lives, and the next host removes those that nobody holds any more.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

from rlm.sandbox.guest.hardening import empty_folder

if sys.platform != "win32":
    import fcntl

__all__ = ["Scratch", "remove_abandoned", "remove_folder"]

PREFIX = "rlm-guest-"


class Scratch:
    """A folder under the system's folder for temporary files. `remove` it; again is no error."""

    def __init__(self) -> None:
        remove_abandoned()
        self.path, self._lock = _made()

    def remove(self) -> None:
        """Remove the folder and all that is in it."""
        lock, self._lock = self._lock, None
        try:
            remove_folder(self.path)
        finally:
            if lock is not None:
                os.close(lock)


def remove_folder(path: str) -> None:
    """Remove a folder and all that is in it, as far as this user may, however deep a cell has made it."""
    if sys.platform == "win32":
        with contextlib.suppress(RecursionError):
            shutil.rmtree(path, ignore_errors=True)
        return
    empty_folder(path)
    with contextlib.suppress(OSError):
        Path(path).rmdir()


def _made() -> tuple[str, int | None]:
    """A new folder and its lock; made again where another host swept it before it was locked."""
    while True:
        path = tempfile.mkdtemp(prefix=PREFIX)
        lock = _locked(path)
        if Path(path).is_dir() and (lock is not None or sys.platform == "win32"):
            return path, lock
        if lock is not None:
            os.close(lock)


@cache
def remove_abandoned() -> None:
    """Remove, once in a process, the folders of hosts that are gone, as far as this user may remove them."""
    try:
        abandoned = [str(path) for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*")]
    except OSError:
        return
    for path in abandoned:
        lock = _locked(path)
        if lock is not None:
            try:
                remove_folder(path)
            finally:
                os.close(lock)


def _locked(path: str) -> int | None:
    """A descriptor that holds the folder's lock, or None: somebody else holds it, or there are no such locks here."""
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
