"""Checkpoint of a job: the journal of its answers, and in memory the offset of each answer in the journal.

An answer is kept under the hash of the content it is about, not under the number of its row. So equal rows share one,
a resumed job finds its answers in any order of rows, and a row whose text has changed is asked anew. Memory is about
150 bytes for each distinct row, for rows and answers of any length.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from typing import IO, TYPE_CHECKING, Any, Final, Self

from rlm.bulk.job import JobRecord
from rlm.errors import InputError, JournalError
from rlm.journal.log import Journal, read, read_record
from rlm.structured.leftovers import Mapped
from rlm.values import Reply, Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["TRANSIENT", "Checkpoint", "forget", "key_of", "read_job"]

KIND: Final = "bulk"
PENDING: Final = -1
CACHED_RECORDS: Final = 1_024
CACHED_BYTES: Final = 16_000_000
TRANSIENT: Final = frozenset(
    {"BadReply", "CallTimedOut", "CircuitOpen", "ConnectionFailed", "RateLimited", "ServerError"}
)
"""Failures that are not the fault of the row: a resumed job asks it again."""


def key_of(content: Mapping[str, Any]) -> int:
    """Return the key of an answer: a hash of the content it is about."""
    # Python's own notation separates 1 from '1', is ASCII for text that UTF-8 cannot encode, and is fast.
    text = ascii(sorted(content.items()))
    return int.from_bytes(hashlib.blake2b(text.encode("ascii"), digest_size=16).digest())


class Checkpoint:
    """Answers of one job, by stage and key; a context manager.

    A stage is one opinion, or the escalation. Batches are those of a provider's Batch API.

    Attributes:
        path: the journal.
        usage: usage of the answers of earlier sessions.
        cost_usd: their cost, or None if a price was not known.
        resumed: answers that the journal held when it was opened.
    """

    def __init__(self, path: Path, job: JobRecord, *, resume: bool, retry: bool = False) -> None:
        """Begin a journal, or go on with one.

        Raises:
            InputError: the journal exists and `resume` is False, or it belongs to another task.
            JournalError: it cannot be used, or another process uses it.
        """
        self.path = path
        self.usage = Usage()
        self.cost_usd: float | None = 0.0
        self.resumed = 0
        self._answers: list[dict[int, int]] = [{} for _ in range(job.stages)]
        self._failures: list[dict[int, int]] = [{} for _ in range(job.stages)]
        self._batches: dict[str, tuple[int, str | None, int]] = {}
        self._records: _RecordCache | None = None
        self._is_disposable = False
        if not resume and path.exists() and path.stat().st_size:
            _require_no_answers(path)
            forget(path)
        self._journal = Journal.open(path, kind=KIND)
        try:
            latest = self._load(job)
            if latest is None or not _are_equal(latest, job.options):
                self._journal.append({"type": "job", "task": dict(job.task), "options": dict(job.options)})
            self._is_disposable = latest is None
            if retry:
                self._journal.append({"type": "retry"})
                self._forget_failures()
            self._records = _RecordCache(path.open("rb"))
        except BaseException:
            self._journal.close()
            raise

    # Answers ---------------------------------------------------------------------------------------------------

    def claim(self, stage: int, key: int) -> bool:
        """Return True if this is still to be asked, and mark it as asked."""
        answers = self._answers[stage]
        if key in answers or key in self._failures[stage]:
            return False
        answers[key] = PENDING
        return True

    def release(self, stage: int, keys: Iterable[int]) -> None:
        """Undo `claim`, so that these are asked in the next pass over the rows."""
        answers = self._answers[stage]
        for key in keys:
            if answers.get(key) == PENDING:
                del answers[key]

    def is_settled(self, stage: int, key: int) -> bool:
        """Return True if there is an answer or a failure."""
        return self._answers[stage].get(key, PENDING) != PENDING or key in self._failures[stage]

    def record(self, stage: int, settled: Sequence[tuple[int, Mapped]], reply: Reply | None) -> None:
        """Write the answers and failures of one call to the journal.

        Raises:
            JournalError: the disk does not take it.
        """
        answers = {f"{key:032x}": mapped.value for key, mapped in settled if not mapped.failed}
        failures = {f"{key:032x}": [mapped.kind, mapped.reason] for key, mapped in settled if mapped.failed}
        record: dict[str, Any] = {"type": "answers", "o": stage, "a": answers, "f": failures}
        if reply is not None:
            usage = reply.usage
            record["u"] = [usage.calls, usage.input_tokens, usage.cached_tokens, usage.output_tokens]
            record["usd"] = reply.cost_usd
        # Before the append: an interruption between the two must not remove a paid answer.
        self._is_disposable = False
        offset = self._journal.append(record)
        for key, mapped in settled:
            self._answers[stage].pop(key, None)
            (self._failures if mapped.failed else self._answers)[stage][key] = offset

    def mapped(self, stage: int, key: int) -> Mapped | None:
        """Return the answer or failure, or None if this is not settled."""
        offset = self._answers[stage].get(key, PENDING)
        if offset != PENDING:
            return Mapped(self._record_at(offset)["a"][f"{key:032x}"])
        offset = self._failures[stage].get(key, PENDING)
        if offset == PENDING:
            return None
        kind, reason = self._record_at(offset)["f"][f"{key:032x}"]
        return Mapped(kind=kind, reason=reason)

    # Batches ---------------------------------------------------------------------------------------------------

    def add_batch(self, stage: int, tag: str, packs: Sequence[Sequence[int]]) -> None:
        """Record, before it is submitted, that a batch will ask about these packs of keys."""
        keys = [[f"{key:032x}" for key in pack] for pack in packs]
        self._append_batch({"type": "batch", "o": stage, "tag": tag, "packs": keys})
        self.sync()

    def batch_submitted(self, tag: str, batch_id: str) -> None:
        """Record the id that the provider gave a batch."""
        self._append_batch({"type": "batch started", "tag": tag, "id": batch_id})
        self.sync()

    def batch_collected(self, tag: str) -> None:
        """Record that all results of a batch are in the journal, or that it was never submitted."""
        self._append_batch({"type": "batch collected", "tag": tag})

    def batches(self, stage: int) -> Iterator[tuple[str, str | None, list[list[int]]]]:
        """Yield tag, id and packs of keys of the batches that are not collected yet."""
        for tag, (of, batch_id, offset) in list(self._batches.items()):
            if of == stage:
                packs = self._record_at(offset)["packs"]
                yield tag, batch_id, [[int(key, 16) for key in pack] for pack in packs]

    @property
    def uncollected(self) -> int:
        """Number of batches that are not collected yet."""
        return len(self._batches)

    # The file --------------------------------------------------------------------------------------------------

    def keep(self) -> None:
        """Keep the journal even if it holds no answer: failed rows are retried from it."""
        self._is_disposable = False

    def sync(self) -> None:
        """Wait until everything is on the disk itself."""
        self._journal.sync()

    def close(self) -> None:
        """Release the journal, and remove it if this session began it and got no answer. Idempotent."""
        if self._records is not None:
            self._records.close()
        if self._is_disposable:
            self._is_disposable = False
            self.path.unlink(missing_ok=True)
        self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self, job: JobRecord) -> Mapping[str, Any] | None:
        """Read the journal; return the options of its last session, or None for an empty journal."""
        latest: Mapping[str, Any] | None = None
        for offset, record in read(self.path, kind=KIND):
            try:
                match record.get("type"):
                    case "job":
                        _check_same_task(self.path, record["task"], job.task)
                        latest = dict(record["options"])
                    case "answers":
                        self._load_answers(offset, record)
                    case "retry":
                        self._forget_failures()
                    case _:
                        self._load_batch(offset, record)
            except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
                if isinstance(error, InputError):
                    raise
                raise JournalError(
                    f"the journal {self.path} is damaged at byte {offset:,}: {error!r}"
                ) from error
        self.resumed = sum(map(len, self._answers))
        return latest

    def _load_answers(self, offset: int, record: Mapping[str, Any]) -> None:
        answers, failures = self._answers[record["o"]], self._failures[record["o"]]
        answers.update((int(key, 16), offset) for key in record["a"])
        failures.update(
            (int(key, 16), offset) for key, (kind, _) in record["f"].items() if kind not in TRANSIENT
        )
        for key in record["a"]:
            failures.pop(int(key, 16), None)
        if "u" in record:
            calls, sent, cached, received = record["u"]
            self.usage += Usage(calls=calls, input_tokens=sent, cached_tokens=cached, output_tokens=received)
            cost = record["usd"]
            self.cost_usd = None if cost is None or self.cost_usd is None else self.cost_usd + cost

    def _load_batch(self, offset: int, record: Mapping[str, Any]) -> None:
        match record.get("type"):
            case "batch":
                self._batches[record["tag"]] = (record["o"], None, offset)
            case "batch started":
                stage, _, offset = self._batches[record["tag"]]
                self._batches[record["tag"]] = (stage, record["id"], offset)
            case "batch collected":
                self._batches.pop(record["tag"], None)

    def _append_batch(self, record: Mapping[str, Any]) -> None:
        self._is_disposable = False
        self._load_batch(self._journal.append(record), record)

    def _forget_failures(self) -> None:
        for failures in self._failures:
            failures.clear()

    def _record_at(self, offset: int) -> dict[str, Any]:
        if self._records is None:
            raise JournalError(f"the journal {self.path} is closed")
        return self._records.read(offset)


class _RecordCache:
    """Reader of single records of a journal that keeps the latest ones in memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._cached: OrderedDict[int, tuple[dict[str, Any], int]] = OrderedDict()
        self._bytes = 0

    def read(self, offset: int) -> dict[str, Any]:
        """Return the record at this offset."""
        cached = self._cached.get(offset)
        if cached is not None:
            return cached[0]
        record = read_record(self._file, offset)
        size = self._file.tell() - offset
        self._cached[offset] = record, size
        self._bytes += size
        while len(self._cached) > CACHED_RECORDS or self._bytes > CACHED_BYTES:
            _, (_, size) = self._cached.popitem(last=False)
            self._bytes -= size
        return record

    def close(self) -> None:
        self._file.close()


