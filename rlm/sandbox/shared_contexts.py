"""What the host has of the shelf, on which guests leave the contexts of their child runs.

The host makes the shelf of a guest and gives it along when the guest starts; itself it keeps only a descriptor to
read with, which a child's guest inherits in its turn. So a piece of a context goes from guest to guest, and here
there is a `ContextRef` in its place. `guest/shared_memory.py` is the other side.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from rlm.errors import HostCallRefused
from rlm.sandbox.guest import values
from rlm.sandbox.guest.shared_memory import read_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rlm.sandbox.guest.sketch import Sketch

__all__ = ["MOST_CONTEXT_VALUES", "ContextRef", "SharedContexts", "make_shared_contexts"]

MOST_CONTEXT_VALUES = 2_000_000
"""Of how many values a context may be made that a cell gives to a child run."""


def make_shared_contexts() -> SharedContexts | None:
    """A new shelf, or None where this system has no such files."""
    if sys.platform != "linux":
        return None
    writing = -1
    try:
        writing = _not_a_standard_one(os.memfd_create("rlm-shared-contexts", os.MFD_CLOEXEC))
        return SharedContexts(writing, os.open(f"/proc/self/fd/{writing}", os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        if writing >= 0:
            os.close(writing)
        return None


class SharedContexts:
    """The shelf of one guest. `writing` is for the guest alone; `hand_over` closes it here."""

    def __init__(self, writing: int, reading: int) -> None:
        self.writing = writing
        self._reading = reading

    def hand_over(self) -> None:
        """The guest has started, with a descriptor of its own."""
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor to read with, open for as long as it is used, whatever becomes of the guest.

        Raises:
            HostCallRefused: the guest is gone, or this process has too many descriptors.
        """
        if self._reading < 0:
            raise HostCallRefused("the context is gone with the guest that it lay in")
        try:
            descriptor = fcntl.fcntl(self._reading, fcntl.F_DUPFD_CLOEXEC, 3)
        except OSError as error:
            raise HostCallRefused(f"the context cannot be read: {error}") from None
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Close what is open here; again is no error."""
        self.hand_over()
        reading, self._reading = self._reading, -1
        if reading >= 0:
            os.close(reading)


@dataclass(frozen=True, slots=True, eq=False)
class ContextRef:
    """A context of a child run that lies on the shelf of its parent's guest.

    It is there until its call has been answered.

    Attributes:
        memory: where it lies.
        offset: its first byte there.
        length: how many bytes it takes.
        sketch: what the cell says of it.
        reserve: counts bytes that the host is about to take into its own memory; raises `HostCallRefused`.
    """

    memory: SharedContexts = field(repr=False)
    offset: int
    length: int
    sketch: Sketch = field(repr=False)
    reserve: Callable[[int], None] = field(repr=False)

    async def value(self) -> Any:
        """The context itself, in the memory of the host.

        Raises:
            HostCallRefused: it is no value, or too large for the host.
        """
        self.reserve(self.length)
        with self.memory.opened() as descriptor:
            return await anyio.to_thread.run_sync(self._read, descriptor)

    def _read(self, descriptor: int) -> Any:
        try:
            return read_context(descriptor, self.offset, self.length, MOST_CONTEXT_VALUES)
        except (values.WireError, OSError) as error:
            raise HostCallRefused(f"the context cannot be read: {error}") from None


def _not_a_standard_one(descriptor: int) -> int:
    """The same, with a number above 2: those are the guest's to have for something else."""
    if descriptor > 2:  # noqa: PLR2004 - stderr
        return descriptor
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(descriptor)
    return moved
