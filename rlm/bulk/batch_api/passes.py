"""Packs sent through the Batch API of a provider: in files, within a day, at half the price.

    async with BatchAPI() as batch_api:
        await amap_rows(..., ask_packs=batch_api)

Each pack of rows is one request of a file. A file is started as a batch as soon as it is full: 50,000 requests, so
many bytes, or so many tokens as the account may have enqueued. The pause between two polls grows; the
replies of a batch are settled when it ends, completed, cancelled or expired.

Open items go into the next pass over the rows: expired and failed requests unchanged, items with unusable answers in
smaller packs and finally alone. A batch is written into the journal before it is started, under a tag that finds it
at the provider: a process that resumes the job, even days later, collects it and pays for no request twice. The ledger books every request, and reserves it before it is sent.
"""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from weakref import WeakKeyDictionary

import anyio
import anyio.to_thread

from rlm._async.groups import ungrouped
from rlm.bulk.checkpoint import Checkpoint, read_job
from rlm.clients.chat_format import encode_body, read_reply, request_body
from rlm.clients.error_mapping import call_error, read_failure
from rlm.clients.openai_batches import URL, BatchState, OpenAIBatches
from rlm.errors import (
    BadRequest,
    BudgetExceeded,
    CallError,
    ContextTooLong,
    InvalidAnswer,
    JobStopped,
    LimitReached,
    OutputTruncated,
    SettingsError,
    TransientError,
)
from rlm.metering.bounds import estimate_tokens
from rlm.metering.prices import BATCH_FACTOR, Price
from rlm.metering.prices import price as price_of
from rlm.scheduler.budget import Amount
from rlm.scheduler.ledger import Reservation, certainly_unbilled
from rlm.structured.map import Item, Mapped, MapSettings, PlainModels, Settled, pack_call
from rlm.structured.reply_json import ItemResult, Valid
from rlm.values import Call, Reply, Usage

if TYPE_CHECKING:
    from rlm.bulk.job import PerCall
    from rlm.scheduler.scheduler import Tree
    from rlm.structured.packs import Task

__all__ = ["BatchAPI"]

MOST_REQUESTS: Final = 50_000
MOST_BYTES: Final = 200_000_000
ATTEMPTS: Final = 3
SMALL_PACK: Final = 5
FRUITLESS_PASSES: Final = 3
"""Passes in a row that settle nothing, after which the job stops."""

Sink = Callable[[Settled], Awaitable[None]]


