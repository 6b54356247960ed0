"""Rows told as they finish, in the order in which they do; each exactly once, and in bounded memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rlm.bulk.formats import Row
    from rlm.bulk.writing import Answer

__all__ = ["FinishedRow", "Finishing", "TellRow"]

ROWS_HELD: Final = 50_000
"""Rows that are kept until their answer is there; more than these are read again at the end."""


@dataclass(frozen=True, slots=True)
class FinishedRow:
    """A row and what came of it.

    Attributes:
        index: its place in the input, from 0.
        row: its fields and the new columns, which hold None where it failed.
        kind: the name of the error where it failed, else ''.
        reason: why it failed, else ''.
    """

    index: int
    row: Row
    kind: str = ""
    reason: str = ""

    @property
    def failed(self) -> bool:
        """Whether it has no answer."""
        return bool(self.kind)


TellRow: TypeAlias = Callable[[FinishedRow], Awaitable[None]]
"""Takes each row when it is finished; while it works, the worker that brought the answer asks nothing."""


class Finishing:
    """Joins rows that were read with answers that come later.

    A job reads its rows more than once. So a bit for each says whether it was told, and what is held is forgotten
    with each new reading.
    """

    def __init__(self, tell: TellRow) -> None:
        self._tell = tell
        self._told = bytearray()
        self._held: dict[int, list[tuple[int, Row]]] = {}
        self._holding = 0

    def begin(self) -> None:
        """The rows are read from the start, once more."""
        self._held.clear()
        self._holding = 0

    def hold(self, key: int, number: int, row: Row) -> None:
        """This row, numbered from 1, waits for the answer of this key."""
        if self._holding < ROWS_HELD and not self._is_told(number):
            self._held.setdefault(key, []).append((number, row))
            self._holding += 1

    def release(self, key: int) -> Iterator[tuple[int, Row]]:
        """The rows that have waited for this key."""
        rows = self._held.pop(key, [])
        self._holding -= len(rows)
        return iter(rows)

    async def tell(self, number: int, row: Row, answer: Answer) -> None:
        """Tell a row, unless it was told."""
        if self._is_told(number):
            return
        place, bit = divmod(number, 8)
        if place >= len(self._told):
            self._told.extend(bytes(place + 1024))
        self._told[place] |= 1 << bit
        mapped = answer.mapped
        await self._tell(FinishedRow(number - 1, {**row, **answer.columns}, mapped.kind, mapped.reason))

    def untold(self, rows: Iterable[Row]) -> Iterator[tuple[int, Row]]:
        """Those of all rows that were not told yet, with their numbers."""
        return ((number, row) for number, row in enumerate(rows, 1) if not self._is_told(number))

    def _is_told(self, number: int) -> bool:
        place, bit = divmod(number, 8)
        return place < len(self._told) and bool(self._told[place] >> bit & 1)
