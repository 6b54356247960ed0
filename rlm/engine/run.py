"""Drives one run: performs the conversation's steps, serves the guest's host calls, writes the events.

`Run.ask` answers one question on a guest that is already open, `Run.complete` opens one, answers, and closes it. A
child run is `complete` again, one level deeper, on the same tree. The guest of a child run starts while its root model
writes the first reply; that such a guest can start is known from its parent. The root run asks nobody before its
guest is there, so that a sandbox that cannot work costs nothing.
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
"""Opens a fresh guest with the limits of the run's settings, for a context that lies on a shelf or None."""


LAST_WORDS_S = 1.0
"""How long a cell may go on after the deadline, in seconds, to give what it has; its calls end at the deadline."""


def new_run_id() -> str:
    """A name for a run: its start in UTC, to the second, and eight random hexadecimal digits."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(4)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a tree: where it stands in the tree, and what it works with.

    `deadline` is when the run has to end; one above it may have set it. `child_places` holds, for each depth, how
    many guests of child runs may be open there: a parent only ever waits for the depth below its own, so this
    cannot deadlock.
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
    child_places: dict[int, anyio.CapacityLimiter] = field(default_factory=dict)

    async def complete(self, question: str, context: Any) -> Answer:
        """Answer a question about a context on a guest of its own, which is closed at the end.

        A `ContextRef` context is one that the new guest reads where it lies.

        Raises:
            ContextError: the context holds a type that cannot cross to the guest.
            CallError: the root model cannot be asked.
            LimitReached: a limit ended the run, and `on_limit` is "raise".
            SandboxError: no guest could be started.
        """
        seen = context.sketch if isinstance(context, ContextRef) else context
        conversation = Conversation(self.settings, prompts.describe_context(seen), self.depth)
        return await self._told(
            question, conversation, partial(self._on_own_guest, question, conversation, context)
        )

    async def ask(
        self, question: str, conversation: Conversation, guest: Session, *, note: str = ""
    ) -> Answer:
        """Answer a question on an open guest, going on with the conversation so far; raises as `complete`."""
        return await self._told(
            question, conversation, partial(self._on_open_guest, question, conversation, guest, note)
        )

    async def run_cell(self, guest: Session, code: str, *, turn: int, cell: int) -> CellResult:
        """Run one cell with this run's host calls behind it, and tell of it in events."""
        return await self._run_cell(guest, code, self._host_calls(), turn=turn, cell=cell)

    async def _run_cell(
        self, guest: Session, code: str, calls: HostCalls, *, turn: int, cell: int
    ) -> CellResult:
        self.emit(CellStarted(**self._here(), turn=turn, cell=cell, code=code))

        def tell(stream: str, text: str) -> None:
            self.emit(CellOutput(**self._here(), cell=cell, stream=stream, text=text))

        try:
            result = await guest.run(code, serve=calls, on_output=tell, context_refs=True)
        except anyio.get_cancelled_exc_class():
            stopped = CellResult(outcome="cancelled", state="rolled back")
            self.emit(CellFinished(**self._here(), turn=turn, cell=cell, result=stopped))
            raise
        self.emit(CellFinished(**self._here(), turn=turn, cell=cell, result=result))
        return result

    async def _told(
        self, question: str, conversation: Conversation, conclude: Callable[[Run], Awaitable[Conclusion]]
    ) -> Answer:
        """Come to a conclusion and tell of it: `RunStarted`, turns and cells, then `AnswerGiven` or `RunFailed`."""
        started = time.monotonic()
        self._tell_start(question, conversation)
        reached: LimitReached | None = None
        run = self._with_deadline()
        try:
            conclusion = await conclude(run)
        except LimitReached as limit:
            if self.depth and not self._is_alone(limit, run.deadline):
                self._tell_failure(limit)
                raise  # it is a limit of the whole tree, and the root's to report
            reached = limit
            conclusion = conversation.conclude_early(_status_of(limit), str(limit))
        except BaseException as error:
            self._tell_failure(error)
            raise
        if not self.depth and (failed := self.failures.summary()):
            self.emit(Warned(**self._here(), message=failed))
        answer = self._answer(conclusion, time.monotonic() - started)
        self.emit(AnswerGiven(**self._here(), answer=answer))
        if reached is not None and self.settings.on_limit == "raise" and not self.depth:
            reached.partial = answer
            raise reached
        return answer

    async def _on_open_guest(
        self, question: str, conversation: Conversation, guest: Session, note: str, run: Run
    ) -> Conclusion:
        await guest.clear_answer()
        coming = _Coming()
        coming.arrive(guest)
        return await _converse(question, conversation, coming, note, run)

    async def _on_own_guest(
        self, question: str, conversation: Conversation, context: Any, run: Run
    ) -> Conclusion:
        coming = _Coming()
        with ungrouped():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run.keep_guest, context, coming)
                if not self.depth:
                    await coming.guest()
                conclusion = await _converse(question, conversation, coming, "", run)
                tasks.cancel_scope.cancel()
        return conclusion

    async def keep_guest(self, context: Any, coming: _Coming) -> None:
        """Open a guest that has the context, and close it when this is cancelled."""
        parent_context = context if isinstance(context, ContextRef) else None
        guest = await _in_time(self.deadline, self.open_guest(parent_context))
        try:
            await _in_time(self.deadline, guest.load(context))
            coming.arrive(guest)
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await guest.aclose()

    async def perform(self, step: Step, coming: _Coming) -> Reply | CellResult:
        """Do what the conversation asks for.

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
                guest, calls = await coming.guest(), self._host_calls()
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
        places = self.child_places.setdefault(depth, anyio.CapacityLimiter(self.settings.max_children))
        async with places:
            try:
                return await child.complete(question, context)
            except (ContextError, SandboxError) as error:
                raise HostCallRefused(f"the child run could not start: {error}") from error

    def _with_deadline(self) -> Run:
        settings = self.settings
        seconds = settings.child_timeout_s if self.depth else settings.timeout_s
        return replace(self, deadline=self.deadline.within(seconds))

    def _is_alone(self, limit: LimitReached, own: Deadline) -> bool:
        """Whether it is this run's own wall clock that ran out, and neither the tree's nor that of a run above it."""
        return isinstance(limit, DeadlineExceeded) and own.at <= anyio.current_time() < self.deadline.at

    def _tell_start(self, question: str, conversation: Conversation) -> None:
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

    def _tell_failure(self, error: BaseException) -> None:
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


class _Coming:
    """A guest that may be on its way."""

    def __init__(self) -> None:
        self._is_here = anyio.Event()
        self._guest: Session | None = None

    def arrive(self, guest: Session) -> None:
        self._guest = guest
        self._is_here.set()

    async def guest(self) -> Session:
        await self._is_here.wait()
        assert self._guest is not None  # noqa: S101 - tells mypy
        return self._guest


async def _in_time(deadline: Deadline, work: Awaitable[T]) -> T:
    """What comes of some work; raises `DeadlineExceeded` where it does not come in time."""
    with anyio.CancelScope(deadline=deadline.at):
        return await work
    raise deadline.exceeded()


async def _converse(
    question: str, conversation: Conversation, coming: _Coming, note: str, run: Run
) -> Conclusion:
    """Drive the conversation to its conclusion.

    Raises:
        LimitReached: a budget or the wall clock came first; the conversation has the draft of that moment.
    """
    steps = conversation.ask(question, note=note)
    outcome: Reply | CellResult | None = None
    with anyio.CancelScope(deadline=run.deadline.at + LAST_WORDS_S):
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as stop:
                conclusion: Conclusion = stop.value
                return conclusion
            try:
                outcome = await run.perform(step, coming)
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
