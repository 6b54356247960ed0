"""Tasks and guests that outlive one call: ended by the `close` of their owner, at the latest with the event loop.

Both classes belong to one event loop and to the process in which they were made.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rlm.sandbox.session import Session

__all__ = ["GuestOwner", "RunningWork"]


class RunningWork:
    """The running work of one owner, which the owner's `close` cancels.

    Args:
        owner: the owner's name in error messages, such as "this session".
        error: makes the exception for work that is cancelled by `end`, or that is started after it.
    """

    def __init__(self, owner: str, error: Callable[[str], Exception]) -> None:
        self._owner = owner
        self._error = error
        self._running: dict[anyio.CancelScope, anyio.Event] = {}
        self._ended = False

    @contextmanager
    def track(self) -> Iterator[None]:
        """Track the body of a `with` statement; `end` cancels it and raises the owner's error in its place."""
        if self._ended:
            raise self._error(f"{self._owner} is closed")
        with anyio.CancelScope() as scope:
            ended = self._running[scope] = anyio.Event()
            try:
                yield
            finally:
                del self._running[scope]
                ended.set()
        if scope.cancelled_caught:
            raise self._error(f"{self._owner} was closed while this was running")

    async def end(self) -> None:
        """Cancel what is running, wait until it has cleaned up, and refuse to start more. Idempotent."""
        self._ended = True
        for scope in self._running:
            scope.cancel()
        while self._running:
            await next(iter(self._running.values())).wait()


class GuestOwner:
    """The owner of a session's guest: ends it when the session is closed or dropped, or the event loop ends.

    Attributes:
        guest: the guest.
        work: what is running on it.
        ended: True once the guest has ended; may be read from any thread.
    """

    def __init__(self, guest: Session, work: RunningWork) -> None:
        self.guest = guest
        self.work = work
        self.ended = False
        self._ending = anyio.Lock()
        self._started = anyio.Event()
        self._released = anyio.Event()

    async def run_until_released(self) -> None:
        """Wait for `release`, then end the guest; run this in a task of the event loop, whose end cancels it."""
        self._started.set()
        try:
            await self._released.wait()
        finally:
            await self.end()

    async def wait_started(self) -> None:
        """Wait until `run_until_released` is running: from then on the guest is ended in any case."""
        await self._started.wait()

    def release(self) -> None:
        """Let `run_until_released` end the guest."""
        self._released.set()

    async def end(self) -> None:
        """End the running work and the guest. Cannot be cancelled; idempotent, and a second call waits for the first."""
        with anyio.CancelScope(shield=True):
            async with self._ending:
                if self.ended:
                    return
                try:
                    await self.work.end()
                    await self.guest.aclose()
                finally:
                    self.ended = True
                    self.release()
