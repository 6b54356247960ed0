"""What a job over rows has been answered so far: a journal, and in memory where in it each answer is.

An answer is kept under the hash of what was asked about, not under the number of its row. So equal rows share one,
a resumed job finds its answers whatever became of the order of its rows, and a row whose text has changed is asked
anew. Memory is about 150 bytes for each distinct row, however long the rows and the answers are.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final, Self

from rlm.errors import InputError, JournalError
from rlm.journal.log import Journal, read, read_record
from rlm.structured.map import Mapped
from rlm.values import Reply, Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["PASSING", "Checkpoint", "JobRecord", "Memory", "forget", "key_of", "read_job"]

KIND: Final = "bulk"
PENDING: Final = -1
RECORDS_AT_HAND: Final = 1_024
BYTES_AT_HAND: Final = 16_000_000
PASSING: Final = frozenset(
    {"BadReply", "CallTimedOut", "CircuitOpen", "ConnectionFailed", "RateLimited", "ServerError"}
)
"""Failures that say nothing of the row: a resumed job asks it again."""


@dataclass(frozen=True, slots=True)
class JobRecord:
    """What a journal says of its job: `task` is what makes answers comparable, `options` all else, to do it again."""

    task: Mapping[str, Any]
    options: Mapping[str, Any]

    @property
    def stages(self) -> int:
        """How often its rows may be asked about: once for each opinion, and once more where they are in doubt."""
        opinions = len(self.task["models"]) * int(self.task["samples"])
        return opinions + (self.task.get("escalate_to") is not None)


def key_of(content: Mapping[str, Any]) -> int:
    """The name of an answer: a hash of what is asked about."""
    # The text of Python's own notation tells 1 from '1', is ASCII where UTF-8 would fail, and is quickly made.
    text = ascii(sorted(content.items()))
    return int.from_bytes(hashlib.blake2b(text.encode("ascii"), digest_size=16).digest())


class Checkpoint:
    """The answers of one job, for each of the stages of asking it; a context manager.

    Attributes:
        path: the journal.
        usage: what the answers of earlier sessions used.
        cost_usd: what they cost, or None where a price was not known.
        resumed: answers that were there when it was opened.
    """

    def __init__(self, path: Path, job: JobRecord, *, resume: bool, retry: bool = False) -> None:
        """Begin a journal, or go on with one.

        Raises:
            InputError: there is one, and `resume` was not asked for; or it is of another task.
            JournalError: it cannot be used, or another process does.
        """
        self.path = path
        self.usage = Usage()
        self.cost_usd: float | None = 0.0
        self.resumed = 0
        self._answers: list[dict[int, int]] = [{} for _ in range(job.stages)]
        self._failures: list[dict[int, int]] = [{} for _ in range(job.stages)]
        self._batches: dict[str, tuple[int, str | None, int]] = {}
        self._at_hand: OrderedDict[int, tuple[dict[str, Any], int]] = OrderedDict()
        self._bytes_at_hand = 0
        self._file: IO[bytes] | None = None
        self._holds_nothing = False
        if not resume and path.exists() and path.stat().st_size:
            _require_nothing_in(path)
            forget(path)
        self._journal = Journal.open(path, kind=KIND)
        try:
            latest = self._load(job)
            if latest is None or not _are_equal(latest, job.options):
                self._journal.append({"type": "job", "task": dict(job.task), "options": dict(job.options)})
            self._holds_nothing = latest is None
            if retry:
                self._journal.append({"type": "retry"})
                self._forget_failures()
            self._file = path.open("rb")
        except BaseException:
            self._journal.close()
            raise

    def claim(self, stage: int, key: int) -> bool:
        """Whether this has not been asked yet; from now on it has."""
        answers = self._answers[stage]
        if key in answers or key in self._failures[stage]:
            return False
        answers[key] = PENDING
        return True

    def record(self, stage: int, settled: Sequence[tuple[int, Mapped]], reply: Reply | None) -> None:
        """Keep what one call settled.

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
        self._holds_nothing = (
            False  # before there is an answer, so that an interruption in between costs none
        )
        offset = self._journal.append(record)
        for key, mapped in settled:
            self._answers[stage].pop(key, None)
            (self._failures if mapped.failed else self._answers)[stage][key] = offset

    def outcome(self, stage: int, key: int) -> Mapped | None:
        """The answer, or why there is none, or None where it was never settled."""
        offset = self._answers[stage].get(key, PENDING)
        if offset != PENDING:
            return Mapped(self._record_at(offset)["a"][f"{key:032x}"])
        offset = self._failures[stage].get(key, PENDING)
        if offset == PENDING:
            return None
        kind, reason = self._record_at(offset)["f"][f"{key:032x}"]
        return Mapped(kind=kind, reason=reason)

    def memory(self, stage: int) -> Memory:
        """What one stage's way of asking may keep in the journal."""
        return Memory(self, stage)

    def release(self, stage: int, keys: Iterable[int]) -> None:
        """Forget claims, so that these are asked in another pass over the rows."""
        answers = self._answers[stage]
        for key in keys:
            if answers.get(key) == PENDING:
                del answers[key]

    def is_settled(self, stage: int, key: int) -> bool:
        """Whether there is an answer, or a failure."""
        return self._answers[stage].get(key, PENDING) != PENDING or key in self._failures[stage]

    def note(self, record: Mapping[str, Any]) -> None:
        """Keep something that is no answer: what became of a batch."""
        self._holds_nothing = False
        self._note(self._journal.append(record), record)

    def batches(self, stage: int) -> Iterator[tuple[str, str | None, list[list[int]]]]:
        """Tag, number and packs of keys of the batches that were not collected yet."""
        for tag, (of, number, offset) in list(self._batches.items()):
            if of == stage:
                packs = self._record_at(offset)["packs"]
                yield tag, number, [[int(key, 16) for key in pack] for pack in packs]

    @property
    def uncollected(self) -> int:
        """Batches that were begun, and whose end is not known yet."""
        return len(self._batches)

    def keep(self) -> None:
        """Leave the journal there though it holds no answer: failed rows are asked again by it."""
        self._holds_nothing = False

    def sync(self) -> None:
        """Wait until everything is on the disk itself."""
        self._journal.sync()

    def close(self) -> None:
        """Let others use the journal; one that was begun and holds nothing goes. Idempotent."""
        if self._file is not None:
            self._file.close()
        if self._holds_nothing:
            self._holds_nothing = False
            self.path.unlink(missing_ok=True)
        self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self, job: JobRecord) -> Mapping[str, Any] | None:
        """Take in what the journal holds; gives the options of the last session, or None where it holds nothing."""
        latest: Mapping[str, Any] | None = None
        for offset, record in read(self.path, kind=KIND):
            try:
                if record.get("type") == "job":
                    _check_same_task(self.path, record["task"], job.task)
                    latest = dict(record["options"])
                else:
                    self._take_in(offset, record)
            except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
                if isinstance(error, InputError):
                    raise
                raise JournalError(
                    f"the journal {self.path} is damaged at byte {offset:,}: {error!r}"
                ) from error
        self.resumed = sum(map(len, self._answers))
        return latest

    def _note(self, offset: int, record: Mapping[str, Any]) -> None:
        match record.get("type"):
            case "batch":
                self._batches[record["tag"]] = (record["o"], None, offset)
            case "batch started":
                stage, _, offset = self._batches[record["tag"]]
                self._batches[record["tag"]] = (stage, record["id"], offset)
            case "batch collected":
                self._batches.pop(record["tag"], None)

    def _take_in(self, offset: int, record: Mapping[str, Any]) -> None:
        match record.get("type"):
            case "answers":
                self._take(offset, record)
            case "retry":
                self._forget_failures()
            case _:
                self._note(offset, record)

    def _take(self, offset: int, record: Mapping[str, Any]) -> None:
        answers, failures = self._answers[record["o"]], self._failures[record["o"]]
        answers.update((int(key, 16), offset) for key in record["a"])
        failures.update(
            (int(key, 16), offset) for key, (kind, _) in record["f"].items() if kind not in PASSING
        )
        for key in record["a"]:
            failures.pop(int(key, 16), None)
        if "u" in record:
            calls, sent, cached, received = record["u"]
            self.usage += Usage(calls=calls, input_tokens=sent, cached_tokens=cached, output_tokens=received)
            self._add_cost(record["usd"])

    def _add_cost(self, cost_usd: float | None) -> None:
        self.cost_usd = None if cost_usd is None or self.cost_usd is None else self.cost_usd + cost_usd

    def _forget_failures(self) -> None:
        for failures in self._failures:
            failures.clear()

    def _record_at(self, offset: int) -> dict[str, Any]:
        at_hand = self._at_hand.get(offset)
        if at_hand is not None:
            return at_hand[0]
        if self._file is None:
            raise JournalError(f"the journal {self.path} is closed")
        record = read_record(self._file, offset)
        size = self._file.tell() - offset
        self._at_hand[offset] = record, size
        self._bytes_at_hand += size
        while len(self._at_hand) > RECORDS_AT_HAND or self._bytes_at_hand > BYTES_AT_HAND:
            _, (_, size) = self._at_hand.popitem(last=False)
            self._bytes_at_hand -= size
        return record


