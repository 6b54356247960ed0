"""File descriptors of the processes that run cells: received, moved out of the way, closed with all their copies."""

from __future__ import annotations

import _socket as socket  # the part in C: the rest would be a tenth of a guest's start
import array
import contextlib
import fcntl
import os
import resource
import select

from . import frames
from .limits import MAX_OPEN_FILES

__all__ = ["adopt", "close_with_copies", "copy_up", "receive_with_descriptors"]

LOWEST_OWN = (
    MAX_OPEN_FILES + 8
)  # above the soft limit of a cell: it can neither get these numbers nor run out of them
MAX_DESCRIPTORS = 1024
DESCRIPTORS_OF_FORK = 4


def adopt(descriptors: list[int]) -> tuple[int, int]:
    """Make the descriptors of FORK this process's own: stdout and stderr as 1 and 2, the others out of a cell's way.

    Returns:
        The channel and the death pipe.
    """
    # All are moved first: where a cell has closed 0, 1 or 2, the kernel has given these numbers to the new ones.
    channel, stdout, stderr, death_pipe = map(move_up, descriptors)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.close(stdout)
    os.close(stderr)
    return channel, death_pipe


def move_up(descriptor: int) -> int:
    """Give a descriptor a number that no cell gets, and free the old one."""
    moved = copy_up(descriptor)
    os.close(descriptor)
    return moved


def copy_up(descriptor: int) -> int:
    """Return a copy of a descriptor with a number that no cell gets."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, LOWEST_OWN)


def close_with_copies(*descriptors: int) -> None:
    """Close descriptors together with every copy that a cell made of them.

    A copy of the parent's channel would let the next cell write to the supervisor in the parent's name.
    """
    identities = {_identity(descriptor) for descriptor in descriptors}
    for descriptor in _open_descriptors():
        with contextlib.suppress(OSError):
            if _identity(descriptor) in identities:
                os.close(descriptor)


def _open_descriptors() -> list[int]:
    """Return the numbers in use; `poll` says which are not. Landlock refuses /proc/self/fd to a worker."""
    poller = select.poll()
    limit = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], MAX_DESCRIPTORS)
    for descriptor in range(limit):
        poller.register(descriptor, 0)
    unused = {descriptor for descriptor, event in poller.poll(0) if event & select.POLLNVAL}
    return [descriptor for descriptor in range(limit) if descriptor not in unused]


def _identity(descriptor: int) -> tuple[int, int]:
    """Return what all copies of a descriptor have in common."""
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def receive_with_descriptors(descriptor: int) -> tuple[bytes, list[int]]:
    """Read bytes and the descriptors sent with them; no bytes only at the end of the stream."""
    descriptors = array.array("i")
    channel = socket.socket(fileno=descriptor)
    try:
        space = socket.CMSG_LEN(DESCRIPTORS_OF_FORK * descriptors.itemsize)
        data, ancillary, _, _ = channel.recvmsg(frames.FRAME_BYTES, space)
    finally:
        channel.detach()
    for level, kind, piece in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(piece[: len(piece) - len(piece) % descriptors.itemsize])
    return data, list(descriptors)
