"""State that the parts of one pass over the rows share: the provider, the requests, the batches and the open rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import anyio

from rlm.checks import whole_number
from rlm.errors import JobStopped, SettingsError
from rlm.metering.prices import BATCH_FACTOR, Price
from rlm.metering.prices import price as price_of
from rlm.scheduler.budget import Amount
from rlm.scheduler.ledger import Reservation
from rlm.structured.leftovers import Item, Leftovers, Mapped, Settled
from rlm.structured.map import MapSettings, PlainModels, Sink
from rlm.wording import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rlm.bulk.checkpoint import Checkpoint
    from rlm.clients.openai_batches import BatchState, OpenAIBatches
    from rlm.scheduler.scheduler import Tree
    from rlm.structured.packs import Task
    from rlm.values import Call, Reply, Usage

__all__ = ["Batch", "BatchRequest", "EnqueuedTokens", "PassState", "Provider", "StageState"]

MOST_REQUESTS: Final = 50_000
MOST_BYTES: Final = 200_000_000
NOT_FOUND: Final = 404


class EnqueuedTokens:
    """Limit on the tokens of all unfinished batches of one model, as the account has it; counted by tag."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._used: dict[str, tuple[str, int]] = {}
        self._changed = anyio.Event()

    async def acquire(self, model: str, tag: str, tokens: int) -> None:
        """Wait until so many tokens fit; a batch larger than the limit waits until it is the only one."""
        while (used := self._used_by(model)) and used + tokens > self.most:
            await self._changed.wait()
        self._used[tag] = model, tokens

    def release(self, tag: str) -> None:
        """Release the tokens of a batch that has ended or is no longer awaited; a second call has no effect."""
        if self._used.pop(tag, None) is not None:
            self._changed.set()
            self._changed = anyio.Event()

    def _used_by(self, model: str) -> int:
        return sum(tokens for name, tokens in self._used.values() if name == model)


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider's Batch API, its limits, and how it is polled; the fields are arguments of `BatchAPI`."""

    batches: OpenAIBatches
    prices: Mapping[str, Price]
    max_requests: int
    max_bytes: int
    enqueued: EnqueuedTokens
    first_poll_s: float
    longest_poll_s: float
    out_of_reach_s: float
    wait: bool
    plain_models: PlainModels = field(default_factory=PlainModels)

    def __post_init__(self) -> None:
        for name, value, most in (
            ("max_requests", self.max_requests, MOST_REQUESTS),
            ("max_bytes", self.max_bytes, MOST_BYTES),
            ("enqueued_tokens", self.enqueued.most, None),
        ):
            whole_number(name, value)
            if most is not None and value > most:
                raise SettingsError(f"{name}={value!r}: must be at most {most:,}")

    def price(self, model: str, usage: Usage) -> float | None:
        """Return the price of a usage through the Batch API, in dollars."""
        endpoint = self.batches.endpoint
        return price_of(model, usage, overrides=self.prices, endpoint=endpoint, factor=BATCH_FACTOR)


@dataclass(slots=True)
class StageState:
    """Failed attempts of one stage of one job over all its passes; a `BatchAPI` may serve several jobs."""

    leftovers: Leftovers = field(default_factory=Leftovers)
    fruitless_passes: int = 0


@dataclass(slots=True)
class BatchRequest:
    """One line of a file: its items, its reservation in the budget, and `sent`, True if it may have been sent.

    A request of an earlier session has no reservation, and it is unknown if it had a schema.
    """

    keys: list[int]
    call: Call
    reservation: Reservation | None
    sent: bool = False

    @property
    def items(self) -> list[Item]:
        """Return its items, which keep only their keys until the next pass reads their rows again."""
        return [Item(key, None) for key in self.keys]


@dataclass(slots=True)
class Batch:
    """A batch at the provider; the `custom_id` of a request ends with its index in `requests`.

    `seen` has the indices whose lines were read: not all of them if a download is interrupted.
    """

    tag: str
    state: BatchState
    requests: list[BatchRequest]
    seen: set[int] = field(default_factory=set)


@dataclass(slots=True, kw_only=True)
class PassState:
    """One pass over the rows of a stage.

    Attributes:
        running: batches at the provider that are not collected yet, by tag.
        unsettled: requests with an open reservation, by `id`.
        released: keys of the rows that the next pass asks about.
        settled: number of rows that this pass settled.
        last_problem: why the last request failed.
        all_sent: True if no more batches will be started.
    """

    provider: Provider
    tree: Tree
    task: Task
    sink: Sink
    settings: MapSettings
    checkpoint: Checkpoint
    stage: int
    leftovers: Leftovers
    running: dict[str, Batch] = field(default_factory=dict)
    unsettled: dict[int, BatchRequest] = field(default_factory=dict)
    released: list[int] = field(default_factory=list)
    settled: int = 0
    last_problem: str = "they expired"
    all_sent: bool = False
    changed: anyio.Event = field(default_factory=anyio.Event)

    def notify_change(self) -> None:
        """Wake the collector: a batch was started or has ended, or all are sent."""
        self.changed.set()
        self.changed = anyio.Event()

    def release(self, keys: Sequence[int]) -> None:
        """Leave these rows to the next pass."""
        self.released += keys
        self.checkpoint.release(self.stage, keys)

    def split(self, items: Sequence[Item]) -> None:
        """Leave the items of a pack to the next pass, in smaller packs."""
        self.leftovers.split(items)
        self.release([item.key for item in items])

    async def deliver(self, settled: Sequence[tuple[Item, Mapped]], reply: Reply | None = None) -> None:
        """Pass settled items on, with the reply that settled them."""
        self.settled += len(settled)
        await self.sink(Settled(settled, reply))

    async def fail(self, item: Item, error: type[Exception], reason: str) -> None:
        """Settle one item as failed."""
        await self.deliver([(item, Mapped(kind=error.__name__, reason=reason))])

    def book(self, request: BatchRequest, usage: Usage | None, cost_usd: float | None) -> None:
        """Settle the reservation of a request with what it used; None if it is not billed."""
        self.tree.ledger.settle(self._pop_reservation(request), usage, cost_usd)

    def settle_reservations(self) -> None:
        """Settle open reservations: sent requests keep theirs, because their cost is unknown; the others release it."""
        for tag in self.running:
            self.provider.enqueued.release(tag)
        for request in list(self.unsettled.values()):
            if request.sent:
                self.tree.ledger.settle_unknown(self._pop_reservation(request))
            else:
                self.book(request, None, None)

    def mark_collected(self, batch: Batch) -> None:
        """Record that nothing more is to be read of a batch."""
        self.checkpoint.batch_collected(batch.tag)
        del self.running[batch.tag]
        self.provider.enqueued.release(batch.tag)
        self.notify_change()

    def uncollected_error(self) -> JobStopped:
        """Return the error of a job that ends before its batches do."""
        number = self.checkpoint.uncollected
        return JobStopped(
            f"{counted(number, 'batch')} {'is' if number == 1 else 'are'} submitted and not finished: "
            "resume the job later to collect the answers"
        )

    def _pop_reservation(self, request: BatchRequest) -> Reservation:
        self.unsettled.pop(id(request), None)
        reservation, request.reservation = request.reservation, None
        return reservation or Reservation(request.call, Amount())
