"""Handler of a cell's host calls: a call, a batch of calls, many items packed into calls, or child runs.

A run makes one `HostCalls` per cell and passes it to the guest's session. At the depth limit a child run becomes a
plain call: the question and the context as one prompt to the sub-model. What a cell sees of them is in
`rlm/sandbox/guest/api.py`; their arguments are checked in `arguments.py`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import checkpoint

from rlm._async.groups import for_each
from rlm.clients.error_mapping import redact
from rlm.engine import arguments as read
from rlm.engine import prompts
from rlm.engine.prompt_failures import PromptFailures
from rlm.errors import (
    AuthenticationFailed,
    CallError,
    ContextTooLong,
    DeadlineExceeded,
    HostCallRefused,
    LimitReached,
    QuotaExhausted,
    RLMError,
    SettingsError,
    UnknownModel,
)
from rlm.sandbox.shared_contexts import ContextRef
from rlm.structured.check import quoted
from rlm.structured.map import MapSettings, PlainModels, ask_checked, map_items
from rlm.values import Answer, Call, HostCall, Message, Reply, written_size
from rlm.wording import clipped

if TYPE_CHECKING:
    from rlm.engine.arguments import Arguments
    from rlm.scheduler.batch import Kept
    from rlm.scheduler.scheduler import Tree
    from rlm.settings import RunSettings
    from rlm.structured.leftovers import Mapped

__all__ = ["NO_DEADLINE", "Deadline", "HostCalls", "StartChild"]

StartChild: TypeAlias = Callable[[str, Any, str | None], Awaitable[Answer]]
"""Starts a child run from a question, a context and a root model (None: that of the parent); returns its answer, which
may be partial. The context may be a `ContextRef`: then the child's guest reads it from shared memory."""

Slot: TypeAlias = "dict[str, Any]"
"""One result of many: the answer under `text` or `value`, or a failure as `error` and its `kind`."""

T = TypeVar("T")

logger = logging.getLogger("rlm")

UNREACHABLE = (UnknownModel, AuthenticationFailed, QuotaExhausted)
BYTES_PER_CHAR = 8
"""Upper bound of the encoded size of a value per character of its rendered text."""
ERROR_CHARS = 4_000
"""Greatest length of an error that is passed to a cell."""
SMALL_CHARS = 20_000
"""Size of a value that is worked on on the event loop; a larger one goes to a thread."""
ENTRIES_AT_ONCE = 1_000
"""Entries of a list that are worked on before other tasks get their turn on the event loop."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """Time `at` which a run has to end, on the event loop's clock, and the limit of `seconds` that set it."""

    at: float = math.inf
    seconds: float = math.inf

    def within(self, seconds: float | None) -> Deadline:
        """Return this deadline, or the one so many seconds from now if that is sooner."""
        at = math.inf if seconds is None else anyio.current_time() + seconds
        return self if seconds is None or at >= self.at else Deadline(at, seconds)

    def exceeded(self) -> DeadlineExceeded:
        """Return the error of a run that did not end in time."""
        return DeadlineExceeded(
            f"the run took longer than {self.seconds:g} s",
            name="seconds",
            limit=self.seconds,
            spent=self.seconds,
        )


NO_DEADLINE = Deadline()


