"""Rows told as they finish, in the order in which they do; each exactly once, and in bounded memory.

`Finishing` is the side of the job, which joins rows with their answers; `RowStream` is the side of whoever takes them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, TypeAlias

import anyio

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rlm.bulk.io.formats import Row
    from rlm.bulk.output import Answer
    from rlm.bulk.report import Report

__all__ = ["ROWS_AHEAD", "FinishedRow", "Finishing", "RowStream", "TellRow"]

ROWS_AHEAD: Final = 100
"""Finished rows that wait for whoever takes them, before the job waits, too."""
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


class RowStream:
    """The rows of one job as they finish; an async iterator.

    Attributes:
        report: how the job ended, or None while it runs.
    """

    def __init__(self) -> None:
        self.report: Report | None = None
        self._failure: Exception | None = None
        self._send, self._receive = anyio.create_memory_object_stream[FinishedRow](ROWS_AHEAD)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> FinishedRow:
        try:
            return await self._receive.receive()
        except anyio.EndOfStream:
            if self._failure is not None:
                raise self._failure from self._failure.__cause__
            raise StopAsyncIteration from None

    def close(self) -> None:
        """Take no more rows."""
        self._send.close()
        self._receive.close()

    async def run(self, job: Callable[[TellRow], Awaitable[Report]]) -> None:
        """Do a job that tells its rows; what it fails with is raised after them."""
        with self._send:
            try:
                self.report = await job(self._send.send)
            except Exception as error:  # noqa: BLE001 - it belongs to whoever takes the rows
                self._failure = error


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
