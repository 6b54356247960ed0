"""The policy for items that a reply leaves open: ask again in a smaller pack, and fail after the last attempt.

    attempt              1            2                                     3
    items in its call    a pack       at most 5, and half of that pack      the item alone

An attempt is a call whose answer for the item is unusable, or a pack that is refused or too long as a whole. The next
prompt has the reason. `map.py` and `bulk/batch_api` both apply this policy. No I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rlm.errors import InvalidAnswer
from rlm.structured.reply_json import ItemResult, Valid

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from rlm.values import Reply

__all__ = ["Item", "Leftovers", "Mapped", "Settled"]

ATTEMPTS: Final = 3
SMALL_PACK: Final = 5


@dataclass(frozen=True, slots=True)
class Item:
    """One item: `content` is any JSON value, `key` identifies it for the caller."""

    key: Any
    content: Any


@dataclass(frozen=True, slots=True)
class Mapped:
    """Answer for one item: a value, or a failure with the name of its error as `kind` and its `reason`."""

    value: Any = None
    kind: str = ""
    reason: str = ""

    @property
    def failed(self) -> bool:
        """Return True if the item has no value."""
        return bool(self.kind)


@dataclass(frozen=True, slots=True)
class Settled:
    """Items that one call settled, and its reply where there was one."""

    items: Sequence[tuple[Item, Mapped]]
    reply: Reply | None = None


@dataclass(frozen=True, slots=True)
class _OpenItem:
    attempts: int = 0
    pack_limit: int = 0
    reason: str = ""


class Leftovers:
    """Record of the failed attempts of each open item, by its key."""

    def __init__(self) -> None:
        self._open: dict[Hashable, _OpenItem] = {}

    def sort(
        self, items: Sequence[Item], results: Sequence[ItemResult]
    ) -> tuple[list[tuple[Item, Mapped]], list[Item]]:
        """Return the items of one reply that are settled, with their answers, and those that are open.

        An item without a valid result fails at its last attempt, which asked about it alone.
        """
        settled, left = [], []
        for item, result in zip(items, results, strict=True):
            if isinstance(result, Valid):
                self._open.pop(item.key, None)
                settled.append((item, Mapped(result.value)))
            elif self._count(item, len(items), result.reason) < ATTEMPTS:
                left.append(item)
            else:
                del self._open[item.key]
                settled.append((item, Mapped(kind=InvalidAnswer.__name__, reason=result.reason)))
        return settled, left

    def split(self, items: Sequence[Item]) -> None:
        """Count a failed attempt for each item of a pack that was refused or is too long as a whole."""
        for item in items:
            self._count(item, len(items))

    def pack_limit(self, keys: Iterable[Hashable]) -> int | None:
        """Return the greatest size of a pack with one of these items, or None if no attempt failed."""
        return min((self._open[key].pack_limit for key in keys if key in self._open), default=None)

    def packs(self, items: Sequence[Item]) -> list[Sequence[Item]]:
        """Return open items as packs of nearly the same size, none above the limit."""
        if not items:
            return []
        limit = self.pack_limit(item.key for item in items) or len(items)
        number = -(-len(items) // limit)
        size = -(-len(items) // number)
        return [items[start : start + size] for start in range(0, len(items), size)]

    def reasons(self, items: Sequence[Item]) -> dict[int, str]:
        """Return why the last answer for an item was unusable, by the index of the item."""
        return {
            index: found.reason
            for index, item in enumerate(items)
            if (found := self._open.get(item.key)) is not None and found.reason
        }

    def _count(self, item: Item, pack_size: int, reason: str = "") -> int:
        before = self._open.get(item.key, _OpenItem())
        attempts = before.attempts + 1
        limit = min(SMALL_PACK, -(-pack_size // 2)) if attempts < ATTEMPTS - 1 else 1
        self._open[item.key] = _OpenItem(attempts, limit, reason or before.reason)
        return attempts