class BatchAPI:
    """Sender of packs through the Batch API, for `amap_rows(ask_packs=...)`; an async context manager.

    Args:
        api_key: by default `OPENAI_API_KEY`.
        base_url: by default `OPENAI_BASE_URL`, else OpenAI.
        prices: prices of models that are not in the price list; they are halved.
        max_requests: requests of one file, at most 50,000.
        max_bytes: bytes of one file, at most 200 million; it is held in memory while it is uploaded.
        enqueued_tokens: tokens that all unfinished batches of a model may have together: the account's limit.
        first_poll_s: seconds before the first poll of a batch; the pause grows to `longest_poll_s`.
        longest_poll_s: the longest pause, in seconds.
        out_of_reach_s: seconds for which the endpoint may be unreachable while batches are polled.
        wait: False ends the job, with `JobStopped`, when all is submitted; resume it to collect.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        prices: Mapping[str, Price] | None = None,
        max_requests: int = MOST_REQUESTS,
        max_bytes: int = 100_000_000,
        enqueued_tokens: int = 2_000_000,
        first_poll_s: float = 5.0,
        longest_poll_s: float = 60.0,
        out_of_reach_s: float = 3_600.0,
        wait: bool = True,
    ) -> None:
        for name, value, most in (
            ("max_requests", max_requests, MOST_REQUESTS),
            ("max_bytes", max_bytes, MOST_BYTES),
            ("enqueued_tokens", enqueued_tokens, None),
        ):
            if value < 1 or (most is not None and value > most):
                raise SettingsError(
                    f"{name}={value!r}: must be at least 1{f' and at most {most:,}' if most else ''}"
                )
        self.batches = OpenAIBatches(api_key=api_key, base_url=base_url)
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self.first_poll_s = first_poll_s
        self.longest_poll_s = longest_poll_s
        self.out_of_reach_s = out_of_reach_s
        self.wait = wait
        self.plain_models = PlainModels()
        self._prices = dict(prices or {})
        self.enqueued = _Enqueued(enqueued_tokens)
        self._stages: WeakKeyDictionary[Checkpoint, dict[int, _StageState]] = WeakKeyDictionary()

    async def __aenter__(self) -> Self:
        await self.batches.__aenter__()
        return self

    async def __aexit__(self, *details: object) -> None:
        await self.batches.__aexit__(*details)

    async def __call__(
        self,
        tree: Tree,
        packs: AsyncGenerator[list[Item], None],
        task: Task,
        sink: Sink,
        settings: MapSettings,
        *,
        checkpoint: Checkpoint,
        stage: int,
    ) -> PerCall | None:
        """Send all packs and settle their replies; return the pack size for the next pass, or None if no item is open.

        Raises:
            CallError: the endpoint refuses batches as such.
            LimitReached: the tree may spend no more; what was sent is collected first.
            JobStopped: all is submitted and `wait` is False, or batches come to nothing again and again.
        """
        stage_state = self._stages.setdefault(checkpoint, {}).setdefault(stage, _StageState())
        one = _Pass(
            self,
            tree,
            stage_state=stage_state,
            task=task,
            sink=sink,
            settings=settings,
            checkpoint=checkpoint,
            stage=stage,
        )
        await one.run(packs)
        if not one.released:
            return None
        stage_state.fruitless = 0 if one.settled else stage_state.fruitless + 1
        if stage_state.fruitless >= FRUITLESS_PASSES:
            raise JobStopped(
                f"stopped: {stage_state.fruitless} times in a row no request of a batch was answered ({one.last_problem}); "
                "resume to try again"
            )
        return stage_state.next_size(one.released, settings.per_call)

    async def cancel(self, journal: Path) -> int:
        """Cancel all uncollected batches of a job; return their number.

        Replies they already have are billed, and are collected when the job is resumed. A batch that the provider
        no longer has is removed from the journal, so that a resumed job sends its rows in a new batch.

        Raises:
            JournalError: the journal cannot be used.
            CallError: the endpoint refuses, or cannot be reached.
        """
        record = read_job(journal)
        cancelled = 0
        with Checkpoint(journal, record, resume=True) as checkpoint:
            for stage in range(record.stages):
                for tag, number, _ in checkpoint.batches(stage):
                    cancelled += await self._cancel_one(checkpoint, tag, number)
        return cancelled

    async def _cancel_one(self, checkpoint: Checkpoint, tag: str, number: str | None) -> bool:
        try:
            state = await (self.batches.retrieve(number) if number else self.batches.find(tag))
        except BadRequest as error:
            if error.status != NOT_FOUND:
                raise
            checkpoint.batch_collected(tag)
            return True
        if state is None or state.ended:
            return False
        await self.batches.cancel(state.id)
        return True

    def price(self, model: str, usage: Usage) -> float | None:
        """Return the price of a usage through the Batch API, in dollars."""
        return price_of(
            model, usage, overrides=self._prices, endpoint=self.batches.endpoint, factor=BATCH_FACTOR
        )


class _Enqueued:
    """Limit on the tokens of all unfinished batches of one model, as the account has it; counted by tag."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._taken: dict[str, tuple[str, int]] = {}
        self._changed = anyio.Event()

    async def acquire(self, model: str, tag: str, tokens: int) -> None:
        """Wait until so many tokens fit; a batch larger than the limit waits until it is the only one."""
        while (taken := self._of(model)) and taken + tokens > self.most:
            await self._changed.wait()
        self._taken[tag] = model, tokens

    def release(self, tag: str) -> None:
        """Release the tokens of a batch that has ended or is no longer awaited; a second call has no effect."""
        if self._taken.pop(tag, None) is not None:
            self._changed.set()
            self._changed = anyio.Event()

    def _of(self, model: str) -> int:
        return sum(tokens for of, tokens in self._taken.values() if of == model)


