"""Drives one run: performs the conversation's steps, serves the guest's host calls, writes the events.

`ask` answers one question on a session that is already open, `run` opens a guest, answers, and closes it. A child
run is `run` again, one level deeper, on the same tree.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio

from rlm import prompts
from rlm.conversation import AskRoot, Conclusion, Conversation, RunCell, Step
from rlm.errors import (
    BudgetExceeded,
    ContextError,
    DeadlineExceeded,
    HostCallRefused,
    LimitReached,
    RLMError,
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
)
from rlm.recursion import HostCalls
from rlm.values import Answer, AnswerStatus, Call, CellResult, Reply

if TYPE_CHECKING:
    from rlm.sandbox.session import Session
    from rlm.scheduler.scheduler import Tree
    from rlm.settings import RunSettings

__all__ = ["OpenGuest", "Run", "new_run_id"]

OpenGuest: TypeAlias = Callable[[], Awaitable["Session"]]
"""Opens a fresh guest with the limits of the run's settings."""


def new_run_id() -> str:
    """A name for a run: its start in UTC, to the second, and eight random hexadecimal digits."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(4)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a tree: where it stands in the tree, and what it works with."""

    settings: RunSettings
    tree: Tree
    open_guest: OpenGuest
    emit: Emit
    run_id: str
    parent_id: str = ""
    depth: int = 0
    warnings: list[str] = field(default_factory=list)

    async def complete(self, question: str, context: Any) -> Answer:
        """Answer a question about a context on a guest of its own, which is closed at the end.

        Raises:
            ContextError: the context holds a type that cannot cross to the guest.
            CallError: the root model cannot be asked.
            SandboxError: no guest could be started.
        """
        guest = await self.open_guest()
        try:
            await guest.load(context)
            conversation = Conversation(self.settings, prompts.describe_context(context), self.depth)
            return await self.ask(question, conversation, guest)
        finally:
            with anyio.CancelScope(shield=True):
                await guest.aclose()

    async def ask(
        self, question: str, conversation: Conversation, guest: Session, *, note: str = ""
    ) -> Answer:
        """Answer a question on an open guest, going on with the conversation so far.

        A limit of the run ends it with the best partial answer, or with `LimitReached` where `on_limit` says so;
        every other error is raised, after a `RunFailed` event. Events come in order: `RunStarted`, turns and cells, then `AnswerGiven` or `RunFailed`.
        """
        started = time.monotonic()
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
        reached: LimitReached | None = None
        try:
            conclusion = await self._converse(question, conversation, guest, note)
        except LimitReached as limit:
            reached = limit
            conclusion = conversation.conclude_early(_status_of(limit), str(limit))
        except RLMError as error:
            self.emit(RunFailed(**self._here(), kind=type(error).__name__, error=str(error)))
            raise
        except anyio.get_cancelled_exc_class():
            self.emit(RunFailed(**self._here(), kind="Cancelled", error="the run was stopped"))
            raise
        answer = self._answer(conclusion, time.monotonic() - started)
        self.emit(AnswerGiven(**self._here(), answer=answer))
        if reached is not None and self.settings.on_limit == "raise" and not self.depth:
            reached.partial = answer
            raise reached
        return answer

    async def run_cell(self, guest: Session, code: str, *, turn: int, cell: int) -> CellResult:
        """Run one cell with this run's host calls behind it, and tell of it in events."""
        self.emit(CellStarted(**self._here(), turn=turn, cell=cell, code=code))

        def tell(stream: str, text: str) -> None:
            self.emit(CellOutput(**self._here(), cell=cell, stream=stream, text=text))

        try:
            result = await guest.run(code, serve=self._host_calls(), on_output=tell)
        except anyio.get_cancelled_exc_class():
            stopped = CellResult(outcome="cancelled", state="rolled back")
            self.emit(CellFinished(**self._here(), turn=turn, cell=cell, result=stopped))
            raise
        self.emit(CellFinished(**self._here(), turn=turn, cell=cell, result=result))
        return result

    async def _converse(
        self, question: str, conversation: Conversation, guest: Session, note: str
    ) -> Conclusion:
        """Drive the conversation to its conclusion.

        Raises:
            LimitReached: a budget or the wall clock came first.
        """
        await guest.clear_answer()
        seconds = self.settings.timeout_s
        with anyio.move_on_after(seconds):
            steps = conversation.ask(question, note=note)
            outcome = None
            while True:
                try:
                    step = steps.send(outcome)
                except StopIteration as stop:
                    conclusion: Conclusion = stop.value
                    return conclusion
                outcome = await self._perform(step, guest)
        assert seconds is not None  # noqa: S101 - without a limit the scope above never ends early
        raise DeadlineExceeded(
            f"the run took longer than {seconds:g} s", name="seconds", limit=seconds, spent=seconds
        )

    async def _perform(self, step: Step, guest: Session) -> Reply | CellResult:
        match step:
            case AskRoot(turn, messages):
                self.emit(TurnStarted(**self._here(), turn=turn))
                reply = await self.tree.complete(
                    Call(
                        model=self.settings.model,
                        messages=messages,
                        role="root",
                        run_id=self.run_id,
                        depth=self.depth,
                    )
                )
                self.emit(RootReplied(**self._here(), turn=turn, reply=reply))
                return reply
            case RunCell(turn, cell, code):
                return await self.run_cell(guest, code, turn=turn, cell=cell)

    def _host_calls(self) -> HostCalls:
        return HostCalls(self.settings, self.tree, self.run_id, self.depth, self._start_child)

    async def _start_child(self, question: str, context: Any, model: str | None) -> Answer:
        child = replace(
            self,
            settings=replace(self.settings, model=model) if model else self.settings,
            run_id=new_run_id(),
            parent_id=self.run_id,
            depth=self.depth + 1,
        )
        try:
            return await child.complete(question, context)
        except (ContextError, SandboxError) as error:
            raise HostCallRefused(f"the child run could not start: {error}") from error

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


def _status_of(limit: LimitReached) -> AnswerStatus:
    match limit:
        case DeadlineExceeded():
            return "timeout"
        case BudgetExceeded():
            return "budget"
        case _:
            return "partial"
