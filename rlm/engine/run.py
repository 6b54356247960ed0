"""One run: performs the steps of the conversation, serves the host calls of its guest, emits the events.

`Run.ask` answers a question on an open guest; `Run.complete` opens a guest, answers, and closes it. A child run is
`complete` one level deeper on the same tree. The guest of a child run starts while its root model writes the first
reply: since the parent's guest started, the child's will. The root run waits for its guest before the first call, so
that a sandbox that cannot start costs nothing.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import anyio

from rlm._async.groups import ungrouped
from rlm.engine import prompts
from rlm.engine.conversation import AskRoot, Conclusion, Conversation, RunCell, Step
from rlm.engine.host_calls import NO_DEADLINE, Deadline, HostCalls
from rlm.engine.prompt_failures import PromptFailures
from rlm.errors import (
    BudgetExceeded,
    ContextError,
    DeadlineExceeded,
    HostCallRefused,
    LimitReached,
    SandboxError,
)
from rlm.events import (
    AnswerGiven,
    CellFinished,
    CellOutput,
    CellStarted,
    Emit,
    RootReplied,
    RunFailed,
    RunStarted,
    TurnStarted,
    Warned,
)
from rlm.sandbox.shared_contexts import ContextRef
from rlm.values import Answer, AnswerStatus, Call, CellResult, Message, Reply

if TYPE_CHECKING:
    from rlm.sandbox.session import Session
    from rlm.scheduler.scheduler import Tree
    from rlm.settings import RunSettings

__all__ = ["OpenGuest", "Run", "new_run_id"]

T = TypeVar("T")

OpenGuest: TypeAlias = Callable[[ContextRef | None], Awaitable["Session"]]
"""Opens a new guest with the limits of the settings; the argument is a context that it will read from shared memory."""

GRACE_S = 1.0
"""Seconds that a cell may run after the deadline, to give its best answer; its host calls end at the deadline."""


def new_run_id() -> str:
    """Return a new run id: the time in UTC, to the second, and eight random hexadecimal digits."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(4)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a tree of runs.

    Attributes:
        deadline: when the run has to end; a run above it may have set it.
        child_limiters: for each depth, the limit of open guests of child runs. A parent waits only for the depth below
            its own, so this cannot deadlock.
    """

    settings: RunSettings
    tree: Tree
    open_guest: OpenGuest
    emit: Emit
    run_id: str
    parent_id: str = ""
    depth: int = 0
    deadline: Deadline = NO_DEADLINE
    warnings: list[str] = field(default_factory=list)
    failures: PromptFailures = field(default_factory=PromptFailures)
    child_limiters: dict[int, anyio.CapacityLimiter] = field(default_factory=dict)

    async def complete(self, question: str, context: Any) -> Answer:
        """Answer a question about a context on a guest of its own, which is closed at the end.

        The new guest reads a context that is a `ContextRef` from the shared memory of its parent.

        Raises:
            ContextError: the context holds a type that cannot be sent to the guest.
            CallError: the root model cannot be asked.
            LimitReached: a limit ended the run, and `on_limit` is "raise".
            SandboxError: no guest could be started.
        """
        seen = context.sketch if isinstance(context, ContextRef) else context
        conversation = Conversation(self.settings, prompts.describe_context(seen), self.depth)
        return await self._run_and_emit(
            question, conversation, partial(self._converse_on_new_guest, question, conversation, context)
        )

    async def ask(
        self, question: str, conversation: Conversation, guest: Session, *, note: str = ""
    ) -> Answer:
        """Answer a question on an open guest, in an existing conversation; raises as `complete`."""
        return await self._run_and_emit(
            question, conversation, partial(self._converse_on_open_guest, question, conversation, guest, note)
        )

    async def run_cell(self, guest: Session, code: str, *, turn: int, cell: int) -> CellResult:
        """Run one cell, serve its host calls, and emit its events."""
        return await self._run_cell(guest, code, self._host_calls(), turn=turn, cell=cell)

    async def _run_cell(
        self, guest: Session, code: str, calls: HostCalls, *, turn: int, cell: int
    ) -> CellResult:
        self.emit(CellStarted(**self._here(), turn=turn, cell=cell, code=code))

        def emit_output(stream: str, text: str) -> None:
            self.emit(CellOutput(**self._here(), cell=cell, stream=stream, text=text))

        try:
            result = await guest.run(code, serve=calls, on_output=emit_output, context_refs=True)
        except anyio.get_cancelled_exc_class():
            stopped = CellResult(outcome="cancelled", state="rolled back")
            self.emit(CellFinished(**self._here(), turn=turn, cell=cell, result=stopped))
            raise
        self.emit(CellFinished(**self._here(), turn=turn, cell=cell, result=result))
        return result

    async def _run_and_emit(
        self, question: str, conversation: Conversation, conclude: Callable[[Run], Awaitable[Conclusion]]
    ) -> Answer:
        """Await the conclusion; emit `RunStarted` before it, and `AnswerGiven` or `RunFailed` after it."""
        started = time.monotonic()
        self._emit_start(question, conversation)
        reached: LimitReached | None = None
        run = self._with_deadline()
        try:
            conclusion = await conclude(run)
        except LimitReached as limit:
            if self.depth and not self._is_own_deadline(limit, run.deadline):
                self._emit_failure(limit)
                raise  # a limit of the whole tree: the root run reports it
            reached = limit
            conclusion = conversation.conclude_early(_status_of(limit), str(limit))
        except BaseException as error:
            self._emit_failure(error)
            raise
        if not self.depth and (failed := self.failures.summary()):
            self.emit(Warned(**self._here(), message=failed))
        answer = self._answer(conclusion, time.monotonic() - started)
        self.emit(AnswerGiven(**self._here(), answer=answer))
        if reached is not None and self.settings.on_limit == "raise" and not self.depth:
            reached.partial = answer
            raise reached
        return answer

    async def _converse_on_open_guest(
        self, question: str, conversation: Conversation, guest: Session, note: str, run: Run
    ) -> Conclusion:
        await guest.clear_answer()
        future = _FutureGuest()
        future.set(guest)
        return await _converse(question, conversation, future, note, run)

    async def _converse_on_new_guest(
        self, question: str, conversation: Conversation, context: Any, run: Run
    ) -> Conclusion:
        future = _FutureGuest()
        with ungrouped():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run._own_guest, context, future)
                if not self.depth:
                    await future.wait()
                conclusion = await _converse(question, conversation, future, "", run)
                tasks.cancel_scope.cancel()
        return conclusion

    async def _own_guest(self, context: Any, future: _FutureGuest) -> None:
        """Open a guest, load the context, put the guest into `future`; close it when cancelled."""
        parent_context = context if isinstance(context, ContextRef) else None
        guest = await _in_time(self.deadline, self.open_guest(parent_context))
        try:
            await _in_time(self.deadline, guest.load(context))
            future.set(guest)
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await guest.aclose()

    async def perform(self, step: Step, future: _FutureGuest) -> Reply | CellResult:
        """Perform a step of the conversation.

        Raises:
            CallError: the root model cannot be asked.
            LimitReached: a limit of the tree was reached; after a cell, `.partial` is its result.
        """
        match step:
            case AskRoot(turn, messages):
                self.emit(TurnStarted(**self._here(), turn=turn))
                reply = await self._ask_root(messages)
                self.emit(RootReplied(**self._here(), turn=turn, reply=reply))
                return reply
            case RunCell(turn, cell, code):
                guest, calls = await future.wait(), self._host_calls()
                result = await self._run_cell(guest, code, calls, turn=turn, cell=cell)
                if calls.misconfigured is not None:
                    raise calls.misconfigured
                if calls.reached is not None:
                    calls.reached.partial = result
                    raise calls.reached
                return result

    async def _ask_root(self, messages: tuple[Message, ...]) -> Reply:
        call = Call(
            model=self.settings.model, messages=messages, role="root", run_id=self.run_id, depth=self.depth
        )
        return await _in_time(self.deadline, self.tree.complete(call))

    def _host_calls(self) -> HostCalls:
        return HostCalls(
            self.settings,
            self.tree,
            self.run_id,
            self.depth,
            self._start_child,
            self.deadline,
            failures=self.failures,
        )

    async def _start_child(self, question: str, context: Any, model: str | None) -> Answer:
        depth = self.depth + 1
        child = replace(
            self,
            settings=self.settings.for_child(depth, model),
            run_id=new_run_id(),
            parent_id=self.run_id,
            depth=depth,
        )
        places = self.child_limiters.setdefault(depth, anyio.CapacityLimiter(self.settings.max_children))
        async with places:
            try:
                return await child.complete(question, context)
            except (ContextError, SandboxError) as error:
                raise HostCallRefused(f"the child run could not start: {error}") from error

    def _with_deadline(self) -> Run:
        settings = self.settings
        seconds = settings.child_timeout_s if self.depth else settings.timeout_s
        return replace(self, deadline=self.deadline.within(seconds))

    def _is_own_deadline(self, limit: LimitReached, own: Deadline) -> bool:
        """Return True if only this run's own time ran out: neither the tree's nor that of a run above it."""
        return isinstance(limit, DeadlineExceeded) and own.at <= anyio.current_time() < self.deadline.at

    def _emit_start(self, question: str, conversation: Conversation) -> None:
        budget = self.tree.ledger.budget
        self.emit(
            RunStarted(
                **self._here(),
                question=question,
                context_summary=conversation.context_summary,
                model=self.settings.model,
                recursive_model=self.settings.recursive_model,
                max_iterations=self.settings.max_iterations,
                parent_id=self.parent_id,
                budget_usd=budget.dollars,
                budget_tokens=budget.tokens,
                budget_calls=budget.calls,
            )
        )

    def _emit_failure(self, error: BaseException) -> None:
        cancelled = isinstance(error, anyio.get_cancelled_exc_class())
        self.emit(
            RunFailed(
                **self._here(),
                kind="Cancelled" if cancelled else type(error).__name__,
                error="the run was stopped" if cancelled else str(error),
            )
        )

    def _answer(self, conclusion: Conclusion, seconds: float) -> Answer:
        ledger = self.tree.ledger
        return Answer(
            conclusion.value,
            status=conclusion.status,
            limit=conclusion.limit,
            usage=ledger.usage,
            cost_usd=ledger.cost_usd,
            turns=conclusion.turns,
            seconds=seconds,
            run_id=self.run_id,
            warnings=tuple(dict.fromkeys(self.warnings)),
        )

    def _here(self) -> dict[str, Any]:
        return {"run_id": self.run_id, "depth": self.depth, "at": time.time()}


class _FutureGuest:
    """A guest that may still be starting."""

    def __init__(self) -> None:
        self._is_set = anyio.Event()
        self._guest: Session | None = None

    def set(self, guest: Session) -> None:
        self._guest = guest
        self._is_set.set()

    async def wait(self) -> Session:
        await self._is_set.wait()
        assert self._guest is not None  # noqa: S101 - set before the event
        return self._guest


async def _in_time(deadline: Deadline, work: Awaitable[T]) -> T:
    """Await the work until the deadline.

    Raises:
        DeadlineExceeded: the deadline came first.
    """
    with anyio.CancelScope(deadline=deadline.at):
        return await work
    raise deadline.exceeded()


async def _converse(
    question: str, conversation: Conversation, future: _FutureGuest, note: str, run: Run
) -> Conclusion:
    """Perform the steps of the conversation until its conclusion.

    Raises:
        LimitReached: a budget or the deadline came first; the conversation has the draft of that moment.
    """
    steps = conversation.ask(question, note=note)
    outcome: Reply | CellResult | None = None
    with anyio.CancelScope(deadline=run.deadline.at + GRACE_S):
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as stop:
                conclusion: Conclusion = stop.value
                return conclusion
            try:
                outcome = await run.perform(step, future)
            except LimitReached as limit:
                if isinstance(limit.partial, CellResult):
                    conversation.keep_draft(limit.partial)
                raise
    raise run.deadline.exceeded()


def _status_of(limit: LimitReached) -> AnswerStatus:
    match limit:
        case DeadlineExceeded():
            return "timeout"
        case BudgetExceeded():
            return "budget"
        case _:
            return "partial"
