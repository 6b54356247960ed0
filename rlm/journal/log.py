"""Append-only file of records, one JSON object per line, that survives a crash of its writer.

    with Journal.open(path, kind="bulk") as journal:      # creates it, or continues after the last complete record
        journal.append({"type": "answered", ...})
    for offset, record in read(path): ...                 # also while another process writes

The first line names the kind: `{"journal": "bulk", "v": 1, ...}`. Each record has a `type`, chosen by its owner, and
`v`, the format version it was written in. A reader refuses versions above its own. A record is never changed.

Durability: when `append` returns, the operating system has the record, so it survives the end of the process,
including `kill -9`. When `sync` returns, it survives a power failure. A last line that was torn by a crash is dropped
by the next reader or writer; any other line that is no record is an error.

Locking: one `Journal` at a time may write to a file, enforced by a lock on the file (`flock`). The lock ends with the
process, or when the `Journal` is closed or garbage collected. A forked child closes the journals it inherits.

Privacy: only the owner of the file may read it. No record contains an API key: records are built of rows, answers,
settings and events, and none of these holds one.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
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

_open_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


class Journal:
    """Journal that is open for writing; a context manager. Created by `Journal.open`.

    Attributes:
        path: the file.
        torn_bytes: size of the torn last record that was dropped when the file was opened, in bytes.
    """

    def __init__(self, path: Path, descriptor: int, size: int, torn_bytes: int) -> None:
        self.path = path
        self.torn_bytes = torn_bytes
        self._descriptor = descriptor
        self._size = size
        self._unlock_and_close = weakref.finalize(self, _unlock, descriptor, os.getpid())
        self._unlock_and_close.atexit = False  # other exit handlers may still append records
        _open_journals.add(self)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, kind: str) -> Journal:
        """Open a journal of this kind for appending; create it if the file does not exist.

        Raises:
            JournalLocked: another `Journal`, of this or another process, writes to it.
            JournalError: it cannot be opened, is no journal of this kind, or has a newer version.
        """
        path = Path(path)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise JournalError(f"the journal {path} cannot be opened: {error.strerror}") from error
        try:
            _require_regular_file(descriptor, path)
            _lock(descriptor, path)
            _require_not_removed(descriptor, path)
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
        """Size of the file in bytes."""
        return self._size

    def append(self, record: Mapping[str, Any]) -> int:
        """Append a record and return its byte offset, for `read_record`.

        Raises:
            JournalError: the record is no JSON value, or writing failed; no part of it is then in the file.
        """
        return self._write({"v": VERSION, **record})

    def sync(self) -> None:
        """Flush the file to the disk (`fsync`); takes milliseconds.

        Raises:
            JournalError: the disk failed.
        """
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise JournalError(f"the journal {self.path} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Close the file and release its lock. Idempotent."""
        self._unlock_and_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, record: Mapping[str, Any]) -> int:
        if not self._unlock_and_close.alive:
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
    """Yield the records of a journal with their byte offsets, up to the last complete one.

    Raises:
        JournalError: it cannot be read, is no journal (of this kind), has a newer version, or is damaged.
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
    """Return the record at a byte offset of a journal that is open as a binary file.

    Raises:
        JournalError: there is no record at this offset.
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
    except UnicodeEncodeError:  # a lone surrogate in a row or an answer: only ASCII escapes keep it
        return json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n"


def _decoded(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _is_torn_head(line: bytes) -> bool:
    """Return True if the line is the torn first line of a journal, so that the file may be overwritten."""
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
    """Return the size of the complete records in bytes: without a last line that is torn or no JSON."""
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


def _require_regular_file(descriptor: int, path: Path) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise JournalError(f"{path} is no regular file, so it cannot be a journal")


def _require_not_removed(descriptor: int, path: Path) -> None:
    """Require that the path still names the open file.

    The last owner may have removed it between our `open` and our lock: records would go to an unlinked file.
    """
    try:
        is_same = os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        is_same = False
    if not is_same:
        raise JournalLocked(f"the journal {path} was removed while it was opened: open it again")


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise JournalLocked(
            f"another process, or another object of this one, is writing to the journal {path}: wait until it has "
            "ended, or close it"
        ) from error


def _unlock(descriptor: int, process: int) -> None:
    if process == os.getpid():
        # `close` alone releases the lock only when all duplicates are closed, and a child that was just forked to
        # start a program holds one. `LOCK_UN` releases it for all of them.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _close_in_child() -> None:
    """Close the journals of the parent in a forked child, which would otherwise hold their locks as long as it runs."""
    for journal in list(_open_journals):
        journal.close()


os.register_at_fork(after_in_child=_close_in_child)
