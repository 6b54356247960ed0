"""Map many items to answers: packs of items become calls, open items are retried, failures are separate results.

    map_items(tree, items, instruction)      a list in, a list of `Mapped` out, in order; equal items asked once
    map_packs(tree, packs, task, sink)       the engine: packs in as they come, settled items out as they come
    ask_checked(tree, call, schema)          one call whose answer must meet a schema; one repair

Workers pull packs, so memory does not grow with their number. What a reply leaves open goes back into the queue:

    items without a usable answer                       →  retried in smaller packs, as `leftovers.py` says
    a pack that is refused, too long, or cut by its cap →  smaller packs as well, so that one bad item costs only itself
    a single item for which this happens                →  fails; an output cap is a limit, and is never raised here

Each item ends as a value that met the schema or as a failure with its reason. Structured output is asked of the
provider where it takes that; one that refuses is remembered and done without. We check every value in any case.
"""

from __future__ import annotations

from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Hashable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import anyio
import anyio.to_thread
from anyio.lowlevel import checkpoint

from rlm._async.groups import ungrouped
from rlm._async.semaphore import FairSemaphore, Permit
from rlm.checks import or_else, whole_number
from rlm.errors import (
    BadRequest,
    CallError,
    ContextTooLong,
    InvalidAnswer,
    LimitReached,
    OutputTruncated,
    PromptTruncated,
    Refused,
)
from rlm.metering.tokens import CHARS_PER_TOKEN
from rlm.structured.json_text import canonical
from rlm.structured.leftovers import Item, Leftovers, Mapped, Settled
from rlm.structured.packs import PackBudget, Task, content_chars, even_packs
from rlm.structured.reply_json import ItemResult, Valid, read_json
from rlm.structured.schema import Schema, SchemaSource, schema_of
from rlm.values import Call, Message, Reply, written_size

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from rlm.scheduler.scheduler import Tree

__all__ = [
    "MapSettings",
    "PlainModels",
    "Sink",
    "ask_checked",
    "fill_packs",
    "map_items",
    "map_packs",
    "pack_call",
    "too_long",
]

SMALL_CHARS: Final = 20_000
"""Size of items that are compared and measured on the event loop; larger ones go to a thread."""
SPLITTABLE: Final = (ContextTooLong, OutputTruncated, PromptTruncated, Refused)
"""Failures that may be the fault of one item of a pack, or of its size."""


Sink: TypeAlias = Callable[[Settled], Awaitable[None]]
"""Receiver of the items that each call settled; its worker makes no call until it returns."""


@dataclass(slots=True)
class PlainModels:
    """Record of the models that refuse a schema in the request, and of those that accepted one."""

    refusing: set[str] = field(default_factory=set)
    taking: set[str] = field(default_factory=set)

    def note_refusal(self, call: Call, error: CallError) -> bool:
        """Return True if the call should be retried without its schema; later calls then omit it."""
        if call.schema is None or not isinstance(error, BadRequest) or isinstance(error, ContextTooLong):
            return False
        if call.model in self.taking:
            return False
        self.refusing.add(call.model)
        return True

    def note_answer(self, call: Call) -> None:
        """Record an answered call: if it had a schema, the model accepts schemas."""
        if call.schema is not None:
            self.taking.add(call.model)


@dataclass(frozen=True, slots=True, kw_only=True)
class MapSettings:
    """Settings of a mapping.

    Attributes:
        model: the model that is asked.
        per_call: items of one call, or "auto" for as many as their length suggests.
        max_concurrent: calls at once; the scheduler may allow fewer.
        window_chars: characters of a whole prompt.
        max_output_tokens: output cap of each call, or None for the model's own.
        output_tokens: assumed size of a reply, in tokens, if `max_output_tokens` is None.
        temperature: passed to the model.
        run_id: the run that asks.
        depth: its depth.
        batch: number of the batch that the first call of each pack belongs to, or None.
        stops_at: failures of one call that end the whole mapping.
    """

    model: str
    per_call: int | Literal["auto"] = "auto"
    max_concurrent: int = 10
    window_chars: int = 400_000
    max_output_tokens: int | None = None
    output_tokens: int = 8_192
    temperature: float | None = None
    run_id: str = ""
    depth: int = 0
    batch: int | None = None
    stops_at: tuple[type[CallError], ...] = ()

    def __post_init__(self) -> None:
        or_else("auto", whole_number)("per_call", self.per_call)
        whole_number("max_concurrent", self.max_concurrent)
        whole_number("window_chars", self.window_chars)

    def pack_budget(self, task: Task) -> PackBudget:
        """Return the limits of one pack for this task, with nothing packed yet."""
        per_call = None if self.per_call == "auto" else self.per_call
        tokens = self.max_output_tokens or self.output_tokens
        return PackBudget(task, per_call, self.window_chars, int(tokens * CHARS_PER_TOKEN))