@dataclass(frozen=True, slots=True)
class Memory:
    """The part of a checkpoint that a slow way of asking keeps its state in, for one stage."""

    checkpoint: Checkpoint
    stage: int

    def begun(self, tag: str, packs: Sequence[Sequence[int]]) -> None:
        """A batch of these packs is about to be started: from now on it is not forgotten."""
        keys = [[f"{key:032x}" for key in pack] for pack in packs]
        self.checkpoint.note({"type": "batch", "o": self.stage, "tag": tag, "packs": keys})
        self.checkpoint.sync()

    def started(self, tag: str, number: str) -> None:
        """The batch has this number at the provider."""
        self.checkpoint.note({"type": "batch started", "tag": tag, "id": number})
        self.checkpoint.sync()

    def collected(self, tag: str) -> None:
        """All that the batch gave has been settled, or it was never started."""
        self.checkpoint.note({"type": "batch collected", "tag": tag})

    def batches(self) -> list[tuple[str, str | None, list[list[int]]]]:
        """Tag, number and packs of the batches of earlier sessions that were not collected."""
        return list(self.checkpoint.batches(self.stage))

    def is_settled(self, key: int) -> bool:
        """Whether this needs no asking any more."""
        return self.checkpoint.is_settled(self.stage, key)

    def release(self, keys: Iterable[int]) -> None:
        """These are to be asked in another pass over the rows."""
        self.checkpoint.release(self.stage, keys)


