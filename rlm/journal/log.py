"""An append-only file of records, one JSON object a line, that survives whatever happens to its writer.

    with Journal.open(path, kind="bulk") as journal:      # creates it, or goes on after the last whole record
        journal.append({"type": "answered", ...})
    for offset, record in read(path): ...                 # also while somebody still writes

The first line says what it is: `{"journal": "bulk", "v": 1, ...}`; each record has a `type` of its owner's and `v`, the
version of the format it was written in. A reader refuses versions above its own. A record is never changed.

What is safe when: `append` returns when the operating system has the record, so it survives the end of the process,
`kill -9` included. It survives a power failure once `sync` has returned. A line that was torn in the middle is
dropped by the next reader or writer; as the last one only: anything else in a journal that is no record is an error.

One journal writes at a time, which a lock on the file itself sees to; the lock goes with the process that holds it,
or with the `Journal`, where that is dropped. A forked child does not inherit it: there, it is closed. The file is
readable by its owner alone. A key of a provider is never part of a record: records are built of rows, answers,
settings and events, none of which holds one.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from rlm.errors import JournalError, JournalLocked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

__all__ = ["Journal", "read", "read_record"]

VERSION: Final = 1
HEAD: Final = b'{"journal":'
TAIL_BYTES: Final = 1 << 16
LOCKED_BYTE: Final = 0x7FFF_FFFF
"""Windows locks ranges of bytes, also against reading: one that no journal reaches is taken."""

_open_here: weakref.WeakSet[Journal] = weakref.WeakSet()


class Journal:
    """A journal that is open for writing; a context manager. Made by `Journal.open`.

    Attributes:
        path: the file.
        torn_bytes: bytes of a torn last record that were dropped when it was opened.
    """

    def __init__(self, path: Path, descriptor: int, size: int, torn_bytes: int) -> None:
        self.path = path
        self.torn_bytes = torn_bytes
        self._descriptor = descriptor
        self._size = size
        self._let_go = weakref.finalize(self, _release, descriptor, os.getpid())
        self._let_go.atexit = False  # until its very end, the process may have something to add
        _open_here.add(self)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, kind: str) -> Journal:
        """Open a journal of this kind for appending, or begin one.

        Raises:
            JournalLocked: it is open for writing elsewhere.
            JournalError: it cannot be opened, is no journal of this kind, or is of a newer version.
        """
        path = Path(path)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        except OSError as error:
            raise JournalError(f"the journal {path} cannot be opened: {error.strerror}") from error
        try:
            _require_file(descriptor, path)
            _lock(descriptor, path)
            _require_same(descriptor, path)
            size = os.fstat(descriptor).st_size
            whole = _whole_bytes(descriptor, size)
            first = _read_line(descriptor, 0)
            if whole or not _is_torn_head(first):
                _check_head(path, first, kind)
            if whole < size:
                os.ftruncate(descriptor, whole)
            os.lseek(descriptor, whole, os.SEEK_SET)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError):
                raise JournalError(f"the journal {path} cannot be read: {error.strerror}") from error
            raise
        journal = cls(path, descriptor, whole, size - whole)
        if not whole:
            try:
                journal._write({"journal": kind, "v": VERSION})
            except BaseException:
                journal.close()
                raise
        return journal

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._size

    def append(self, record: Mapping[str, Any]) -> int:
        """Add a record and give its offset, by which `read_record` finds it.

        Raises:
            JournalError: it is no JSON, or the disk does not take it; nothing of it is then in the file.
        """
        return self._write({"v": VERSION, **record})

    def sync(self) -> None:
        """Wait until everything is on the disk itself; this takes milliseconds.

        Raises:
            JournalError: the disk failed.
        """
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise JournalError(f"the journal {self.path} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Let others write. Idempotent."""
        self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, record: Mapping[str, Any]) -> int:
        if not self._let_go.alive:
            raise JournalError(f"the journal {self.path} is closed")
        offset = self._size
        data = _encoded(record)
        try:
            written = 0
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except OSError as error:
            os.ftruncate(self._descriptor, offset)
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            raise JournalError(
                f"the journal {self.path} cannot be written: {error.strerror}. The {offset:,} bytes before are safe"
            ) from error
        self._size += len(data)
        return offset


