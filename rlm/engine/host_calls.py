"""What a host call of a cell means at this depth: a call, a batch, many items packed into calls, or child runs.

`HostCalls` is built for one run and handed to its guest's session. Arguments come from a guest that may be
hostile, so each is checked here again; what is wrong with them is told to the cell as `HostCallRefused`.

At the depth limit a child run becomes a plain call: the question and the context as one prompt to the sub-model.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import anyio

from rlm._async.groups import for_each
from rlm.engine import prompts
from rlm.engine.prompt_failures import Outcomes
from rlm.errors import (
    AuthenticationFailed,
    CallError,
    DeadlineExceeded,
    HostCallRefused,
    LimitReached,
    QuotaExhausted,
    RLMError,
    SchemaError,
    UnknownModel,
)
from rlm.sandbox.shared_contexts import ContextRef
from rlm.structured.map import Mapped, MapSettings, PlainModels, ask_checked, map_items
from rlm.structured.schema import Schema, schema_of
from rlm.values import Answer, Call, HostCall, Message, Reply

if TYPE_CHECKING:
    from rlm.scheduler.batch import Kept
    from rlm.scheduler.scheduler import Tree
    from rlm.settings import RunSettings

__all__ = ["NO_DEADLINE", "Deadline", "HostCalls", "StartChild"]

StartChild: TypeAlias = Callable[[str, Any, str | None], Awaitable[Answer]]
"""Start a child run: question, context, root model or None for the run's own; gives its answer, whole or partial.

A `ContextRef` in the place of the context is one that the child's guest reads from its parent's."""

Arguments: TypeAlias = Mapping[str, Any]
"""What the guest sent with a host call."""

Slot: TypeAlias = "dict[str, Any]"
"""One answer of many, under `text` or `value`; or why there is none: `error`, and the `kind` of it."""

T = TypeVar("T")

MOST_CONCURRENT = 1_000
MOST_ENTRIES = 100_000
UNREACHABLE = (UnknownModel, AuthenticationFailed, QuotaExhausted)
BYTES_PER_CHAR = 8
"""More than any value takes on the wire for one character of the text that it is rendered as."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a run has to end, on the event loop's clock, and of how many `seconds` of wall clock that is the end."""

    at: float = math.inf
    seconds: float = math.inf

    def within(self, seconds: float | None) -> Deadline:
        """This deadline, or the one that comes after so many seconds from now, if that is sooner."""
        at = math.inf if seconds is None else anyio.current_time() + seconds
        return self if seconds is None or at >= self.at else Deadline(at, seconds)

    def exceeded(self) -> DeadlineExceeded:
        """The error of a run that did not end in time."""
        return DeadlineExceeded(
            f"the run took longer than {self.seconds:g} s",
            name="seconds",
            limit=self.seconds,
            spent=self.seconds,
        )


NO_DEADLINE = Deadline()


