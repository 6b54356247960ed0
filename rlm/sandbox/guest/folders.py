"""Folders for guests to write in, none of which outlives its owner for long.

An owner that is killed cannot remove its folder. So each folder is locked by whoever made it, for as long as that
process lives, and the next one to make a folder of the same prefix removes those that nobody holds any more. Hosts
do so, and guests on machines whose files their host does not see.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys

__all__ = ["empty_folder", "is_overfull", "make", "most_entries", "remove", "remove_abandoned"]


EMPTYING_ROUNDS = 3
OWN_ALL = 0o700
DEEPEST = 100
BYTES_PER_ENTRY, FEWEST_ENTRIES = 4096, 1024


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


def empty_folder(folder: str) -> None:
    """Remove all that is in a folder, as far as this user may.

    Whoever fills the folder may go on while it is emptied, so nothing in it is ever reached by a path: a link that
    takes a folder's place leads nowhere. What lies deeper is moved to the top first, which needs two descriptors
    and no path, however deep it goes.
    """
    with contextlib.suppress(OSError):
        top = _open_folder(folder)
        try:
            for _ in range(EMPTYING_ROUNDS):
                waiting = os.listdir(top)  # noqa: PTH208 - a descriptor
                while waiting:
                    with contextlib.suppress(OSError):
                        waiting += _remove_or_raise(waiting.pop(), top)
        finally:
            os.close(top)


def _remove_or_raise(name: str, top: int) -> list[str]:
    """Remove an entry of the folder `top`; the new names there of the folders that were in it."""
    if not _is_folder(name, top):
        os.unlink(name, dir_fd=top)
        return []
    raised: list[str] = []
    folder = _open_folder(name, top)
    try:
        for inner in os.listdir(folder):  # noqa: PTH208 - a descriptor
            with contextlib.suppress(OSError):
                if not _is_folder(inner, folder):
                    os.unlink(inner, dir_fd=folder)
                    continue
                os.close(_open_folder(inner, folder))  # to move a folder one must be allowed to write to it
                fresh = os.urandom(16).hex()
                os.rename(inner, fresh, src_dir_fd=folder, dst_dir_fd=top)
                raised.append(fresh)
    finally:
        os.close(folder)
    with contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=top)
    return raised


def _is_folder(name: str, parent: int) -> bool:
    import stat

    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


def _open_folder(name: str, parent: int | None = None) -> int:
    """A descriptor of a folder, no link, which its owner may read and change from now on."""
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(name, os.O_RDONLY | flags, dir_fd=parent)
    except PermissionError:
        if sys.platform != "linux":
            os.chmod(name, OWN_ALL, dir_fd=parent, follow_symlinks=False)
        else:
            unread = os.open(name, os.O_PATH | flags, dir_fd=parent)
            try:
                os.chmod(f"/proc/self/fd/{unread}", OWN_ALL)  # noqa: PTH101 - Linux has no chmod that follows no link
            finally:
                os.close(unread)
        descriptor = os.open(name, os.O_RDONLY | flags, dir_fd=parent)
    with contextlib.suppress(OSError):
        if os.fstat(descriptor).st_mode & OWN_ALL != OWN_ALL:
            os.fchmod(descriptor, OWN_ALL)
    return descriptor


def is_overfull(folder: str, most_bytes: int) -> bool:
    """Whether what a folder holds takes more bytes on disk, or is more entries, than it may.

    What cannot be counted is too much: a folder that cannot be read, and one too deep to go into.
    """
    waiting: list[tuple[int, list[str]]] = []
    total = entries = 0
    try:
        waiting.append(_counted_folder(folder))
        while waiting:
            parent, names = waiting[-1]
            if not names:
                os.close(waiting.pop()[0])
                continue
            entries += 1
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # it was there a moment ago
                name = names.pop()
                if _is_folder(name, parent):
                    waiting.append(_counted_folder(name, parent))
                else:
                    total += 512 * os.stat(name, dir_fd=parent, follow_symlinks=False).st_blocks
            if total > most_bytes or entries > most_entries(most_bytes) or len(waiting) > DEEPEST:
                return True
    except OSError:
        return True
    finally:
        for descriptor, _ in waiting:
            os.close(descriptor)
    return False


def _counted_folder(name: str, parent: int | None = None) -> tuple[int, list[str]]:
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        return descriptor, os.listdir(descriptor)  # noqa: PTH208 - a descriptor
    except OSError:
        os.close(descriptor)
        raise


def most_entries(scratch_bytes: int) -> int:
    """How many files and folders may be in a scratch folder of so many bytes: an empty one takes memory too."""
    return max(FEWEST_ENTRIES, scratch_bytes // BYTES_PER_ENTRY)
