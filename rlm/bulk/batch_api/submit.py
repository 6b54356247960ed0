"""Packs written to files as they come, and each full file started as a batch."""

from __future__ import annotations

import secrets
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio

from rlm.bulk.batch_api.state import Batch, BatchRequest, PassState
from rlm.clients.chat_format import encode_body, request_body
from rlm.clients.openai_batches import URL, BatchState
from rlm.errors import BudgetExceeded, CallError, ContextTooLong
from rlm.metering.bounds import bound
from rlm.metering.tokens import estimate_call
from rlm.scheduler.budget import Amount
from rlm.scheduler.ledger import Reservation, certainly_unbilled
from rlm.structured.map import pack_call, too_long
from rlm.values import Call, Usage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from rlm.structured.leftovers import Item

__all__ = ["Submitter"]

LINE_BYTES: Final = 200
"""Upper bound of the bytes of a line besides its body."""


@dataclass(slots=True)
class _File:
    """Requests that will be one batch, written to disk as they come."""

    tag: str
    path: Path
    requests: list[BatchRequest] = field(default_factory=list)
    bytes: int = 0
    tokens: int = 0


_bounded_tokens = bound(estimate_call)


class Submitter:
    """Starts the batches of one pass."""

    def __init__(self, state: PassState) -> None:
        self._pass = state
        self._provider = state.provider
        self._file: _File

    async def submit_all(self, packs: AsyncGenerator[list[Item], None]) -> BudgetExceeded | None:
        """Submit all packs; return the budget's error if it does not allow all of them."""
        exceeded = None
        with tempfile.TemporaryDirectory(prefix="rlm-batch-") as folder:
            self._file = _new_file(Path(folder))
            async for pack in packs:
                try:
                    await self._submit(pack)
                except BudgetExceeded as limit:
                    exceeded = limit
                    break
            await self._send()
        self._pass.all_sent = True
        self._pass.notify_change()
        return exceeded

    async def _submit(self, pack: list[Item]) -> None:
        state = self._pass
        call = pack_call(
            state.task,
            [item.content for item in pack],
            state.settings,
            self._provider.plain_models,
            notes=state.leftovers.reasons(pack),
        )
        if reason := too_long(call, state.settings):
            if len(pack) > 1:
                state.split(pack)
            else:
                await state.fail(pack[0], ContextTooLong, reason)
            return
        request = BatchRequest([item.key for item in pack], call, await self._reserve(call))
        state.unsettled[id(request)] = request
        await self._write(request)

    async def _reserve(self, call: Call) -> Reservation:
        """Reserve the worst case; if it does not fit beside the requests in the file, send the file first."""
        ledger = self._pass.tree.ledger
        worst = Usage(calls=1, input_tokens=_bounded_tokens(call), output_tokens=call.max_output_tokens or 0)
        amount = Amount.of(worst, self._provider.price(call.model, worst))
        if self._file.requests and ledger.budget.limits_calls:
            with anyio.move_on_after(0.01):
                return await ledger.reserve(call, amount)
            await self._send()
        return await ledger.reserve(call, amount)

    async def _write(self, request: BatchRequest) -> None:
        """Add a request to the file, or to the next one if it does not fit."""
        tokens = _bounded_tokens(request.call)
        body = request_body(request.call, self._provider.batches.dialect)
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
            len(file.requests) >= self._provider.max_requests
            or file.bytes + more_bytes > self._provider.max_bytes
            or file.tokens + more_tokens > self._provider.enqueued.most
        )

    async def _send(self) -> None:
        """Start a batch of the file, unless it is empty, as soon as the account may enqueue it."""
        file, state = self._file, self._pass
        if not file.requests:
            return
        self._file = _new_file(file.path.parent)
        await self._provider.enqueued.acquire(state.settings.model, file.tag, file.tokens)
        # Written first: a session that dies after the start would otherwise pay for these requests twice.
        state.checkpoint.add_batch(state.stage, file.tag, [request.keys for request in file.requests])
        started = await self._start(file)
        state.checkpoint.batch_submitted(file.tag, started.id)
        state.running[file.tag] = Batch(file.tag, started, file.requests)
        file.path.unlink()
        state.notify_change()

    async def _start(self, file: _File) -> BatchState:
        for request in file.requests:
            request.sent = True
        try:
            return await self._provider.batches.start(file.path, file.tag)
        except BaseException as error:
            self._provider.enqueued.release(file.tag)
            if isinstance(error, CallError):
                for request in file.requests:
                    request.sent = not certainly_unbilled(error)
            raise


def _new_file(folder: Path) -> _File:
    tag = f"rlm-{secrets.token_hex(8)}"
    return _File(tag, folder / f"{tag}.jsonl")
