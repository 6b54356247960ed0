"""Answers on disk: the same call is not paid for twice.

One SQLite file in WAL mode, which several processes may use at once. One worker thread at a time does its work, and
the requests of many tasks are committed together (group commit), so that the event loop never waits for a disk. A
cache that fails (a full disk, a broken file) is switched off with a warning; it never fails a call.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import anyio
import anyio.to_thread

from rlm._async.semaphore import FairSemaphore
from rlm.scheduler.dedupe import identity
from rlm.values import Call, Reply, Usage

if TYPE_CHECKING:
    from rlm.settings import SchedulerSettings

__all__ = ["Cache", "cache_path", "key_of"]

FORMAT = 2
BUSY_TIMEOUT_S = 10.0
KEPT_AFTER_EVICTION = 0.9
PRECISION_OF_LAST_USE_S = 60.0

SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (key BLOB NOT NULL UNIQUE, reply TEXT NOT NULL, bytes INTEGER NOT NULL, used_at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS replies_by_use ON replies (used_at, bytes);
CREATE TABLE IF NOT EXISTS size (bytes INTEGER NOT NULL);
INSERT INTO size SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM size);
CREATE TRIGGER IF NOT EXISTS grow AFTER INSERT ON replies BEGIN UPDATE size SET bytes = bytes + new.bytes; END;
CREATE TRIGGER IF NOT EXISTS shrink AFTER DELETE ON replies BEGIN UPDATE size SET bytes = bytes - old.bytes; END;
"""

Operation: TypeAlias = Callable[[sqlite3.Connection], Reply | None]


def cache_path(settings: SchedulerSettings) -> Path:
    """Return the file of the cache with these settings."""
    if settings.cache_folder is not None:
        return Path(settings.cache_folder) / f"replies-{FORMAT}.sqlite3"
    from platformdirs import user_cache_path

    return user_cache_path("rlm-cells") / f"replies-{FORMAT}.sqlite3"


def key_of(call: Call, *, endpoint: str, occurrence: int = 0) -> bytes:
    """Return a hash of the endpoint and everything that reaches the model; equal calls have equal keys.

    `occurrence` distinguishes the samples of one prompt: the second sample never gets the answer of the first.
    """
    content = (FORMAT, endpoint, identity(call), occurrence)
    # `repr` escapes lone surrogates, which UTF-8 cannot encode.
    return hashlib.sha256(repr(content).encode()).digest()


