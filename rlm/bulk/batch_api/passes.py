"""Packs sent through the Batch API of a provider: in files, within a day, at half the price.

    async with BatchAPI() as batch_api:
        await amap_rows(..., ask_packs=batch_api)

Each pack of rows is one request of a file. A file is started as a batch as soon as it is full: 50,000 requests, so
many bytes, or so many tokens as the account may have enqueued. The pause between two polls grows; the
replies of a batch are settled when it ends, completed, cancelled or expired.

Open items go into the next pass over the rows: expired and failed requests unchanged, items with unusable answers in
smaller packs and finally alone. A batch is written into the journal before it is started, under a tag that finds it
at the provider: a process that resumes the job, even days later, collects it and pays for no request twice. The
ledger reserves every request before it is sent.

`submit.py` starts batches, `collect.py` polls them, `settle.py` reads their lines; `state.py` has what they share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self
from weakref import WeakKeyDictionary

import anyio

from rlm._async.groups import ungrouped
from rlm.bulk.batch_api.collect import Collector
from rlm.bulk.batch_api.state import MOST_REQUESTS, NOT_FOUND, EnqueuedTokens, PassState, Provider, StageState
from rlm.bulk.batch_api.submit import Submitter
from rlm.bulk.checkpoint import Checkpoint, read_job
from rlm.clients.openai_batches import OpenAIBatches
from rlm.errors import BadRequest, JobStopped

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

    from rlm.bulk.job import PerCall
    from rlm.metering.prices import Price
    from rlm.scheduler.scheduler import Tree
    from rlm.structured.leftovers import Item
    from rlm.structured.map import MapSettings, Sink
    from rlm.structured.packs import Task

__all__ = ["BatchAPI"]

FRUITLESS_PASSES: Final = 3
"""Passes in a row that settle nothing, after which the job stops."""


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
        self._batches = OpenAIBatches(api_key=api_key, base_url=base_url)
        self._provider = Provider(
            batches=self._batches,
            prices=dict(prices or {}),
            max_requests=max_requests,
            max_bytes=max_bytes,
            enqueued=EnqueuedTokens(enqueued_tokens),
            first_poll_s=first_poll_s,
            longest_poll_s=longest_poll_s,
            out_of_reach_s=out_of_reach_s,
            wait=wait,
        )
        self.plain_models = self._provider.plain_models
        self._stages: WeakKeyDictionary[Checkpoint, dict[int, StageState]] = WeakKeyDictionary()

    async def __aenter__(self) -> Self:
        await self._batches.__aenter__()
        return self

    async def __aexit__(self, *details: object) -> None:
        await self._batches.__aexit__(*details)

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
        stage_state = self._stages.setdefault(checkpoint, {}).setdefault(stage, StageState())
        state = PassState(
            provider=self._provider,
            tree=tree,
            task=task,
            sink=sink,
            settings=settings,
            checkpoint=checkpoint,
            stage=stage,
            leftovers=stage_state.leftovers,
        )
        try:
            await _run_pass(state, packs)
        finally:
            state.settle_reservations()
        if not state.released:
            return None
        stage_state.fruitless_passes = 0 if state.settled else stage_state.fruitless_passes + 1
        if stage_state.fruitless_passes >= FRUITLESS_PASSES:
            raise JobStopped(
                f"stopped: {stage_state.fruitless_passes} times in a row no request of a batch was answered "
                f"({state.last_problem}); resume to try again"
            )
        return state.leftovers.pack_limit(state.released) or settings.per_call

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
            state = await (self._batches.retrieve(number) if number else self._batches.find(tag))
        except BadRequest as error:
            if error.status != NOT_FOUND:
                raise
            checkpoint.batch_collected(tag)
            return True
        if state is None or state.ended:
            return False
        await self._batches.cancel(state.id)
        return True


async def _run_pass(state: PassState, packs: AsyncGenerator[list[Item], None]) -> None:
    collector = Collector(state)
    await collector.collect_earlier()
    with ungrouped():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(collector.collect_all)
            exceeded = await Submitter(state).submit_all(packs)
    if exceeded is not None:
        raise exceeded
    if state.running:
        raise state.uncollected_error()