def read_job(path: Path) -> JobRecord:
    """What a journal says of its job, as its last session did it.

    Raises:
        JournalError: it is none of a job over rows.
    """
    latest = None
    for _, record in read(path, kind=KIND):
        if record.get("type") == "job":
            latest = JobRecord(record["task"], record["options"])
    if latest is None:
        raise JournalError(f"the journal {path} does not say what its job is")
    return latest


def forget(path: Path) -> None:
    """Remove the journal of a job, if there is one.

    Raises:
        JournalError: it is no such journal, or another process writes to it.
    """
    if path.exists():
        with Journal.open(path, kind=KIND):
            path.unlink()


def _require_nothing_in(path: Path) -> None:
    """Make sure that a journal may go: a session that ended before its first answer leaves one like that.

    Raises:
        InputError: there are answers in it.
        JournalError: it is no such journal.
    """
    if any(_is_worth_keeping(record) for _, record in read(path, kind=KIND)):
        raise InputError(
            f"{path} holds answers of an earlier job: resume that one (--resume), or forget it (--overwrite)"
        )


def _is_worth_keeping(record: Mapping[str, Any]) -> bool:
    """Whether a record holds an answer, or a batch that will have some; failures alone are soon had again."""
    match record.get("type"):
        case "job" | "retry":
            return False
        case "answers":
            return bool(record.get("a"))
        case _:
            return True


def _are_equal(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether options from a journal are these, which JSON makes lists of tuples in."""
    return json.dumps(there, sort_keys=True) == json.dumps(here, sort_keys=True)


def _check_same_task(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    for name in dict.fromkeys([*there, *here]):
        if name == "escalate_to" and there.get(name) is None:
            continue  # the answers there are stay what they are
        if there.get(name) != here.get(name):
            raise InputError(
                f"{path} holds answers of another job: its {name} is {there.get(name)!r:.200}, and not "
                f"{here.get(name)!r:.200}; name another output, or remove the file"
            )
