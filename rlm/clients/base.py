"""The `Client` protocol: the one thing a provider must offer, one async method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rlm.values import Call, Reply

__all__ = ["Client", "StreamingClient"]


@runtime_checkable
class Client(Protocol):
    """Answers calls.

    `complete` makes one attempt and raises a `CallError` where it fails: retries, limits, caches and budgets are
    the scheduler's, which is itself a `Client`. It is called from many tasks of one event loop at once. A client
    may also have `async def aclose(self)`, called once when its owner is closed; `endpoint: str`, which names where
    it asks, so that stored answers of two endpoints are never mixed up; and `only_model: str`, the one name it
    answers under, whatever model is asked for.
    """

    async def complete(self, call: Call) -> Reply:
        """Ask the model once."""
        ...


@runtime_checkable
class StreamingClient(Client, Protocol):
    """A client that can also give an answer as it is written."""

    def stream(self, call: Call) -> AsyncIterator[str | Reply]:
        """Ask the model once and yield its text piece by piece, at last the whole `Reply`.

        It is left early only by closing it, which ends the request.
        """
        ...
