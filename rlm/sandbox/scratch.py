"""Scratch folders, made by the host, in which guests write; see `guest/folders.py`."""

from __future__ import annotations

import os
from functools import cache

from rlm.sandbox.guest import folders

__all__ = ["Scratch", "remove_abandoned"]

PREFIX = "rlm-guest-"


class Scratch:
    """Folder in the system's folder for temporary files. `remove` may be called again."""

    def __init__(self) -> None:
        remove_abandoned()
        self._lock: int | None
        self.path, self._lock = folders.make(PREFIX)

    def remove(self) -> None:
        """Remove the folder and its content."""
        lock, self._lock = self._lock, None
        try:
            folders.remove(self.path)
        finally:
            if lock is not None:
                os.close(lock)


@cache
def remove_abandoned() -> None:
    """Remove the folders of ended hosts that this user may remove; once in a process."""
    folders.remove_abandoned(PREFIX)