@dataclass(slots=True)
class _StageState:
    """Failed attempts of one stage of one job; a `BatchAPI` may serve several jobs."""

    tries: dict[int, int] = field(default_factory=dict)
    fruitless: int = 0

    def note_failure(self, key: int) -> bool:
        """Count an unusable answer for this item; return True if it was the last attempt."""
        self.tries[key] = self.tries.get(key, 0) + 1
        return self.tries[key] >= ATTEMPTS

    def next_size(self, released: Sequence[int], per_call: PerCall) -> PerCall:
        """Return the pack size of the next pass over the open items."""
        worst = max(self.tries.get(key, 0) for key in released)
        if worst == 0:
            return per_call
        if worst >= ATTEMPTS - 1 or per_call == 1:
            return 1
        return SMALL_PACK


@dataclass(slots=True)
class _BatchRequest:
    """One line of a file: its items, its reservation in the budget, and `sent`, True if it may have been sent.

    A request of an earlier session has no reservation, and it is unknown if it had a schema.
    """

    keys: list[int]
    call: Call
    reservation: Reservation | None
    sent: bool = False


@dataclass(slots=True)
class _File:
    """Requests that will be one batch, written to disk as they come."""

    tag: str
    path: Path
    requests: list[_BatchRequest] = field(default_factory=list)
    bytes: int = 0
    tokens: int = 0


@dataclass(slots=True)
class _Batch:
    """A batch at the provider; the `custom_id` of a request ends with its index in `requests`.

    `seen` has the indices whose lines were read: not all of them if a download is interrupted.
    """

    tag: str
    state: BatchState
    requests: list[_BatchRequest]
    seen: set[int] = field(default_factory=set)


