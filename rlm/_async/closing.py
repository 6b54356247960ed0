"""What outlives a call: work that a closing ends, and a guest that nobody has to remember.

Both belong to one event loop and to the process they were made in.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rlm.sandbox.session import Session

__all__ = ["KeptGuest", "Work"]


class Work:
    """What is under way for one owner, who may end it all.

    Args:
        owner: who that is, in words, such as "this session".
        error: the exception for work that the end meets, or that comes after it.
    """

    def __init__(self, owner: str, error: Callable[[str], Exception]) -> None:
        self._owner = owner
        self._error = error
        self._under_way: dict[anyio.CancelScope, anyio.Event] = {}
        self._over = False

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """A piece of work, which is cancelled by `end`: whoever waits for it gets the owner's error instead."""
        if self._over:
            raise self._error(f"{self._owner} is closed")
        with anyio.CancelScope() as scope:
            ended = self._under_way[scope] = anyio.Event()
            try:
                yield
            finally:
                del self._under_way[scope]
                ended.set()
        if scope.cancelled_caught:
            raise self._error(f"{self._owner} was closed while this was under way")

    async def end(self) -> None:
        """Cancel what is under way, wait until it has cleaned up, and let nothing begin any more. Idempotent."""
        self._over = True
        for scope in self._under_way:
            scope.cancel()
        while self._under_way:
            await next(iter(self._under_way.values())).wait()


class KeptGuest:
    """The guest of a session: ended when the session is closed or dropped, and at the latest with the event loop.

    Attributes:
        guest: the guest.
        work: what is under way on it.
        over: whether it has ended; may be read from any thread.
    """

    def __init__(self, guest: Session, work: Work) -> None:
        self.guest = guest
        self.work = work
        self.over = False
        self._ending = anyio.Lock()
        self._is_kept = anyio.Event()
        self._released = anyio.Event()

    async def keep(self) -> None:
        """Wait until it may end, and end it; run in a task of the event loop itself, which its end cancels."""
        self._is_kept.set()
        try:
            await self._released.wait()
        finally:
            await self.end()

    async def kept(self) -> None:
        """Wait until `keep` runs: from then on nothing can lose the guest."""
        await self._is_kept.wait()

    def release(self) -> None:
        """Let `keep` end the guest."""
        self._released.set()

    async def end(self) -> None:
        """End the work under way and the guest. Cannot be cancelled; idempotent, and a second one waits for the first."""
        with anyio.CancelScope(shield=True):
            async with self._ending:
                if self.over:
                    return
                try:
                    await self.work.end()
                    await self.guest.aclose()
                finally:
                    self.over = True
                    self.release()
