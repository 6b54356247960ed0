"""The journal of runs: what happened, one event a line, in the one order in which it happened.

    with RLM_REPL(..., journal="runs.journal") as rlm: ...
    for event in read_events("runs.journal"): ...         # also while runs are under way, and after a crash

All runs of an object are in one journal, told apart by `run_id`; `RunStarted.parent_id` leads from a child run to its
parent. A journal that is there already is gone on with. The forms of records are in `records`, the file's in
`journal`.

Not written are `CallWrote` and `CellOutput`, pieces of what `CallFinished` and `CellFinished` hold whole: they would
be most of the file, and a reply or a cell that was cut off by a crash has to be asked or run again anyway. The
context is not written, either; `RunStarted.context_summary` says its type and size.

A record is in the file before anybody else hears of its event, so that it survives the end of the process, `kill -9`
included: no reply that was paid for is lost. It survives a power failure once its completion has returned.

An answer matters more than its record: where the disk is full or fails, the journal ends, and the runs go on. A
forked child writes nothing into the journal of its parent.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread

from rlm.errors import JournalError
from rlm.events import CallWrote, CellOutput
from rlm.journal.codec import EVENT_TYPES, event_of, record_of
from rlm.journal.log import Journal, read

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm.events import Event

__all__ = ["RunJournal", "read_events"]

logger = logging.getLogger("rlm")

KIND: Final = "run"


class RunJournal:
    """The journal that runs are written to. It never raises into a run: `problem` says why it ended, if it has.

    Belongs to one event loop, and to the process it was made in.

    Args:
        path: the file, which is made where there is none.

    Raises:
        JournalLocked: another one writes to it.
        JournalError: it cannot be opened, or is no journal of runs.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._journal = Journal.open(path, kind=KIND)
        self._synced = self._journal.size
        self._problem = ""
        self._process = os.getpid()

    @property
    def problem(self) -> str:
        """Why nothing is written any more, or ''."""
        if self._process != os.getpid():
            return f"this run is not in the journal {self._journal.path}, which belongs to the process that was forked"
        return self._problem

    def write(self, event: Event) -> None:
        """Append an event, unless it is a piece of what another one holds whole."""
        if isinstance(event, (CallWrote, CellOutput)) or self.problem:
            return
        try:
            self._journal.append(record_of(event))
        except (JournalError, OSError) as error:
            self._end(error)

    async def sync(self) -> None:
        """Wait until everything is on the disk itself. Cannot be cancelled."""
        if self.problem or self._synced == self._journal.size:
            return
        size = self._journal.size
        with anyio.CancelScope(shield=True):
            try:
                await anyio.to_thread.run_sync(self._journal.sync)
            except JournalError as error:
                self._end(error)
            else:
                self._synced = size

    def close(self) -> None:
        """Let others write. Idempotent."""
        self._journal.close()

    def _end(self, error: Exception) -> None:
        self._problem = f"this run is not whole in its journal: {error}"


def read_events(path: str | os.PathLike[str]) -> Iterator[Event]:
    """The events of a journal of runs, in the order in which they happened, up to the last whole record.

    Events that only a later version of this program knows are left out; a warning names them, once each.

    Raises:
        JournalError: it cannot be read, is no journal of runs, is of a newer version, or is damaged.
    """
    unknown: set[object] = set()
    for offset, record in read(path, kind=KIND):
        name = record.get("type")
        if isinstance(name, str) and name not in EVENT_TYPES:
            if name not in unknown:
                logger.warning("the journal %s has events of type %r, which are left out", path, name)
                unknown.add(name)
            continue
        try:
            yield event_of(record)
        except JournalError as error:
            raise JournalError(f"the journal {path} is damaged at byte {offset:,}: {error}") from error