@dataclass(slots=True)
class HostCalls:
    """Serves the host calls of one cell of a run at `depth`; `await calls(host_call)` gives the value for the cell.

    A limit of the tree does not kill the cell: its call fails, or those of its slots that were not filled yet, as do
    all calls that follow, so that the cell can give what it has, and `reached` says which limit it was.
    `misconfigured` is the error of a model of the settings that no call can reach: its name, the key or the account
    is wrong, which is the user's to mend.
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
    outcomes: Outcomes = field(default_factory=Outcomes)

    async def __call__(self, host_call: HostCall) -> Any:
        """Perform one host call.

        Raises:
            HostCallRefused: the name or an argument is not one a cell may use, or a limit of the run was reached.
            CallError: the call failed for good.
        """
        if self.reached is None:
            try:
                return await self._perform(host_call)
            except LimitReached as limit:
                self.reached = limit
            except CallError as error:
                self.outcomes.note_failure(error)
                self._judge(error)
                raise
            except HostCallRefused as refusal:
                if host_call.name == "rlm_query":  # it counts, as in a slot of `rlm_batch`
                    self.outcomes.note_failure(refusal)
                raise
        raise HostCallRefused(f"{self.reached}; give the answer with what there is")

    async def _perform(self, host_call: HostCall) -> Any:
        arguments = host_call.arguments
        match host_call.name:
            case "llm_query":
                return await self._one_answer(self._query, arguments)
            case "rlm_query":
                return await self._one_answer(self._child, arguments)
            case "llm_batch":
                return await self._many_answers(self._batch, arguments)
            case "llm_map":
                return await self._many_answers(self._map, arguments)
            case "rlm_batch":
                return await self._many_answers(self._children, arguments)
            case unknown:
                raise HostCallRefused(f"there is no host call {unknown!r}")

    async def _one_answer(self, ask: Callable[[Arguments], Awaitable[T]], arguments: Arguments) -> T:
        with anyio.CancelScope(deadline=self.deadline.at):
            value = await ask(arguments)
            self.outcomes.note_answer()
            return value
        raise self.deadline.exceeded()

    async def _many_answers(
        self, ask: Callable[[Arguments], Awaitable[list[Slot]]], arguments: Arguments
    ) -> list[Slot]:
        """A limit in the middle costs only the slots that are still empty."""
        slots = await ask(arguments)
        self.outcomes.note_slots(slots)
        return slots

    async def _as_far_as_limits_allow(self, ask: Callable[[], Awaitable[object]]) -> None:
        """Ask, and note a limit that ends it in `reached`; what was answered by then is in the hands of who asks."""
        try:
            with anyio.CancelScope(deadline=self.deadline.at):
                await ask()
                return
            self.reached = self.deadline.exceeded()
        except LimitReached as limit:
            self.reached = limit

    def _judge(self, error: RLMError) -> None:
        if isinstance(error, UNREACHABLE) and error.model in ("", *self.settings.models):
            self.misconfigured = error

    def _failed(self, error: RLMError) -> Slot:
        """The slot of what failed."""
        self._judge(error)
        return {"error": str(error), "kind": type(error).__name__}

    def _slot(self, key: str, reply: Reply | CallError) -> Slot:
        return {key: reply.text} if isinstance(reply, Reply) else self._failed(reply)

    async def _query(self, arguments: Arguments) -> Any:
        call = self._sub_call(_text(arguments, "prompt"), _model(arguments))
        schema = _schema(arguments)
        if schema is None:
            return (await self.tree.complete(call)).text
        return await ask_checked(self.tree, call, schema, plain_models=self.plain_models)

    async def _map(self, arguments: Arguments) -> list[Slot]:
        model = _model(arguments) or self.settings.recursive_model
        settings = MapSettings(
            model=model,
            per_call=_per_call(arguments),
            max_concurrent=_concurrency(arguments),
            window_chars=self.settings.sub_context_chars,
            run_id=self.run_id,
            depth=self.depth,
            stops_at=UNREACHABLE if model == self.settings.recursive_model else (),
        )
        items, kept = _list(arguments, "items"), dict[int, Mapped]()
        ask = partial(
            map_items,
            self.tree,
            items,
            _text(arguments, "instruction"),
            settings,
            schema=_schema(arguments),
            plain_models=self.plain_models,
            kept=kept,
        )
        await self._as_far_as_limits_allow(ask)
        return self._slots(len(items), {index: _mapped_slot(outcome) for index, outcome in kept.items()})

    async def _batch(self, arguments: Arguments) -> list[Slot]:
        model = _model(arguments)
        calls = [self._sub_call(text, model) for text in _texts(arguments, "prompts")]
        return self._slots(len(calls), await self._complete_all("text", calls, _concurrency(arguments)))

    async def _complete_all(self, key: str, calls: Sequence[Call], max_concurrent: int) -> dict[int, Slot]:
        kept: Kept = {}
        await self._as_far_as_limits_allow(
            partial(self.tree.complete_all, calls, max_concurrent=max_concurrent, kept=kept)
        )
        return {index: self._slot(key, reply) for index, reply in kept.items()}

    def _slots(self, number: int, kept: Mapping[int, Slot]) -> list[Slot]:
        """All slots in order; those that are not there were not filled before a limit.

        Raises:
            LimitReached: there is none at all.
        """
        if self.reached is None or len(kept) == number:
            return [kept[index] for index in range(number)]
        if not kept:
            raise self.reached
        return [kept.get(index) or self._failed(self.reached) for index in range(number)]

    async def _child(self, arguments: Arguments) -> Any:
        question, context = _text(arguments, "question"), arguments.get("context")
        model = _model(arguments)
        if self._at_depth_limit:
            return (await self.tree.complete(await self._plain_child(question, context, model))).text
        return _whole(await self.start_child(question, context, model))

    async def _children(self, arguments: Arguments) -> list[Slot]:
        """Run the children at once, each with a slot of its own: one that fails never hurts another."""
        items, max_concurrent = _items(arguments), _concurrency(arguments)
        if self._at_depth_limit:
            return await self._plain_children(items, max_concurrent)
        slots: dict[int, Slot] = {}

        async def start(item: tuple[int, tuple[str, Any]]) -> None:
            index, (question, context) = item
            try:
                slots[index] = await self._settle(question, context)
            except LimitReached as limit:
                self.reached = limit

        until_a_limit = takewhile(lambda _: self.reached is None, enumerate(items))
        concurrent = min(max_concurrent, len(items))
        await self._as_far_as_limits_allow(partial(for_each, until_a_limit, start, max_concurrent=concurrent))
        return self._slots(len(items), slots)

    async def _settle(self, question: str, context: Any) -> Slot:
        try:
            return {"value": _whole(await self.start_child(question, context, None))}
        except (CallError, HostCallRefused) as error:
            return self._failed(error)

    async def _plain_children(self, items: Sequence[tuple[str, Any]], max_concurrent: int) -> list[Slot]:
        """The children as plain calls; one whose context is too long for that fails alone."""
        slots: dict[int, Slot] = {}
        calls: dict[int, Call] = {}
        for index, (question, context) in enumerate(items):
            try:
                calls[index] = await self._plain_child(question, context, None)
            except HostCallRefused as refusal:
                slots[index] = self._failed(refusal)
        kept = await self._complete_all("value", list(calls.values()), max_concurrent)
        places = list(calls)
        slots.update((places[index], slot) for index, slot in kept.items())
        return self._slots(len(items), slots)

    @property
    def _at_depth_limit(self) -> bool:
        return self.depth + 1 >= self.settings.max_depth

    def _sub_call(self, prompt: str, model: str | None) -> Call:
        return Call(
            model=model or self.settings.recursive_model,
            messages=(Message("user", prompt),),
            role="sub",
            run_id=self.run_id,
            depth=self.depth,
        )

    async def _plain_child(self, question: str, context: Any, model: str | None) -> Call:
        most = self.settings.sub_context_chars
        if isinstance(context, ContextRef):
            if context.length > BYTES_PER_CHAR * most:
                raise self._too_long(f"context of {context.length:,} bytes")
            context = await context.value()
        prompt = prompts.plain_child_prompt(question, context)
        if len(prompt) > most:
            raise self._too_long(f"prompt of {len(prompt):,} characters")
        return self._sub_call(prompt, model)

    def _too_long(self, what: str) -> HostCallRefused:
        return HostCallRefused(
            f"the depth limit (max_depth={self.settings.max_depth}) makes this child run a plain call, and its "
            f"{what} is longer than the {self.settings.sub_context_chars:,} characters a sub-model takes: pass a smaller "
            "piece of the context"
        )


def _mapped_slot(outcome: Mapped) -> Slot:
    return {"error": outcome.reason, "kind": outcome.kind} if outcome.failed else {"value": outcome.value}


def _whole(answer: Answer) -> Any:
    """The value of a child's answer; a partial one is a failure that shows what there was.

    Raises:
        HostCallRefused: the child did not finish.
    """
    if answer.status == "ok":
        return answer.value
    had = f"; what it had so far: {prompts.clip(str(answer), 2_000)}" if answer else ""
    raise HostCallRefused(f"the child run did not finish: {answer.limit}{had}")


def _text(arguments: Arguments, name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str):
        raise HostCallRefused(f"{name} must be a str, not {type(value).__name__}")
    return value


def _texts(arguments: Arguments, name: str) -> list[str]:
    values = arguments.get(name)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise HostCallRefused(f"{name} must be a list of str")
    return _few_enough(name, values)


def _list(arguments: Arguments, name: str) -> list[Any]:
    values = arguments.get(name)
    if not isinstance(values, list):
        raise HostCallRefused(f"{name} must be a list, not {type(values).__name__}")
    return _few_enough(name, values)


def _few_enough(name: str, values: list[T]) -> list[T]:
    """The values, unless they are so many that the event loop of all runs would stand still over them."""
    if len(values) > MOST_ENTRIES:
        raise HostCallRefused(
            f"{name} has {len(values):,} entries, and one call takes at most {MOST_ENTRIES:,}: make several"
        )
    return values


def _schema(arguments: Arguments) -> Schema | None:
    source = arguments.get("schema")
    if source is None:
        return None
    if not isinstance(source, (str, dict)):
        raise HostCallRefused(f"schema must be a str, a dict or None, not {type(source).__name__}")
    try:
        return schema_of(source, trusted=False)
    except SchemaError as error:
        raise HostCallRefused(str(error)) from error


def _per_call(arguments: Arguments) -> int | Literal["auto"]:
    value = arguments.get("per_call", "auto")
    if value == "auto":
        return "auto"
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise HostCallRefused(f"per_call must be a whole number above 0 or 'auto', not {value!r}")
    return value


def _items(arguments: Arguments) -> list[tuple[str, Any]]:
    items = arguments.get("items")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise HostCallRefused("items must be a list of (question, context) pairs")
    return [(_text(item, "question"), item.get("context")) for item in _few_enough("items", items)]


def _model(arguments: Arguments) -> str | None:
    value = arguments.get("model")
    if value is not None and not isinstance(value, str):
        raise HostCallRefused(f"model must be a str or None, not {type(value).__name__}")
    return value or None


def _concurrency(arguments: Arguments) -> int:
    value = arguments.get("max_concurrent", 10)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise HostCallRefused(f"max_concurrent must be a whole number above 0, not {value!r}")
    return min(value, MOST_CONCURRENT)