class Cache:
    """Cache of answers by call. Use it on one event loop; the file may be shared by many processes.

    Attributes:
        problem: the reason why the cache was switched off, or "".
    """

    def __init__(
        self,
        path: Path,
        *,
        mode: Literal["read", "on"],
        endpoint: str = "",
        sampled: bool = False,
        max_bytes: int = 1 << 30,
    ) -> None:
        self.problem = ""
        self._path = path
        self._mode = mode
        self._endpoint = endpoint
        self._sampled = sampled
        self._max_bytes = max_bytes
        self._connection: sqlite3.Connection | None = None
        self._pending: list[_QueuedOperation] = []
        self._semaphore = FairSemaphore(1)
        self._threads: anyio.CapacityLimiter | None = None

    async def get(self, call: Call, *, occurrence: int = 0) -> Reply | None:
        """Return the stored answer to a call, marked as stored and free, or None."""
        key = self._key(call, occurrence)
        if key is None:
            return None

        def read(connection: sqlite3.Connection) -> Reply | None:
            return _read(connection, key, touch=self._mode == "on")

        return await self._do(read)

    async def put(self, call: Call, reply: Reply, *, occurrence: int = 0) -> None:
        """Store an answer, unless it is cut or filtered."""
        if self._mode != "on" or reply.finish_reason not in {"stop", "unknown"}:
            return
        key = self._key(call, occurrence)
        if key is None:
            return

        def write(connection: sqlite3.Connection) -> None:
            _write(connection, key, reply)
            _evict(connection, self._max_bytes)

        await self._do(write)

    async def aclose(self) -> None:
        """Close the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(connection.close)

    def _key(self, call: Call, occurrence: int) -> bytes | None:
        """Return the key of a call, or None for a call whose answer is not stored."""
        if self.problem or (call.temperature and not self._sampled):
            return None
        return key_of(call, endpoint=self._endpoint, occurrence=occurrence)

    async def _do(self, operation: Operation) -> Reply | None:
        request = _QueuedOperation(operation)
        self._pending.append(request)
        await self._semaphore.acquire(None)
        try:
            # Group commit: the task that holds the semaphore performs the pending requests of all.
            if not request.done:
                requests, self._pending = self._pending, []
                # A thread of its own: the cache must not wait for other work done in threads.
                self._threads = self._threads or anyio.CapacityLimiter(1)
                await anyio.to_thread.run_sync(self._perform, requests, limiter=self._threads)
        finally:
            self._semaphore.release()
        return request.result

    def _perform(self, requests: list[_QueuedOperation]) -> None:
        try:
            if self.problem:
                return
            if self._connection is None:
                if self._mode == "read" and not self._path.exists():
                    return
                self._connection = _open(self._path)
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE" if self._mode == "on" else "BEGIN")
                for request in requests:
                    request.result = request.operation(self._connection)
        except (sqlite3.Error, OSError) as error:
            self.problem = f"the cache at {self._path} is switched off: {error}"
        finally:
            for request in requests:
                request.done = True


@dataclass(slots=True)
class _QueuedOperation:
    operation: Operation
    result: Reply | None = None
    done: bool = False


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Answers are as private as the prompts they answer: the file is made readable by its owner only.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT;")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _read(connection: sqlite3.Connection, key: bytes, *, touch: bool) -> Reply | None:
    with closing(connection.execute("SELECT reply, used_at FROM replies WHERE key = ?", (key,))) as rows:
        row = rows.fetchone()
    if row is None:
        return None
    now = time.time()
    if touch and now - row[1] > PRECISION_OF_LAST_USE_S:
        connection.execute("UPDATE replies SET used_at = ? WHERE key = ?", (now, key)).close()
    return _decoded(row[0])


def _write(connection: sqlite3.Connection, key: bytes, reply: Reply) -> None:
    text = _encoded(reply)
    connection.execute("DELETE FROM replies WHERE key = ?", (key,)).close()
    connection.execute(
        "INSERT INTO replies (key, reply, bytes, used_at) VALUES (?, ?, ?, ?)",
        (key, text, len(text), time.time()),
    ).close()


def _evict(connection: sqlite3.Connection, max_bytes: int) -> None:
    with closing(connection.execute("SELECT bytes FROM size")) as rows:
        excess = rows.fetchone()[0] - max_bytes
    if excess <= 0:
        return
    excess += int(max_bytes * (1 - KEPT_AFTER_EVICTION))
    with closing(connection.execute("SELECT rowid, bytes FROM replies ORDER BY used_at")) as rows:
        doomed = []
        for rowid, size in rows:
            doomed.append((rowid,))
            excess -= size
            if excess <= 0:
                break
    connection.executemany("DELETE FROM replies WHERE rowid = ?", doomed).close()


def _encoded(reply: Reply) -> str:
    # ASCII, because SQLite stores UTF-8 and a model's answer may contain a lone surrogate.
    return json.dumps(
        {
            "text": reply.text,
            "model": reply.model,
            "finish_reason": reply.finish_reason,
            "warnings": reply.warnings,
        }
    )


def _decoded(text: str) -> Reply | None:
    try:
        stored: dict[str, Any] = json.loads(text)
        return Reply(
            text=stored["text"],
            model=stored["model"],
            finish_reason=stored["finish_reason"],
            warnings=tuple(stored["warnings"]),
            usage=Usage(),
            attempts=0,
            cost_usd=0.0,
            stored=True,
        )
    except (ValueError, TypeError, KeyError):
        return None  # written by something else: the call is made, and the row replaced
