"""A counting semaphore whose size may change while tasks wait, and which is fair between groups."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["Line", "Place"]


class Line:
    """Lets `size` tasks in at once; those that wait are admitted round robin over groups, in order within one.

    So a batch of 10,000 calls does not make the single call that came after it wait for all of them. Use it on
    one event loop; it may be made outside of any.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._inside = 0
        self._waiting: OrderedDict[Hashable, deque[anyio.Event]] = OrderedDict()

    @property
    def inside(self) -> int:
        """How many tasks are in."""
        return self._inside

    @property
    def size(self) -> int:
        """How many tasks may be in at once."""
        return self._size

    @property
    def is_full(self) -> bool:
        """Whether a task that came now would have to wait."""
        return self._inside >= self._size or bool(self._waiting)

    async def enter(self, group: Hashable) -> None:
        """Wait for a place; give it back with `leave()`."""
        if not self.is_full:
            self._inside += 1
            return
        admitted = anyio.Event()
        self._waiting.setdefault(group, deque()).append(admitted)
        try:
            await admitted.wait()
        except BaseException:
            # A task may be admitted and cancelled in the same turn of the loop: the place goes to the next one.
            if admitted.is_set():
                self.leave()
            else:
                self._give_up(group, admitted)
            raise

    def leave(self) -> None:
        """Give the place back to whoever waits longest."""
        self._inside -= 1
        self._admit()

    def resize(self, size: int) -> None:
        """Let more tasks in from now on, or fewer; those that are in stay in."""
        self._size = size
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._inside < self._size:
            group, waiting = next(iter(self._waiting.items()))
            waiting.popleft().set()
            self._inside += 1
            if waiting:
                self._waiting.move_to_end(group)
            else:
                del self._waiting[group]

    def _give_up(self, group: Hashable, admitted: anyio.Event) -> None:
        waiting = self._waiting[group]
        waiting.remove(admitted)
        if not waiting:
            del self._waiting[group]


class Place:
    """A place in a line that its holder may give back and take again."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._is_held = False

    async def take(self, group: Hashable = None) -> None:
        """Wait for a place, unless it is held."""
        if not self._is_held:
            await self._line.enter(group)
            self._is_held = True

    def give_back(self) -> None:
        """Let the next one in, if the place is held."""
        if self._is_held:
            self._is_held = False
            self._line.leave()