async def map_items(
    tree: Tree,
    items: Sequence[Any],
    instruction: str,
    settings: MapSettings,
    *,
    schema: SchemaSource | None = None,
    plain_models: PlainModels | None = None,
    kept: dict[int, Mapped] | None = None,
) -> list[Mapped]:
    """Ask the same of every item; equal items are asked once, and the answers come in the order of the items.

    Also where this raises or is cancelled, `kept` then has the outcomes there are, by the index of their item.

    Raises:
        SchemaError: the schema is not understood.
        LimitReached: the tree may spend no more; the calls in flight are finished first.
    """
    task = Task(instruction, None if schema is None else schema_of(schema))
    distinct: dict[Hashable, Item] = {}
    # In a thread if it takes long: the items of one run must not stop the event loop of all runs.
    is_small = written_size(items, SMALL_CHARS) <= SMALL_CHARS
    keys = _keys(items) if is_small else await anyio.to_thread.run_sync(_keys, items)
    for key, content in zip(keys, items, strict=True):
        distinct.setdefault(key, Item(key, content))
    waiting = list(distinct.values())
    budget = settings.pack_budget(task)
    packs = _packs(waiting, budget) if is_small else await anyio.to_thread.run_sync(_packs, waiting, budget)
    settings = replace(settings, max_concurrent=max(1, min(settings.max_concurrent, len(waiting))))
    outcomes: dict[Hashable, Mapped] = {}

    async def keep(settled: Settled) -> None:
        outcomes.update((item.key, mapped) for item, mapped in settled.items)

    if not packs:
        return []
    lists = _as_they_are([waiting[index] for index in pack] for pack in packs)
    with tree.batch(
        len(packs),
        distinct=len(packs),
        max_concurrent=settings.max_concurrent,
        run_id=settings.run_id,
        depth=settings.depth,
    ) as batch:
        settings = replace(settings, batch=batch.number)
        try:
            async with aclosing(lists):
                await map_packs(tree, lists, task, keep, settings, plain_models=plain_models)
        finally:
            batch.failed = sum(outcomes[key].failed for key in keys if key in outcomes)
            if kept is not None:
                kept.update((index, outcomes[key]) for index, key in enumerate(keys) if key in outcomes)
    return [outcomes[key] for key in keys]


def _keys(items: Sequence[Any]) -> list[str]:
    return [canonical(item) for item in items]


def _packs(items: Sequence[Item], budget: PackBudget) -> list[list[int]]:
    return even_packs([content_chars(item.content) for item in items], budget)


async def map_packs(
    tree: Tree,
    packs: AsyncIterator[Sequence[Item]],
    task: Task,
    sink: Sink,
    settings: MapSettings,
    *,
    plain_models: PlainModels | None = None,
) -> None:
    """Ask about packs of items as they come, and hand on what is settled as it comes.

    Each item is handed on exactly once, unless the mapping ends before. Of the packs that have been taken from
    `packs`, at most `max_concurrent` are being asked, and about as many are waiting.

    Raises:
        CallError: one that `settings.stops_at` names; the calls in flight are finished first.
        LimitReached: the tree may spend no more; the calls in flight are finished first.
        Exception: any error that `packs` or `sink` raises, at once.
    """
    mapping = _Mapping(tree, packs, task, sink, settings=settings, plain_models=plain_models or PlainModels())
    with ungrouped():
        await mapping.run()
    if mapping.stopped_by is not None:
        raise mapping.stopped_by


async def fill_packs(
    chunks: AsyncIterator[Iterable[Item]], budget: PackBudget
) -> AsyncGenerator[list[Item], None]:
    """Yield packs that fit the budget from items that arrive in chunks."""
    pack: list[Item] = []
    budget.reset()
    async for chunk in chunks:
        for item in chunk:
            size = content_chars(item.content)
            if not budget.fits(size):
                yield pack
                pack = []
                budget.reset()
            budget.add(size)
            pack.append(item)
    if pack:
        yield pack


