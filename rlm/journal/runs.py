"""Journal of runs: their events, one per line, in the order in which they happened.

    with RLM_REPL(..., journal="runs.journal") as rlm: ...
    for event in read_events("runs.journal"): ...         # also during a run, and after a crash

All runs of one `RLM_REPL` go into one journal, distinguished by `run_id`; `RunStarted.parent_id` links a child run to
its parent. An existing journal is continued. `codec` defines the records, `log` the file.

`CallWrote` and `CellOutput` are not written, because `CallFinished` and `CellFinished` repeat their text: they would
be most of the file, and a reply or cell that a crash interrupted has to be repeated anyway. The context is not written
either; `RunStarted.context_summary` has its type and size.

An event is written before any listener receives it, so it survives the end of the process, including `kill -9`: no
reply that was paid for is lost. It survives a power failure once its completion has returned.

An answer matters more than its record: if the disk is full or fails, the journal ends, and the runs continue. A forked
child does not write to the journal of its parent.
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
    """Journal that runs write their events to. Writing never raises: `problem` says why the journal ended, if it did.

    Belongs to one event loop, and to the process that created it.

    Args:
        path: the file; created if it does not exist.

    Raises:
        JournalLocked: another journal object writes to it.
        JournalError: it cannot be opened, or is no journal of runs.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._journal = Journal.open(path, kind=KIND)
        self._synced = self._journal.size
        self._problem = ""
        self._process = os.getpid()

    @property
    def problem(self) -> str:
        """Reason why nothing is written any more, or ''."""
        if self._process != os.getpid():
            return f"this run is not in the journal {self._journal.path}, which belongs to the parent process"
        return self._problem

    def write(self, event: Event) -> None:
        """Append an event, unless a later event repeats its text."""
        if isinstance(event, (CallWrote, CellOutput)) or self.problem:
            return
        try:
            self._journal.append(record_of(event))
        except (JournalError, OSError) as error:
            self._end(error)

    async def sync(self) -> None:
        """Flush the file to the disk. Cannot be cancelled."""
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
        """Close the file and release its lock. Idempotent."""
        self._journal.close()

    def _end(self, error: Exception) -> None:
        self._problem = f"this run is incomplete in its journal: {error}"


def read_events(path: str | os.PathLike[str]) -> Iterator[Event]:
    """Yield the events of a journal of runs, in the order in which they happened, up to the last complete record.

    Events of types that this version does not know are left out; a warning names each type once.

    Raises:
        JournalError: it cannot be read, is no journal of runs, has a newer version, or is damaged.
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