def read_job(path: Path) -> JobRecord:
    """Return the job of a journal, as its last session ran it.

    Raises:
        JournalError: it is not the journal of a job over rows.
    """
    latest = None
    for _, record in read(path, kind=KIND):
        if record.get("type") == "job":
            latest = JobRecord(record["task"], record["options"])
    if latest is None:
        raise JournalError(f"the journal {path} has no record of its job: remove it, or name another output")
    return latest


def forget(path: Path) -> None:
    """Remove the journal of a job, if it exists.

    Raises:
        JournalError: the file is another one, or another process writes to it.
    """
    if path.exists():
        with Journal.open(path, kind=KIND):
            path.unlink()


def _require_no_answers(path: Path) -> None:
    """Require that a journal may be removed, as one of a session that ended before its first answer.

    Raises:
        InputError: it holds answers.
        JournalError: it is not the journal of a job.
    """
    if any(_is_worth_keeping(record) for _, record in read(path, kind=KIND)):
        raise InputError(
            f"{path} holds answers of an earlier job: resume that one (--resume), or forget it (--overwrite)"
        )


def _is_worth_keeping(record: Mapping[str, Any]) -> bool:
    """Return True for a record with answers, or of a batch, which was paid for; failures alone are not."""
    match record.get("type"):
        case "job" | "retry":
            return False
        case "answers":
            return bool(record.get("a"))
        case _:
            return True


def _are_equal(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Compare options with those of a journal, in which JSON has turned tuples to lists."""
    return json.dumps(recorded, sort_keys=True) == json.dumps(current, sort_keys=True)


def _check_same_task(path: Path, recorded: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    for name in dict.fromkeys([*recorded, *current]):
        if name == "escalate_to" and recorded.get(name) is None:
            continue  # adding an escalation changes no recorded answer
        if recorded.get(name) != current.get(name):
            raise InputError(
                f"{path} holds answers of another job: its {name} is {recorded.get(name)!r:.200}, and not "
                f"{current.get(name)!r:.200}; name another output, or remove the file"
            )