def pack_call(
    task: Task,
    contents: Sequence[Any],
    settings: MapSettings,
    plain_models: PlainModels,
    *,
    notes: Mapping[int, str] | None = None,
) -> Call:
    """The call that asks about some contents, with a schema unless the model refuses one."""
    plain = settings.model in plain_models.refusing
    return Call(
        model=settings.model,
        messages=(Message("user", task.prompt(contents, notes)),),
        run_id=settings.run_id,
        depth=settings.depth,
        max_output_tokens=settings.max_output_tokens,
        temperature=settings.temperature,
        schema=None if plain else task.reply_schema(len(contents)),
    )


def too_long(call: Call, settings: MapSettings) -> str:
    """Return why a call of `pack_call` is longer than the model's window, or '' if it is not."""
    chars = len(call.messages[0].content)
    if chars <= settings.window_chars:
        return ""
    return f"the prompt has {chars:,} characters, and the model is given at most {settings.window_chars:,}"


async def ask_checked(
    tree: Tree, call: Call, schema: Schema, *, plain_models: PlainModels | None = None
) -> Any:
    """The answer to a call as a value that meets the schema.

    An answer that does not is sent back once with what is wrong.

    Raises:
        InvalidAnswer: the second answer does not meet the schema either.
        CallError: the call failed for good.
        LimitReached: the tree may spend no more.
    """
    plain = plain_models or PlainModels()
    task = Task("", schema, single=str)
    last = call.messages[-1]
    asked = replace(last, content=task.prompt([last.content]))
    call = replace(call, messages=(*call.messages[:-1], asked), schema=task.reply_schema(1))
    reply = await _complete(tree, call, plain)
    outcome = read_json(reply.text, schema)
    if not isinstance(outcome, Valid):
        repair = Message(
            "user", f"This cannot be used: {outcome.reason}. Reply with the corrected JSON only."
        )
        call = replace(call, messages=(*call.messages, Message("assistant", reply.text), repair))
        reply = await _complete(tree, call, plain)
        outcome = read_json(reply.text, schema)
    if isinstance(outcome, Valid):
        return outcome.value
    raise InvalidAnswer(
        f"{call.model} was asked twice, and its answer does not meet the schema: {outcome.reason}",
        text=reply.text,
        model=call.model,
    )


@dataclass(frozen=True, slots=True)
class _Pack:
    """Items to ask about in one call; `call` is set if it was made ahead of need."""

    items: Sequence[Item]
    call: Call | None = None


