"""The lines of a batch's results: each settles the rows of its request, or releases them to the next pass."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from rlm.bulk.batch_api.state import MOST_REQUESTS, Batch, BatchRequest, PassState
from rlm.clients.chat_format import read_reply
from rlm.clients.error_mapping import call_error, read_failure
from rlm.clients.reply_check import check_reply
from rlm.errors import CallError, OutputTruncated, TransientError
from rlm.metering.tokens import estimate_call

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rlm.structured.reply_json import ItemResult
    from rlm.values import Reply

__all__ = ["LineSettler"]

OK: Final = 200
EXPIRED_STATUS: Final = 408


class LineSettler:
    """Settles requests with their lines; `stopped_by` is an error that ends the job once its batch is collected."""

    def __init__(self, state: PassState) -> None:
        self.stopped_by: CallError | None = None
        self._pass = state

    async def settle_line(self, batch: Batch, line: Mapping[str, Any]) -> None:
        """Settle the request that a line answers; a line that answers none, or the same one again, is ignored."""
        index = _request_index(line, batch)
        if index is None or index in batch.seen:
            return
        batch.seen.add(index)
        request, state = batch.requests[index], self._pass
        if any(state.checkpoint.is_settled(state.stage, key) for key in request.keys):
            return  # already collected by a session that ended in the middle of this batch
        try:
            reply = self._read(request, line)
        except CallError as error:
            await self._settle_error(request, error)
            return
        reply = replace(reply, cost_usd=state.provider.price(request.call.model, reply.usage))
        if request.reservation is not None:
            state.provider.plain_models.note_answer(request.call)
        state.book(request, reply.usage, reply.cost_usd)
        await self._settle(request, state.task.read(reply.text, len(request.keys)), reply)

    def _read(self, request: BatchRequest, line: Mapping[str, Any]) -> Reply:
        response = line.get("response")
        endpoint, model = self._pass.provider.batches.endpoint, request.call.model
        if not isinstance(response, dict):
            failure = read_failure(EXPIRED_STATUS, {"error": line.get("error")}, {})
            raise call_error(failure, model, endpoint)
        status, body = response.get("status_code"), response.get("body")
        if status != OK:
            failure = read_failure(status if isinstance(status, int) else 500, body, {})
            raise call_error(failure, model, endpoint)
        reply = read_reply(json.dumps(body).encode(), request.call, endpoint, {})
        return check_reply(request.call, reply, estimate_call)

    async def _settle(
        self, request: BatchRequest, results: Sequence[ItemResult], reply: Reply | None = None
    ) -> None:
        settled, left = self._pass.leftovers.sort(request.items, results)
        await self._pass.deliver(settled, reply)
        self._pass.release([item.key for item in left])

    async def _settle_error(self, request: BatchRequest, error: CallError) -> None:
        state, items = self._pass, request.items
        state.last_problem = str(error)
        price = None if error.usage is None else state.provider.price(request.call.model, error.usage)
        state.book(request, error.usage, price)
        if isinstance(error, state.settings.stops_at):
            state.release(request.keys)
            self.stopped_by = self.stopped_by or error
        elif isinstance(error, TransientError) or state.provider.plain_models.note_refusal(
            request.call, error
        ):
            state.release(request.keys)
        elif len(items) == 1:
            await state.fail(items[0], type(error), str(error))
        elif isinstance(error, OutputTruncated):
            await self._settle(request, state.task.read(error.text, len(items)))
        else:
            state.split(items)


def _request_index(line: Mapping[str, Any], batch: Batch) -> int | None:
    """Return the index of the request that a line answers, or None if it belongs to none."""
    tag, _, number = str(line.get("custom_id")).rpartition("-")
    is_number = number.isascii() and number.isdigit() and len(number) <= len(str(MOST_REQUESTS))
    if tag != batch.tag or not is_number:
        return None
    return int(number) if int(number) < len(batch.requests) else None
