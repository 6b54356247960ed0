"""Batches polled until they end, and their results collected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anyio

from rlm.bulk.batch_api.settle import LineSettler
from rlm.bulk.batch_api.state import NOT_FOUND, Batch, BatchRequest, PassState
from rlm.errors import BadRequest, JobStopped, TransientError
from rlm.values import Call

if TYPE_CHECKING:
    from rlm.clients.openai_batches import BatchState

__all__ = ["Collector"]

TOO_MANY_TOKENS: Final = "token_limit_exceeded"


class Collector:
    """Collects the batches of one pass, and first those of earlier sessions."""

    def __init__(self, state: PassState) -> None:
        self._pass = state
        self._provider = state.provider
        self._settler = LineSettler(state)
        self._poll_s = state.provider.first_poll_s
        self._reached_at = anyio.current_time()

    async def collect_earlier(self) -> None:
        """Collect the batches of earlier sessions; run it before any row is read, so that no answered row is sent twice.

        Raises:
            JobStopped: they have not ended, and the provider's `wait` is False.
        """
        state = self._pass
        for tag, number, packs in state.checkpoint.batches(state.stage):
            found = await self._find_earlier(tag, number)
            if found is None:  # the earlier session ended after the journal entry and before the request
                state.checkpoint.batch_collected(tag)
                continue
            state.running[tag] = Batch(tag, found, [self._earlier_request(keys) for keys in packs])
        while state.running:
            if await self._collect_ended():
                continue
            if not self._provider.wait:
                raise state.uncollected_error()
            await self._pause()

    async def collect_all(self) -> None:
        """Collect batches while they are submitted, and then, if the provider's `wait` is True, until the last ends."""
        state = self._pass
        while not (state.all_sent and (not state.running or not self._provider.wait)):
            if not await self._collect_ended():
                await self._pause()

    async def _find_earlier(self, tag: str, number: str | None) -> BatchState | None:
        batches = self._provider.batches
        try:
            return await (batches.retrieve(number) if number else batches.find(tag))
        except BadRequest as error:
            if error.status != NOT_FOUND:
                raise
            # Sending its rows in a new batch would pay twice if only the API key has changed.
            raise BadRequest(
                f"{error}; ask with the key that started it, or cancel it (--cancel) to send its rows in a new batch",
                status=error.status,
            ) from error

    def _earlier_request(self, keys: list[int]) -> BatchRequest:
        # A refusal of the request may be caused by its schema.
        schema = self._pass.task.reply_schema(len(keys))
        return BatchRequest(keys, Call(model=self._pass.settings.model, messages=(), schema=schema), None)

    async def _pause(self) -> None:
        if not self._pass.running:
            await self._pass.changed.wait()
            self._poll_s = self._provider.first_poll_s
            return
        await anyio.sleep(self._poll_s)
        self._poll_s = min(self._poll_s * 1.5, self._provider.longest_poll_s)

    async def _collect_ended(self) -> bool:
        """Poll all batches and settle those that have ended; return True if there was one."""
        found = False
        for batch in list(self._pass.running.values()):
            try:
                batch.state = await self._provider.batches.retrieve(batch.state.id)
                if batch.state.ended:
                    await self._collect(batch)
                    found = True
                self._reached_at = anyio.current_time()
            except TransientError as error:
                self._tolerate(error)
        return found

    def _tolerate(self, error: TransientError) -> None:
        """Tolerate an unreachable endpoint for `out_of_reach_s`, because batches take hours."""
        if anyio.current_time() - self._reached_at > self._provider.out_of_reach_s:
            raise JobStopped(
                f"stopped: the batches could not be polled for {self._provider.out_of_reach_s:g} s ({error}); "
                "resume the job later to collect the answers",
                cause=error,
            ) from error

    async def _collect(self, batch: Batch) -> None:
        ended, state = batch.state, self._pass
        is_refused = ended.status == "failed" and ended.code != TOO_MANY_TOKENS
        if not is_refused:
            for file_id in (ended.output_file, ended.error_file):
                if file_id is not None:
                    await self._collect_file(batch, file_id)
        for index, request in enumerate(batch.requests):
            if index not in batch.seen:
                state.book(request, None, None)
                state.release(request.keys)
        if ended.code == TOO_MANY_TOKENS:
            state.last_problem = ended.problem
            await anyio.sleep(self._provider.longest_poll_s)
        state.mark_collected(batch)
        # Raised last: else a resumed job would read this failure again, even after its cause was fixed.
        if is_refused:
            raise BadRequest(
                f"{self._provider.batches.endpoint} refuses the batch {ended.id}: {ended.problem or ended.code}",
                model=state.settings.model,
            )
        if self._settler.stopped_by is not None:
            raise self._settler.stopped_by

    async def _collect_file(self, batch: Batch, file_id: str) -> None:
        try:
            async for line in self._provider.batches.lines(file_id):
                await self._settler.settle_line(batch, line)
        except BadRequest as error:
            if error.status != NOT_FOUND:
                raise
            # The provider deletes files after a time: the items go into a new batch.
            self._pass.last_problem = str(error)