class _Mapping:
    """The state that the workers of one mapping share.

    Packs are read, and their prompts written, ahead of need, so that a worker which has an answer can ask again at
    once, and many calls stay in flight. A worker whose call waits for a retry releases its permit to another, so there
    may be twice as many workers as permits; a worker is started when a pack is ready and no worker is idle. There are
    as many permits as calls may be in flight, but at most twice the current limit of an adaptive scheduler.
    """

    def __init__(
        self,
        tree: Tree,
        packs: AsyncIterator[Sequence[Item]],
        task: Task,
        sink: Sink,
        *,
        settings: MapSettings,
        plain_models: PlainModels,
    ) -> None:
        self.stopped_by: CallError | LimitReached | None = None
        self._tree = tree
        self._packs = packs
        self._task = task
        self._sink = sink
        self._settings = settings
        self._plain_models = plain_models
        self._leftovers = Leftovers()
        self._again: deque[_Pack] = deque()
        self._ready: deque[_Pack] = deque()
        self._semaphore = FairSemaphore(self._permits())
        self._workers: TaskGroup
        self._reading = anyio.CancelScope()
        self._started = 0
        self._ended = False
        self._busy = 0
        self._idle: deque[anyio.Event] = deque()
        self._taken = anyio.Event()
        self._ever_answered = False

    async def run(self) -> None:
        """Settle all packs, or stop."""
        async with anyio.create_task_group() as self._workers:
            with self._reading:
                await self._read_ahead()
            self._ended = True
            self._wake_all()

    async def _read_ahead(self) -> None:
        async for items in self._packs:
            while len(self._ready) >= self._semaphore.size:
                self._taken = anyio.Event()
                await self._taken.wait()
            pack = _Pack(items)
            self._ready.append(replace(pack, call=replace(self._call(pack), batch=self._settings.batch)))
            self._wake(1)
            await checkpoint()  # the first call goes out before the last pack is read

    async def _work(self) -> None:
        """Settle pack after pack until there are none, and none can come back from another worker."""
        permit = Permit(self._semaphore)
        try:
            await permit.acquire()
            while self.stopped_by is None:
                if (pack := self._take()) is not None:
                    await self._settle(pack, permit)
                elif self._ended and not self._busy:
                    return
                else:
                    permit.release()
                    self._idle.append(anyio.Event())
                    await self._idle[-1].wait()
                if self._semaphore.is_full:
                    permit.release()  # so that a call waiting for its retry can have it
                await permit.acquire()
        finally:
            permit.release()

    def _take(self) -> _Pack | None:
        """The next pack, counted as busy from here on."""
        if not self._again and not self._ready:
            return None
        self._busy += 1
        if self._again:
            return self._again.popleft()
        self._taken.set()
        return self._ready.popleft()

    def _call(self, pack: _Pack) -> Call:
        return pack_call(
            self._task,
            [item.content for item in pack.items],
            self._settings,
            self._plain_models,
            notes=self._leftovers.reasons(pack.items),
        )

    def _permits(self) -> int:
        """How many calls are made or wait for the gate: enough to find it full, so that it may widen."""
        return min(self._settings.max_concurrent, 2 * self._tree.in_flight_limit(self._settings.model))

    def _wake(self, packs: int) -> None:
        """Wake or start workers for so many packs."""
        for _ in range(packs):
            if self._idle:
                self._idle.popleft().set()
            elif self._started < 2 * self._semaphore.size:
                self._started += 1
                self._workers.start_soon(self._work)

    def _wake_all(self) -> None:
        """Wake all idle workers, so that they check if work remains."""
        while self._idle:
            self._idle.popleft().set()

    def _stop(self, reason: CallError | LimitReached) -> None:
        self.stopped_by = self.stopped_by or reason
        self._reading.cancel()

    async def _settle(self, pack: _Pack, permit: Permit) -> None:
        try:
            if self.stopped_by is None:
                await self._ask(pack, permit)
        finally:
            self._busy -= 1
            if (permits := self._permits()) != self._semaphore.size:
                self._semaphore.resize(permits)
            if self.stopped_by is not None or not (self._busy or self._again):
                self._wake_all()
            else:
                self._wake(len(self._again))

    async def _ask(self, pack: _Pack, permit: Permit) -> None:
        call = pack.call or self._call(pack)
        if call.model in self._plain_models.refusing:
            call = replace(call, schema=None)
        if reason := too_long(call, self._settings):
            if len(pack.items) > 1:
                self._split(pack)
            else:
                await self._give_up(pack, ContextTooLong.__name__, reason)
            return
        try:
            reply = await self._tree.complete(call, permit=permit)
        except LimitReached as limit:
            self._stop(limit)
        except CallError as error:
            await self._handle_error(pack, call, error)
        else:
            self._ever_answered = True
            self._plain_models.note_answer(call)
            await self._sort_results(pack, self._task.read(reply.text, len(pack.items)), reply)

    async def _sort_results(
        self, pack: _Pack, results: Sequence[ItemResult], reply: Reply | None = None
    ) -> None:
        settled, left = self._leftovers.sort(pack.items, results)
        self._ask_again(left)
        if settled or reply is not None:
            await self._sink(Settled(settled, reply))

    def _split(self, pack: _Pack) -> None:
        self._leftovers.split(pack.items)
        self._ask_again(pack.items)

    def _ask_again(self, items: Sequence[Item]) -> None:
        self._again.extend(_Pack(smaller) for smaller in self._leftovers.packs(items))

    async def _handle_error(self, pack: _Pack, call: Call, error: CallError) -> None:
        if isinstance(error, self._settings.stops_at):
            self._stop(error)
        elif self._plain_models.note_refusal(call, error):
            self._again.append(pack)
        elif len(pack.items) > 1 and isinstance(error, OutputTruncated) and error.text:
            await self._sort_results(pack, self._task.read(error.text, len(pack.items)))
        elif len(pack.items) > 1 and (
            isinstance(error, SPLITTABLE) or (isinstance(error, BadRequest) and self._ever_answered)
        ):
            self._split(pack)
        else:
            await self._give_up(pack, type(error).__name__, str(error))

    async def _give_up(self, pack: _Pack, kind: str, reason: str) -> None:
        await self._sink(Settled([(item, Mapped(kind=kind, reason=reason)) for item in pack.items]))


async def _complete(tree: Tree, call: Call, plain_models: PlainModels) -> Reply:
    """Ask once, with the schema where the model takes one."""
    if call.model in plain_models.refusing:
        return await tree.complete(replace(call, schema=None))
    try:
        reply = await tree.complete(call)
    except BadRequest as error:
        if not plain_models.note_refusal(call, error):
            raise
        return await tree.complete(replace(call, schema=None))
    plain_models.note_answer(call)
    return reply


async def _as_they_are(packs: Iterable[Sequence[Item]]) -> AsyncGenerator[Sequence[Item], None]:
    for pack in packs:
        yield pack