class _Pass:
    """One pass over the rows: submits packs as batches while it collects those that have ended."""

    def __init__(
        self,
        api: BatchAPI,
        tree: Tree,
        *,
        stage_state: _StageState,
        task: Task,
        sink: Sink,
        settings: MapSettings,
        checkpoint: Checkpoint,
        stage: int,
    ) -> None:
        self.released: list[int] = []
        self.settled = 0
        self.last_problem = "they expired"
        self._api = api
        self._tree = tree
        self._stage_state = stage_state
        self._task = task
        self._sink = sink
        self._settings = settings
        self._checkpoint = checkpoint
        self._stage = stage
        self._file: _File
        self._running: dict[str, _Batch] = {}
        self._unsettled: dict[int, _BatchRequest] = {}
        self._changed = anyio.Event()
        self._all_sent = False
        self._exceeded: LimitReached | None = None
        self._stopped_by: CallError | None = None
        self._poll_s = api.first_poll_s
        self._reached_at = anyio.current_time()

    async def run(self, packs: AsyncGenerator[list[Item], None]) -> None:
        try:
            await self._run(packs)
        finally:
            self._settle_reservations()

    async def _run(self, packs: AsyncGenerator[list[Item], None]) -> None:
        await self._collect_earlier_batches()
        with ungrouped():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._collect_all)
                await self._submit_all(packs)
        if self._exceeded is not None:
            raise self._exceeded
        if self._running:
            raise self._uncollected_error()

    def _settle_reservations(self) -> None:
        """Settle open reservations: sent requests keep theirs, because their cost is unknown; the others release it."""
        for tag in self._running:
            self._api.enqueued.release(tag)
        for request in list(self._unsettled.values()):
            reservation = self._pop_reservation(request)
            if request.sent:
                self._tree.ledger.settle_unknown(reservation)
            else:
                self._tree.ledger.settle(reservation, None, None)

    def _pop_reservation(self, request: _BatchRequest) -> Reservation:
        self._unsettled.pop(id(request), None)
        reservation, request.reservation = request.reservation, None
        return reservation or Reservation(request.call, Amount())

    def _uncollected_error(self) -> JobStopped:
        number = self._checkpoint.uncollected
        batches = "1 batch is" if number == 1 else f"{number} batches are"
        return JobStopped(
            f"{batches} submitted and not finished: resume the job later to collect the answers"
        )

    # Submitting ------------------------------------------------------------------------------------------------

    async def _submit_all(self, packs: AsyncGenerator[list[Item], None]) -> None:
        with tempfile.TemporaryDirectory(prefix="rlm-batch-") as folder:
            self._file = _new_file(Path(folder))
            async for pack in packs:
                contents = [item.content for item in pack]
                call = pack_call(self._task, contents, self._settings, self._api.plain_models)
                if not await self._fits_window(pack, call):
                    continue
                try:
                    reservation = await self._reserve(call)
                except BudgetExceeded as limit:
                    self._exceeded = limit
                    break
                request = _BatchRequest([item.key for item in pack], call, reservation)
                self._unsettled[id(request)] = request
                await self._write(request)
            await self._send()
        self._all_sent = True
        self._notify_change()

    async def _fits_window(self, pack: Sequence[Item], call: Call) -> bool:
        chars = len(call.messages[0].content)
        if chars <= self._settings.window_chars:
            return True
        keys = [item.key for item in pack]
        reason = f"the prompt has {chars:,} characters, and the model is given at most {self._settings.window_chars:,}"
        if len(keys) > 1:
            for key in keys:
                self._stage_state.note_failure(key)
            self._release(keys)
        else:
            await self._fail(keys, ContextTooLong.__name__, reason)
        return False

    async def _reserve(self, call: Call) -> Reservation:
        """Reserve the worst case; if it does not fit beside the requests in the file, send the file first."""
        worst = Usage(calls=1, input_tokens=estimate_tokens(call), output_tokens=call.max_output_tokens or 0)
        amount = Amount.of(worst, self._api.price(call.model, worst))
        if self._file.requests and self._tree.ledger.budget.limits_calls:
            with anyio.move_on_after(0.01):
                return await self._tree.ledger.reserve(call, amount)
            await self._send()
        return await self._tree.ledger.reserve(call, amount)

    async def _write(self, request: _BatchRequest) -> None:
        """Add a request to the file, or to the next one where it does not fit."""
        tokens = estimate_tokens(request.call)
        body = request_body(request.call, self._api.batches.dialect)
        if self._is_full(len(encode_body(body)) + LINE_BYTES, tokens):
            await self._send()
        custom_id = f"{self._file.tag}-{len(self._file.requests)}"
        line = encode_body({"custom_id": custom_id, "method": "POST", "url": URL, "body": body}) + b"\n"
        with self._file.path.open("ab") as lines:
            lines.write(line)
        self._file.bytes += len(line)
        self._file.tokens += tokens
        self._file.requests.append(request)

    def _is_full(self, more_bytes: int, more_tokens: int) -> bool:
        file = self._file
        return (
            len(file.requests) >= self._api.max_requests
            or file.bytes + more_bytes > self._api.max_bytes
            or file.tokens + more_tokens > self._api.enqueued.most
        )

    async def _send(self) -> None:
        """Start a batch of the file, unless it is empty, as soon as the account may enqueue it."""
        file = self._file
        if not file.requests:
            return
        self._file = _new_file(file.path.parent)
        await self._api.enqueued.acquire(self._settings.model, file.tag, file.tokens)
        self._checkpoint.add_batch(self._stage, file.tag, [request.keys for request in file.requests])
        state = await self._start(file)
        self._checkpoint.batch_submitted(file.tag, state.id)
        self._running[file.tag] = _Batch(file.tag, state, file.requests)
        file.path.unlink()
        self._notify_change()

    async def _start(self, file: _File) -> BatchState:
        for request in file.requests:
            request.sent = True
        try:
            return await self._api.batches.start(file.path, file.tag)
        except BaseException as error:
            self._api.enqueued.release(file.tag)
            if isinstance(error, CallError):
                for request in file.requests:
                    request.sent = not certainly_unbilled(error)
            raise

    # Collecting ------------------------------------------------------------------------------------------------

    async def _collect_earlier_batches(self) -> None:
        """Collect the batches of earlier sessions before any row is read, so that no answered row is sent twice."""
        for tag, number, packs in self._checkpoint.batches(self._stage):
            state = await self._find_earlier(tag, number)
            if state is None:  # the earlier session ended after the journal entry and before the request
                self._checkpoint.batch_collected(tag)
                continue
            self._running[tag] = _Batch(tag, state, [self._earlier_request(keys) for keys in packs])
        while self._running:
            if await self._collect_ended():
                continue
            if not self._api.wait:
                raise self._uncollected_error()
            await self._pause()

    async def _find_earlier(self, tag: str, number: str | None) -> BatchState | None:
        try:
            return await (self._api.batches.retrieve(number) if number else self._api.batches.find(tag))
        except BadRequest as error:
            if error.status != NOT_FOUND:
                raise
            # Sending its rows in a new batch would pay twice if only the API key has changed.
            raise BadRequest(
                f"{error}; ask with the key that started it, or cancel it (--cancel) to send its rows in a new batch",
                status=error.status,
            ) from error

    def _earlier_request(self, keys: list[int]) -> _BatchRequest:
        # A refusal of the request may be caused by its schema.
        schema = self._task.reply_schema(len(keys))
        return _BatchRequest(keys, Call(model=self._settings.model, messages=(), schema=schema), None)

    async def _collect_all(self) -> None:
        while not (self._all_sent and (not self._running or not self._api.wait)):
            if not await self._collect_ended():
                await self._pause()

    async def _pause(self) -> None:
        if not self._running:
            await self._changed.wait()
            self._poll_s = self._api.first_poll_s
            return
        await anyio.sleep(self._poll_s)
        self._poll_s = min(self._poll_s * 1.5, self._api.longest_poll_s)

    async def _collect_ended(self) -> bool:
        """Poll all batches and settle those that have ended; return True if there was one."""
        found = False
        for batch in list(self._running.values()):
            try:
                batch.state = await self._api.batches.retrieve(batch.state.id)
                if batch.state.ended:
                    await self._collect(batch)
                    found = True
                self._reached_at = anyio.current_time()
            except TransientError as error:
                self._wait_for_endpoint(error)
        return found

    def _wait_for_endpoint(self, error: TransientError) -> None:
        """Tolerate an unreachable endpoint for `out_of_reach_s`, because batches take hours."""
        if anyio.current_time() - self._reached_at > self._api.out_of_reach_s:
            raise JobStopped(
                f"stopped: the batches could not be polled for {self._api.out_of_reach_s:g} s ({error}); "
                "resume the job later to collect the answers",
                cause=error,
            ) from error

    async def _collect(self, batch: _Batch) -> None:
        state = batch.state
        if state.status == "failed" and state.code != TOO_MANY_TOKENS:
            self._discard(batch)
            raise BadRequest(
                f"{self._api.batches.endpoint} refuses the batch {state.id}: {state.problem or state.code}",
                model=self._settings.model,
            )
        for file_id in (state.output_file, state.error_file):
            if file_id is not None:
                await self._collect_file(batch, file_id)
        for index, request in enumerate(batch.requests):
            if index not in batch.seen:
                self._unbilled(request)
                self._release(request.keys)
        if state.code == TOO_MANY_TOKENS:
            self.last_problem = state.problem
            await anyio.sleep(self._api.longest_poll_s)
        self._checkpoint.batch_collected(batch.tag)
        self._forget(batch.tag)
        self._notify_change()
        if self._stopped_by is not None:
            raise self._stopped_by  # raised last: else a resumed job would read this failure again, even after its cause was fixed

    async def _collect_file(self, batch: _Batch, file_id: str) -> None:
        try:
            async for line in self._api.batches.lines(file_id):
                index = _index(line, batch)
                if index is not None and index not in batch.seen:
                    batch.seen.add(index)
                    await self._settle_line(batch.requests[index], line)
        except BadRequest as error:
            if error.status != NOT_FOUND:
                raise
            self.last_problem = str(
                error
            )  # the provider deletes files after a time: the items go into a new batch

    async def _settle_line(self, request: _BatchRequest, line: Mapping[str, Any]) -> None:
        if any(self._checkpoint.is_settled(self._stage, key) for key in request.keys):
            return  # already collected by a session that ended in the middle of this batch
        try:
            reply = self._read(request, line)
        except CallError as error:
            await self._settle_failure(request, error)
            return
        reply = replace(reply, cost_usd=self._api.price(request.call.model, reply.usage))
        if request.reservation is not None:
            self._api.plain_models.note_answer(request.call)
        self._book(request, reply)
        await self._settle(request, self._task.read(reply.text, len(request.keys)), reply)

    def _read(self, request: _BatchRequest, line: Mapping[str, Any]) -> Reply:
        response = line.get("response")
        endpoint, model = self._api.batches.endpoint, request.call.model
        if not isinstance(response, dict):
            failure = read_failure(EXPIRED_STATUS, {"error": line.get("error")}, {})
            raise call_error(failure, model, endpoint)
        status, body = response.get("status_code"), response.get("body")
        if status != OK:
            raise call_error(
                read_failure(status if isinstance(status, int) else 500, body, {}), model, endpoint
            )
        return read_reply(json.dumps(body).encode(), request.call, endpoint, {})

    async def _settle(
        self, request: _BatchRequest, outcomes: Sequence[ItemResult], reply: Reply | None
    ) -> None:
        settled: list[tuple[Item, Mapped]] = []
        left: list[int] = []
        for key, outcome in zip(request.keys, outcomes, strict=True):
            if isinstance(outcome, Valid):
                settled.append((Item(key, None), Mapped(outcome.value)))
            elif self._stage_state.note_failure(key):
                settled.append((Item(key, None), Mapped(kind=InvalidAnswer.__name__, reason=outcome.reason)))
            else:
                left.append(key)
        await self._deliver(settled, reply)
        self._release(left)

    async def _settle_failure(self, request: _BatchRequest, error: CallError) -> None:
        self.last_problem = str(error)
        self._unbilled(request, error.usage)
        if isinstance(error, self._settings.stops_at):
            self._release(request.keys)
            self._stopped_by = self._stopped_by or error
        elif isinstance(error, TransientError) or self._api.plain_models.note_refusal(request.call, error):
            self._release(request.keys)
        elif len(request.keys) == 1:
            await self._fail(request.keys, type(error).__name__, str(error))
        else:
            text = error.text if isinstance(error, OutputTruncated) else ""
            await self._settle(request, self._task.read(text, len(request.keys)), None)

    async def _fail(self, keys: Sequence[int], kind: str, reason: str) -> None:
        await self._deliver([(Item(key, None), Mapped(kind=kind, reason=reason)) for key in keys], None)

    async def _deliver(self, settled: Sequence[tuple[Item, Mapped]], reply: Reply | None) -> None:
        self.settled += len(settled)
        await self._sink(Settled(settled, reply))

    def _book(self, request: _BatchRequest, reply: Reply) -> None:
        self._tree.ledger.settle(self._pop_reservation(request), reply.usage, reply.cost_usd)

    def _unbilled(self, request: _BatchRequest, usage: Usage | None = None) -> None:
        cost_usd = None if usage is None else self._api.price(request.call.model, usage)
        self._tree.ledger.settle(self._pop_reservation(request), usage, cost_usd)

    def _discard(self, batch: _Batch) -> None:
        for request in batch.requests:
            self._unbilled(request)
            self._release(request.keys)
        self._checkpoint.batch_collected(batch.tag)
        self._forget(batch.tag)

    def _forget(self, tag: str) -> None:
        del self._running[tag]
        self._api.enqueued.release(tag)

    def _release(self, keys: Sequence[int]) -> None:
        self.released += keys
        self._checkpoint.release(self._stage, keys)

    def _notify_change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


LINE_BYTES: Final = 200
"""Upper bound of the bytes of a line besides its body."""
OK: Final = 200
NOT_FOUND: Final = 404
EXPIRED_STATUS: Final = 408
TOO_MANY_TOKENS: Final = "token_limit_exceeded"


def _new_file(folder: Path) -> _File:
    tag = f"rlm-{secrets.token_hex(8)}"
    return _File(tag, folder / f"{tag}.jsonl")


def _index(line: Mapping[str, Any], batch: _Batch) -> int | None:
    """Return the index of the request that a line answers, or None if it belongs to none."""
    tag, _, number = str(line.get("custom_id")).rpartition("-")
    if (
        tag != batch.tag
        or not (number.isascii() and number.isdigit())
        or len(number) > len(str(MOST_REQUESTS))
    ):
        return None
    return int(number) if int(number) < len(batch.requests) else None
