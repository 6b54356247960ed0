"""The host's side of shared memory, through which contexts go from guest to guest without a copy in the host.

The host makes the memory of a guest when the guest starts and keeps only a descriptor to read it. The guest of a child
run inherits such a descriptor and reads its context there; the host passes on a `ContextRef`. The guest's side is
`guest/shared_memory.py`.
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

MOST_CONTEXT_VALUES = values.MOST_VALUES
"""Maximum number of values in a context of a child run."""


def make_shared_contexts() -> SharedContexts | None:
    """Return new shared memory, or None if this system has no memory files."""
    if sys.platform != "linux":
        return None
    writing = -1
    try:
        writing = _above_stdio(os.memfd_create("rlm-shared-contexts", os.MFD_CLOEXEC))
        return SharedContexts(writing, os.open(f"/proc/self/fd/{writing}", os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        if writing >= 0:
            os.close(writing)
        return None


class SharedContexts:
    """Shared memory of one guest. Only the guest writes, to the descriptor `writing`; `hand_over` closes it here."""

    def __init__(self, writing: int, reading: int) -> None:
        self.writing = writing
        self._reading = reading

    def hand_over(self) -> None:
        """Close the descriptor for writing, after the guest has inherited it."""
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """Return a descriptor for reading that stays open in the `with` block, even if the guest ends meanwhile.

        Raises:
            HostCallRefused: the guest has ended, or this process has too many open descriptors.
        """
        if self._reading < 0:
            raise HostCallRefused("the context is gone: its guest has ended")
        try:
            descriptor = fcntl.fcntl(self._reading, fcntl.F_DUPFD_CLOEXEC, 3)
        except OSError as error:
            raise HostCallRefused(f"the context cannot be read: {error}") from None
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Close all descriptors. May be called again."""
        self.hand_over()
        reading, self._reading = self._reading, -1
        if reading >= 0:
            os.close(reading)


@dataclass(frozen=True, slots=True, eq=False)
class ContextRef:
    """Reference to a context of a child run in the shared memory of its parent's guest.

    It is valid until its host call is answered.

    Attributes:
        memory: the shared memory of the parent's guest.
        offset: the first byte of the encoded context.
        length: its length in bytes.
        sketch: a short description, made by the cell.
        reserve: counts bytes that the host is about to read; raises `HostCallRefused` above the limit.
    """

    memory: SharedContexts = field(repr=False)
    offset: int
    length: int
    sketch: Sketch = field(repr=False)
    reserve: Callable[[int], None] = field(repr=False)

    async def value(self) -> Any:
        """Read the context into the memory of the host.

        Raises:
            HostCallRefused: it is not a valid value, or too large for the host.
        """
        self.reserve(self.length)
        with self.memory.opened() as descriptor:
            return await anyio.to_thread.run_sync(self._read, descriptor)

    def _read(self, descriptor: int) -> Any:
        try:
            return read_context(descriptor, self.offset, self.length, MOST_CONTEXT_VALUES)
        except (values.WireError, OSError) as error:
            raise HostCallRefused(f"the context cannot be read: {error}") from None


def _above_stdio(descriptor: int) -> int:
    """Return the descriptor, moved above 2 if needed: in the guest, 0 to 2 are its standard streams."""
    if descriptor > 2:  # noqa: PLR2004 - stderr
        return descriptor
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(descriptor)
    return moved
