"""Scratch folders: made with a lock, measured, emptied, and removed when their owner has ended.

An owner that is killed cannot remove its folder. So the process that makes a folder locks it for as long as it lives,
and the next process that makes a folder of the same prefix removes those that are not locked. Hosts do so, and guests
on machines whose files their host does not see.

The cells of a session write to its folder, and may go on while it is emptied or measured. So nothing in it is reached
by a path: a link that replaces a folder in the meantime would lead out of it. Each folder is opened relative to the
descriptor of its parent, without following links.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys

__all__ = ["empty_folder", "is_overfull", "make", "max_entries", "remove", "remove_abandoned"]


EMPTYING_ROUNDS = 3  # a cell may add entries meanwhile
OWNER_ALL = 0o700
MAX_DEPTH = 100
BYTES_PER_ENTRY, MIN_ENTRIES = 4096, 1024


def make(prefix: str) -> tuple[str, int]:
    """Make a folder for temporary files; return its path and the descriptor that holds its lock.

    Raises:
        OSError: it cannot be made or locked.
    """
    import tempfile

    while True:
        path = tempfile.mkdtemp(prefix=prefix)
        try:
            lock = _lock(path)
        except (BlockingIOError, FileNotFoundError):
            continue  # between making and locking, another process took it for abandoned: try again
        except OSError:
            os.rmdir(path)  # noqa: PTH106 - no pathlib in guests
            raise
        if os.path.isdir(path):  # noqa: PTH112 - it may have been removed before it was locked
            return path, lock
        os.close(lock)


def remove(path: str) -> None:
    """Remove a folder and everything in it, as far as this user may, however deep it is."""
    empty_folder(path)
    with contextlib.suppress(OSError):
        os.rmdir(path)  # noqa: PTH106 - no pathlib in guests


def remove_abandoned(prefix: str) -> None:
    """Remove the folders of this prefix whose owner has ended, as far as this user may."""
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
            continue  # its owner lives, or it belongs to another user
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
    """Remove everything in a folder, as far as this user may.

    A folder in it is emptied by moving its subfolders to the top. That takes two descriptors and no path, however deep
    the folders are nested.
    """
    with contextlib.suppress(OSError):
        top = _open_folder(folder)
        try:
            for _ in range(EMPTYING_ROUNDS):
                waiting = os.listdir(top)  # noqa: PTH208 - a descriptor
                while waiting:
                    with contextlib.suppress(OSError):
                        waiting += _remove_or_lift(waiting.pop(), top)
        finally:
            os.close(top)


def _remove_or_lift(name: str, top: int) -> list[str]:
    """Remove an entry of the folder `top`; return the new names in `top` of the folders that were in it."""
    if not _is_folder(name, top):
        os.unlink(name, dir_fd=top)
        return []
    lifted: list[str] = []
    folder = _open_folder(name, top)
    try:
        for inner in os.listdir(folder):  # noqa: PTH208 - a descriptor
            with contextlib.suppress(OSError):
                if not _is_folder(inner, folder):
                    os.unlink(inner, dir_fd=folder)
                    continue
                os.close(_open_folder(inner, folder))  # to be moved, it must be writable
                fresh = os.urandom(16).hex()
                os.rename(inner, fresh, src_dir_fd=folder, dst_dir_fd=top)
                lifted.append(fresh)
    finally:
        os.close(folder)
    with contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=top)
    return lifted


def _is_folder(name: str, parent: int) -> bool:
    import stat

    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


def _open_folder(name: str, parent: int | None = None) -> int:
    """Open a folder, which is no link, and give its owner all rights to it: a cell may have removed them."""
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(name, os.O_RDONLY | flags, dir_fd=parent)
    except PermissionError:
        if sys.platform != "linux":
            os.chmod(name, OWNER_ALL, dir_fd=parent, follow_symlinks=False)
        else:
            unread = os.open(name, os.O_PATH | flags, dir_fd=parent)
            try:
                os.chmod(f"/proc/self/fd/{unread}", OWNER_ALL)  # noqa: PTH101 - Linux has no chmod that follows no link
            finally:
                os.close(unread)
        descriptor = os.open(name, os.O_RDONLY | flags, dir_fd=parent)
    with contextlib.suppress(OSError):
        if os.fstat(descriptor).st_mode & OWNER_ALL != OWNER_ALL:
            os.fchmod(descriptor, OWNER_ALL)
    return descriptor


def is_overfull(folder: str, max_bytes: int) -> bool:
    """Return True if the files in a folder take more bytes on disk, or are more, than allowed.

    Also for what cannot be counted: a folder that cannot be read, or one nested more than MAX_DEPTH deep.
    Not counted: files that were deleted while open, which no other process can see.
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
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # removed since it was listed
                name = names.pop()
                if _is_folder(name, parent):
                    waiting.append(_counted_folder(name, parent))
                else:
                    total += 512 * os.stat(name, dir_fd=parent, follow_symlinks=False).st_blocks
            if total > max_bytes or entries > max_entries(max_bytes) or len(waiting) > MAX_DEPTH:
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


def max_entries(scratch_bytes: int) -> int:
    """Return how many entries a scratch folder of this size may have: an empty file takes memory too."""
    return max(MIN_ENTRIES, scratch_bytes // BYTES_PER_ENTRY)
