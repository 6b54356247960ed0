"""A counting semaphore whose size may change while tasks wait, and which is fair between groups."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["FairSemaphore", "Permit"]


class FairSemaphore:
    """Grants up to `size` permits at once; waiting tasks get them round robin over groups, in order within a group.

    So a batch of 10,000 calls does not make the single call that came after it wait for all of them. Use it on
    one event loop; it may be made outside of any.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._in_use = 0
        self._waiting: OrderedDict[Hashable, deque[anyio.Event]] = OrderedDict()

    @property
    def in_use(self) -> int:
        """Number of permits that are held."""
        return self._in_use

    @property
    def size(self) -> int:
        """Number of permits that may be held at once."""
        return self._size

    @property
    def is_full(self) -> bool:
        """True if the next `acquire` has to wait."""
        return self._in_use >= self._size or bool(self._waiting)

    async def acquire(self, group: Hashable) -> None:
        """Wait for a permit of this group; return it with `release()`."""
        if not self.is_full:
            self._in_use += 1
            return
        granted = anyio.Event()
        self._waiting.setdefault(group, deque()).append(granted)
        try:
            await granted.wait()
        except BaseException:
            # A task may be granted a permit and cancelled in the same turn of the loop: then the next one gets it.
            if granted.is_set():
                self.release()
            else:
                self._remove(group, granted)
            raise

    def release(self) -> None:
        """Return a permit; the next waiting task gets it."""
        self._in_use -= 1
        self._grant()

    def resize(self, size: int) -> None:
        """Allow more permits from now on, or fewer; those that are held stay valid."""
        self._size = size
        self._grant()

    def _grant(self) -> None:
        while self._waiting and self._in_use < self._size:
            group, waiting = next(iter(self._waiting.items()))
            waiting.popleft().set()
            self._in_use += 1
            if waiting:
                self._waiting.move_to_end(group)
            else:
                del self._waiting[group]

    def _remove(self, group: Hashable, granted: anyio.Event) -> None:
        waiting = self._waiting[group]
        waiting.remove(granted)
        if not waiting:
            del self._waiting[group]


class Permit:
    """A permit of a semaphore that its holder may release for a while and acquire again."""

    def __init__(self, semaphore: FairSemaphore) -> None:
        self._semaphore = semaphore
        self._is_held = False

    async def acquire(self, group: Hashable = None) -> None:
        """Wait for the permit, unless it is held."""
        if not self._is_held:
            await self._semaphore.acquire(group)
            self._is_held = True

    def release(self) -> None:
        """Return the permit, if it is held."""
        if self._is_held:
            self._is_held = False
            self._semaphore.release()
