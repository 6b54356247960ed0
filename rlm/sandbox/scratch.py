"""The folder that a host gives to its guest to write in: see `guest/folders.py`."""

from __future__ import annotations

import os
from functools import cache

from rlm.sandbox.guest import folders

__all__ = ["Scratch", "remove_abandoned"]

PREFIX = "rlm-guest-"


class Scratch:
    """A folder under the system's folder for temporary files. `remove` it; again is no error."""

    def __init__(self) -> None:
        remove_abandoned()
        self._lock: int | None
        self.path, self._lock = folders.make(PREFIX)

    def remove(self) -> None:
        """Remove the folder and all that is in it."""
        lock, self._lock = self._lock, None
        try:
            folders.remove(self.path)
        finally:
            if lock is not None:
                os.close(lock)


@cache
def remove_abandoned() -> None:
    """Remove, once in a process, the folders of hosts that are gone, as far as this user may remove them."""
    folders.remove_abandoned(PREFIX)
