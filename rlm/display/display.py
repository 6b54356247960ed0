"""The `Display` protocol: what the terminal views have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rlm.events import Event

__all__ = ["Display"]


class Display(Protocol):
    """Shows events; also an `Emit`. It is called from the portal's thread, returns soon and never raises."""

    def __call__(self, event: Event) -> None:
        """Show one event."""
        ...

    def close(self) -> None:
        """Show what is left and leave the terminal in order. Idempotent."""
        ...