def read(path: str | os.PathLike[str], *, kind: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of a journal with their offsets, from the first to the last whole one.

    Raises:
        JournalError: it cannot be read, is no journal (of this kind), is of a newer version, or is damaged.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.readline()
            if not head.endswith(b"\n"):
                return
            _check_head(path, head, kind)
            offset = len(head)
            line = file.readline()
            while line.endswith(b"\n"):
                following = file.readline()
                record = _decoded(line)
                if record is None:
                    if not following:
                        return
                    raise JournalError(f"the journal {path} is damaged at byte {offset:,}: this is no record")
                _check_version(path, record)
                yield offset, record
                offset += len(line)
                line = following
    except OSError as error:
        raise JournalError(f"the journal {path} cannot be read: {error.strerror}") from error


def read_record(file: Any, offset: int) -> dict[str, Any]:
    """The record at an offset of a journal that is open as a binary file.

    Raises:
        JournalError: there is none.
    """
    file.seek(offset)
    record = _decoded(file.readline())
    if record is None:
        raise JournalError(f"the journal has no record at byte {offset:,}")
    return record


def _encoded(record: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(record, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise JournalError(f"a record is no JSON: {error}") from error
    try:
        return text.encode("utf-8") + b"\n"
    except UnicodeEncodeError:  # a lone surrogate in a row or an answer, which only ASCII can keep
        return json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n"


def _decoded(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _is_torn_head(line: bytes) -> bool:
    """Whether this is all that came of the first line of a journal, and not somebody's file."""
    return line.startswith(HEAD) or HEAD.startswith(line) or not line.strip(b"\0")


def _check_head(path: Path, line: bytes, kind: str | None) -> None:
    head = _decoded(line)
    if head is None or not isinstance(head.get("journal"), str):
        raise JournalError(f"{path} is no journal")
    if kind is not None and head["journal"] != kind:
        raise JournalError(f"{path} is a journal of kind {head['journal']!r}, not {kind!r}")
    _check_version(path, head)


def _check_version(path: Path, record: Mapping[str, Any]) -> None:
    version = record.get("v")
    if not isinstance(version, int) or version > VERSION:
        raise JournalError(
            f"the journal {path} has a record of version {version!r}, and this program knows versions up to "
            f"{VERSION}: use a newer one"
        )


def _whole_bytes(descriptor: int, size: int) -> int:
    """How much of the file consists of whole records: without a last line that was torn, or never was JSON."""
    end = _after_last_newline(descriptor, size)
    if not end:
        return 0
    start = _after_last_newline(descriptor, end - 1)
    if _decoded(_read_line(descriptor, start)) is None:
        return start
    return end


def _after_last_newline(descriptor: int, end: int) -> int:
    while end > 0:
        start = max(0, end - TAIL_BYTES)
        os.lseek(descriptor, start, os.SEEK_SET)
        found = os.read(descriptor, end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _read_line(descriptor: int, start: int) -> bytes:
    os.lseek(descriptor, start, os.SEEK_SET)
    pieces: list[bytes] = []
    while data := os.read(descriptor, TAIL_BYTES):
        piece, newline, _ = data.partition(b"\n")
        pieces.append(piece)
        if newline:
            break
    return b"".join(pieces)


def _require_file(descriptor: int, path: Path) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise JournalError(f"{path} is no file that a journal can be kept in")


def _require_same(descriptor: int, path: Path) -> None:
    """Between opening and locking it, whoever had it may have removed it: records would be written to nowhere."""
    try:
        is_same = os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        is_same = False
    if not is_same:
        raise JournalLocked(f"the journal {path} was removed while it was opened: open it again")


def _lock(descriptor: int, path: Path) -> None:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise JournalLocked(
            f"another process, or something else in this one, is writing to the journal {path}: wait until it has "
            "ended, or close it"
        ) from error


def _release(descriptor: int, process: int) -> None:
    if sys.platform != "win32" and process == os.getpid():
        import fcntl

        # A child that is just being forked has the same lock, until it starts something else.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _leave_to_parent() -> None:
    """In a forked child, which would hold the parent's lock for as long as it lives."""
    for journal in list(_open_here):
        journal.close()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_leave_to_parent)