@dataclass(slots=True)
class HostCalls:
    """Handler of the host calls of one cell; `await calls(host_call)` returns the value for the cell.

    A limit of the tree does not kill the cell. The host call that meets it fails, or its slots without an answer do,
    and so does every later host call, so that the cell can still give what it has.

    Attributes:
        reached: the limit that was reached, if any.
        misconfigured: the error of a model in the settings that cannot be called at all, because its name, the key
            or the account is wrong; the user has to fix it.
        failures: counts the failed prompts of the whole tree.
    """

    settings: RunSettings
    tree: Tree
    run_id: str
    depth: int
    start_child: StartChild
    deadline: Deadline = NO_DEADLINE
    reached: LimitReached | None = None
    misconfigured: CallError | None = None
    plain_models: PlainModels = field(default_factory=PlainModels)
    failures: PromptFailures = field(default_factory=PromptFailures)

    async def __call__(self, host_call: HostCall) -> Any:
        """Perform one host call.

        Raises:
            HostCallRefused: the name or an argument is invalid, a limit of the run was reached, or the host has a fault.
            CallError: the call failed for good.
        """
        if self.reached is None:
            try:
                return await self._dispatch(host_call.name, host_call.arguments)
            except LimitReached as limit:
                self.reached = limit
            except CallError as error:
                self.failures.count_failure(error)
                self._note_misconfiguration(error)
                raise
            except HostCallRefused as refusal:
                if host_call.name == "rlm_query":  # counted like a failed slot of `rlm_batch`
                    self.failures.count_failure(refusal)
                raise
            except (
                SettingsError
            ) as error:  # such as a model without a price under a budget, named by the cell
                raise HostCallRefused(clipped(redact(str(error)), ERROR_CHARS)) from error
            except Exception as error:
                # What a cell sends must not end the run, also if it meets a fault of ours or of the user's client. The
                # fault is counted, so that the answer's warnings name it.
                self.failures.count_failure(error)
                raise self._unexpected(host_call.name, error) from error
        raise HostCallRefused(f"{self.reached}; give the best answer you have")

    async def _dispatch(self, name: str, arguments: Arguments) -> Any:
        match name:
            case "llm_query":
                return await self._one_answer(self._llm_query(arguments))
            case "rlm_query":
                return await self._one_answer(self._rlm_query(arguments))
            case "llm_batch":
                return self.failures.count_slots(await self._llm_batch(arguments))
            case "llm_map":
                return self.failures.count_slots(await self._llm_map(arguments))
            case "rlm_batch":
                return self.failures.count_slots(await self._rlm_batch(arguments))
            case _:
                raise HostCallRefused(f"there is no host call {quoted(name)}")

    async def _llm_query(self, arguments: Arguments) -> Any:
        call = self._sub_call(read.text(arguments, "prompt"), read.model(arguments))
        schema = await read.schema(arguments)
        if schema is None:
            return (await self.tree.complete(call)).text
        return await ask_checked(self.tree, call, schema, plain_models=self.plain_models)

    async def _llm_batch(self, arguments: Arguments) -> list[Slot]:
        model = read.model(arguments)
        calls = []
        async for _, text in _in_turns(read.texts(arguments, "prompts")):
            calls.append(self._sub_call(text, model))
        slots = await self._complete_all("text", calls, self._max_concurrent(arguments))
        return self._fill_missing(len(calls), slots)

    async def _llm_map(self, arguments: Arguments) -> list[Slot]:
        model = read.model(arguments) or self.settings.recursive_model
        items, instruction = read.entries(arguments, "items"), read.text(arguments, "instruction")
        schema = await read.schema(arguments)
        settings = MapSettings(
            model=model,
            per_call=read.per_call(arguments),
            max_concurrent=self._max_concurrent(arguments),
            window_chars=self.settings.sub_context_chars,
            run_id=self.run_id,
            depth=self.depth,
            stops_at=UNREACHABLE if model == self.settings.recursive_model else (),
        )
        fitting = await self._fitting(items)
        kept: dict[int, Mapped] = {}
        with self._until_limit():
            await map_items(
                self.tree,
                [items[index] for index in fitting],
                instruction,
                settings,
                schema=schema,
                plain_models=self.plain_models,
                kept=kept,
            )
        slots = {fitting[index]: _mapped_slot(item) for index, item in kept.items()}
        if len(fitting) < len(items):
            too_long = self._failed_slot(
                ContextTooLong(
                    f"the item has more than {self.settings.sub_context_chars:,} characters, which is more than a "
                    "sub-model takes"
                )
            )
            slots.update((index, too_long) for index in set(range(len(items))).difference(fitting))
        return self._fill_missing(len(items), slots)

    async def _fitting(self, items: Sequence[Any]) -> Sequence[int]:
        """Return the indices of the items that a prompt can have; the others are not even compared."""
        most = self.settings.sub_context_chars

        def find() -> Sequence[int]:
            return [index for index, item in enumerate(items) if written_size(item, most) <= most]

        if written_size(items, SMALL_CHARS) <= min(SMALL_CHARS, most):
            return range(len(items))
        return await anyio.to_thread.run_sync(find)

    async def _rlm_query(self, arguments: Arguments) -> Any:
        question, context = read.text(arguments, "question"), arguments.get("context")
        model = read.model(arguments)
        if self._at_depth_limit:
            return (await self.tree.complete(await self._plain_child(question, context, model))).text
        return _complete_value(await self.start_child(question, context, model))

    async def _rlm_batch(self, arguments: Arguments) -> list[Slot]:
        """Run the children concurrently; a child that fails costs only its own slot."""
        items = read.children(arguments)
        if self._at_depth_limit:
            return await self._plain_children(items, self._max_concurrent(arguments))
        max_concurrent = read.max_concurrent(arguments, self.settings.max_children)
        slots: dict[int, Slot] = {}

        async def start(item: tuple[int, tuple[str, Any]]) -> None:
            index, (question, context) = item
            try:
                slots[index] = {"value": _complete_value(await self.start_child(question, context, None))}
            except (CallError, HostCallRefused) as error:
                slots[index] = self._failed_slot(error)
            except LimitReached as limit:
                self.reached = limit
            except Exception as error:  # noqa: BLE001 - it costs one child
                slots[index] = self._failed_slot(self._unexpected("rlm_batch", error))

        until_a_limit = takewhile(lambda _: self.reached is None, enumerate(items))
        with self._until_limit():
            await for_each(until_a_limit, start, max_concurrent=min(max_concurrent, len(items)))
        return self._fill_missing(len(items), slots)

    async def _one_answer(self, answer: Awaitable[T]) -> T:
        """Await the answer until the deadline.

        Raises:
            DeadlineExceeded: the deadline came first.
        """
        with anyio.CancelScope(deadline=self.deadline.at):
            value = await answer
            self.failures.count_answer()
            return value
        raise self.deadline.exceeded()

    async def _complete_all(self, key: str, calls: Sequence[Call], max_concurrent: int) -> dict[int, Slot]:
        """Return the slots of the calls that were answered, or failed, before a limit."""
        kept: Kept = {}
        with self._until_limit():
            await self.tree.complete_all(calls, max_concurrent=max_concurrent, kept=kept)
        return {
            index: {key: reply.text} if isinstance(reply, Reply) else self._failed_slot(reply)
            for index, reply in kept.items()
        }

    @contextmanager
    def _until_limit(self) -> Iterator[None]:
        """Cancel the body at the deadline; keep the limit that ended it in `reached` instead of raising it."""
        try:
            with anyio.CancelScope(deadline=self.deadline.at) as scope:
                yield
        except LimitReached as limit:
            self.reached = limit
        else:
            if scope.cancelled_caught:
                self.reached = self.deadline.exceeded()

    def _fill_missing(self, number: int, slots: Mapping[int, Slot]) -> list[Slot]:
        """Return all slots in order; a slot that a limit left without an answer holds that limit as its error.

        Raises:
            LimitReached: the limit left no slot with an answer.
        """
        if self.reached is None or len(slots) == number:
            return [slots[index] for index in range(number)]
        if not slots:
            raise self.reached
        return [slots.get(index) or self._failed_slot(self.reached) for index in range(number)]

    def _failed_slot(self, error: RLMError) -> Slot:
        self._note_misconfiguration(error)
        return {"error": clipped(str(error), ERROR_CHARS), "kind": type(error).__name__}

    def _unexpected(self, name: str, error: Exception) -> HostCallRefused:
        """Log an exception that no host call should raise; return the error for the cell."""
        logger.error("%s raised an unexpected exception", clipped(name, 40), exc_info=error)
        return HostCallRefused(
            clipped(redact(f"the host could not perform the call: {type(error).__name__}: {error}"), 300)
        )

    def _max_concurrent(self, arguments: Arguments) -> int:
        return read.max_concurrent(arguments, self.tree.max_in_flight)

    def _note_misconfiguration(self, error: RLMError) -> None:
        if isinstance(error, UNREACHABLE) and error.model in ("", *self.settings.models):
            self.misconfigured = error

    @property
    def _at_depth_limit(self) -> bool:
        return self.depth + 1 >= self.settings.max_depth

    async def _plain_children(self, items: Sequence[tuple[str, Any]], max_concurrent: int) -> list[Slot]:
        """Ask the children as plain calls; one whose context is too long for that fails alone."""
        slots: dict[int, Slot] = {}
        calls: dict[int, Call] = {}
        async for index, (question, context) in _in_turns(items):
            try:
                calls[index] = await self._plain_child(question, context, None)
            except HostCallRefused as refusal:
                slots[index] = self._failed_slot(refusal)
        answered = await self._complete_all("value", list(calls.values()), max_concurrent)
        item_indices = list(calls)
        slots.update((item_indices[index], slot) for index, slot in answered.items())
        return self._fill_missing(len(items), slots)

    async def _plain_child(self, question: str, context: Any, model: str | None) -> Call:
        """Return the plain call that replaces a child run at the depth limit.

        Raises:
            HostCallRefused: the context is too long for one prompt.
        """
        limit = self.settings.sub_context_chars
        if isinstance(context, ContextRef):
            if context.length > BYTES_PER_CHAR * limit:
                raise self._too_long(f"context of {context.length:,} bytes")
            context = await context.value()
        if written_size(context, SMALL_CHARS) <= SMALL_CHARS:
            return self._sub_call(self._plain_prompt(question, context), model)
        return self._sub_call(await anyio.to_thread.run_sync(self._plain_prompt, question, context), model)

    def _plain_prompt(self, question: str, context: Any) -> str:
        limit = self.settings.sub_context_chars
        # An estimate first, because a context of 2 MB can be rendered to gigabytes.
        if not isinstance(context, str) and written_size(context, 2 * limit) > 2 * limit:
            raise self._too_long(f"context of more than {limit:,} characters")
        prompt = prompts.plain_child_prompt(question, context)
        if len(prompt) > limit:
            raise self._too_long(f"prompt of {len(prompt):,} characters")
        return prompt

    def _sub_call(self, prompt: str, model: str | None) -> Call:
        return Call(
            model=model or self.settings.recursive_model,
            messages=(Message("user", prompt),),
            role="sub",
            run_id=self.run_id,
            depth=self.depth,
        )

    def _too_long(self, what: str) -> HostCallRefused:
        return HostCallRefused(
            f"the depth limit (max_depth={self.settings.max_depth}) makes this child run a plain call, and its "
            f"{what} is longer than the {self.settings.sub_context_chars:,} characters a sub-model takes: pass a smaller "
            "piece of the context"
        )


async def _in_turns(entries: Sequence[T]) -> AsyncIterator[tuple[int, T]]:
    """Yield the entries with their index, and let other tasks run every `ENTRIES_AT_ONCE` of them."""
    for index, entry in enumerate(entries):
        if index % ENTRIES_AT_ONCE == ENTRIES_AT_ONCE - 1:
            await checkpoint()
        yield index, entry


def _mapped_slot(outcome: Mapped) -> Slot:
    return (
        {"error": clipped(outcome.reason, ERROR_CHARS), "kind": outcome.kind}
        if outcome.failed
        else {"value": outcome.value}
    )


def _complete_value(answer: Answer) -> Any:
    """Return the value of a child's answer; a partial answer is a failure whose message quotes it.

    Raises:
        HostCallRefused: the child did not finish.
    """
    if answer.status == "ok":
        return answer.value
    had = f"; what it had so far: {prompts.clip(str(answer), 2_000)}" if answer else ""
    raise HostCallRefused(f"the child run did not finish: {answer.limit}{had}")
