"""File descriptors of the processes that run cells."""

from __future__ import annotations

import _socket as socket  # the part in C: the rest would be a tenth of a guest's start
import array
import contextlib
import os
import resource
import select

from . import frames
from .limits import OPEN_FILES

__all__ = ["adopt", "close_all_of", "receive_with_descriptors"]


FLOOR = OPEN_FILES + 8
MOST_DESCRIPTORS = 1024


def adopt(descriptors: list[int]) -> tuple[int, int, int]:
    """Take over a channel, an output and a leash: 1 and 2 are the cell's, the others are out of its way."""
    channel, stdout, stderr, leash = descriptors
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.close(stdout)
    os.close(stderr)
    channel = raise_descriptor(channel)
    return channel, channel, raise_descriptor(leash)


def raise_descriptor(descriptor: int) -> int:
    """Move a descriptor out of the way of those a cell opens."""
    import fcntl

    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FLOOR)
    os.close(descriptor)
    return moved


def close_all_of(*descriptors: int) -> None:
    """Close descriptors together with every copy that a cell made of them."""
    marks = {mark(descriptor) for descriptor in descriptors}
    for descriptor in open_descriptors():
        with contextlib.suppress(OSError):
            if mark(descriptor) in marks:
                os.close(descriptor)


def open_descriptors() -> list[int]:
    """The numbers in use. A cell may not list its own folder in /proc, so the kernel is asked about every number."""
    poller = select.poll()
    most = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], MOST_DESCRIPTORS)
    for descriptor in range(most):
        poller.register(descriptor, 0)
    unused = {descriptor for descriptor, event in poller.poll(0) if event & select.POLLNVAL}
    return [descriptor for descriptor in range(most) if descriptor not in unused]


def mark(descriptor: int) -> tuple[int, int]:
    """What the copies of one descriptor have in common."""
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def receive_with_descriptors(descriptor: int) -> tuple[bytes, list[int]]:
    """Read what has arrived, nothing only at the end of the stream, with the descriptors that came along."""
    descriptors = array.array("i")
    channel = socket.socket(fileno=descriptor)
    try:
        room = socket.CMSG_LEN(4 * descriptors.itemsize)
        data, ancillary, _, _ = channel.recvmsg(frames.FRAME_BYTES, room)
    finally:
        channel.detach()
    for level, kind, piece in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(piece[: len(piece) - len(piece) % descriptors.itemsize])
    return data, list(descriptors)
