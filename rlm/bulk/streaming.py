"""Streaming of rows in the order in which they finish, each exactly once, in bounded memory.

`RowJoiner` is the side of the job: it joins rows with their results. `RowStream` is the side of the consumer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, TypeAlias

import anyio

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rlm.bulk.io.rows import Row
    from rlm.bulk.output import RowResult
    from rlm.bulk.report import JobReport

__all__ = ["ROWS_AHEAD", "FinishedRow", "OnRow", "RowJoiner", "RowStream"]

ROWS_AHEAD: Final = 100
"""Finished rows that may wait for the consumer before the job waits, too."""
ROWS_HELD: Final = 50_000
"""Rows kept in memory until their result is known; further ones are read again at the end."""


@dataclass(frozen=True, slots=True)
class FinishedRow:
    """A row with its result.

    Attributes:
        index: position in the input, from 0.
        row: its fields and the new columns, which are None if it failed.
        kind: name of the error if it failed, else ''.
        reason: why it failed, else ''.
    """

    index: int
    row: Row
    kind: str = ""
    reason: str = ""

    @property
    def failed(self) -> bool:
        """True if the row has no answer."""
        return bool(self.kind)


OnRow: TypeAlias = Callable[[FinishedRow], Awaitable[None]]
"""Function that receives each finished row; until it returns, the worker that got the answer makes no other call."""


class RowStream:
    """Rows of one job as they finish; an async iterator.

    Attributes:
        report: the report of the job, or None while it runs.
    """

    def __init__(self) -> None:
        self.report: JobReport | None = None
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
        """Accept no more rows."""
        self._send.close()
        self._receive.close()

    async def run(self, job: Callable[[OnRow], Awaitable[JobReport]]) -> None:
        """Run a job that passes its rows on; the iterator raises its error after the last row."""
        with self._send:
            try:
                self.report = await job(self._send.send)
            except Exception as error:  # noqa: BLE001 - raised by __anext__
                self._failure = error


class RowJoiner:
    """Joins rows with results that come later, and emits each row once.

    A job reads its rows once per stage. So one bit per row records that it was emitted, and each new reading drops
    the rows that were held.

    Args:
        on_row: receives the finished rows.
        result_of: returns the result of a key, or None while it is open.
    """

    def __init__(self, on_row: OnRow, result_of: Callable[[int], RowResult | None]) -> None:
        self._on_row = on_row
        self._result_of = result_of
        self._emitted = bytearray()
        self._held: dict[int, list[tuple[int, Row]]] = {}
        self._held_rows = 0

    def restart(self) -> None:
        """Prepare for rows that are read from the start again."""
        self._held.clear()
        self._held_rows = 0

    async def add(self, number: int, row: Row, key: int) -> None:
        """Emit this row, numbered from 1, or hold it until its key is settled."""
        if (result := self._result_of(key)) is not None:
            await self.emit(number, row, result)
        elif self._held_rows < ROWS_HELD and not self._is_emitted(number):
            self._held.setdefault(key, []).append((number, row))
            self._held_rows += 1

    async def settle(self, key: int) -> None:
        """Emit the rows that wait for this key, if it has a result now."""
        if key not in self._held or (result := self._result_of(key)) is None:
            return
        rows = self._held.pop(key)
        self._held_rows -= len(rows)
        for number, row in rows:
            await self.emit(number, row, result)

    async def emit(self, number: int, row: Row, result: RowResult) -> None:
        """Pass a row on, unless that was done before."""
        if self._is_emitted(number):
            return
        byte, bit = divmod(number, 8)
        if byte >= len(self._emitted):
            self._emitted.extend(bytes(byte + 1024))
        self._emitted[byte] |= 1 << bit
        mapped = result.mapped
        await self._on_row(FinishedRow(number - 1, {**row, **result.columns}, mapped.kind, mapped.reason))

    def not_emitted(self, rows: Iterable[Row]) -> Iterator[tuple[int, Row]]:
        """Yield the rows that were not emitted yet, with their numbers."""
        return ((number, row) for number, row in enumerate(rows, 1) if not self._is_emitted(number))

    def _is_emitted(self, number: int) -> bool:
        byte, bit = divmod(number, 8)
        return byte < len(self._emitted) and bool(self._emitted[byte] >> bit & 1)
