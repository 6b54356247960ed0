"""Folders for guests to write in, none of which outlives its owner for long.

An owner that is killed cannot remove its folder. So each folder is locked by whoever made it, for as long as that
process lives, and the next one to make a folder of the same prefix removes those that nobody holds any more. Hosts
do so, and guests on machines whose files their host does not see.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from .hardening import empty_folder

__all__ = ["make", "remove", "remove_abandoned"]


def make(prefix: str) -> tuple[str, int]:
    """A new folder for temporary files and its lock; another one where a sweeper had it before it was locked.

    Raises:
        OSError: it cannot be made or locked.
    """
    import tempfile

    while True:
        path = tempfile.mkdtemp(prefix=prefix)
        try:
            lock = _lock(path)
        except (BlockingIOError, FileNotFoundError):
            continue
        except OSError:
            os.rmdir(path)  # noqa: PTH106 - no pathlib in guests
            raise
        if os.path.isdir(path):  # noqa: PTH112
            return path, lock
        os.close(lock)


def remove(path: str) -> None:
    """Remove a folder and all that is in it, as far as this user may, however deep a cell has made it."""
    empty_folder(path)
    with contextlib.suppress(OSError):
        os.rmdir(path)  # noqa: PTH106 - no pathlib in guests


def remove_abandoned(prefix: str) -> None:
    """Remove the folders of this prefix whose owner is gone, as far as this user may remove them."""
    import tempfile

    parent = tempfile.gettempdir()
    try:
        names = [name for name in os.listdir(parent) if name.startswith(prefix)]  # noqa: PTH208 - no pathlib in guests
    except OSError:
        return
    for name in names:
        path = os.path.join(parent, name)  # noqa: PTH118 - no pathlib in guests
        try:
            lock = _lock(path)
        except OSError:
            continue  # its owner lives, or the folder is not ours
        try:
            remove(path)
        finally:
            os.close(lock)


def _lock(path: str) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
