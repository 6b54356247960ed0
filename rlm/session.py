"""`RLMSession`: several questions about one context, on one guest.

    with rlm.session(context) as session:
        session.ask("Who are the parties?")
        session.ask("Which of them may terminate?")     # knows the first answer and its variables
        session.run("print(len(context))")              # Python in the model's own namespace

Variables, functions and the conversation carry on. An answer does not: each question starts without one.

A session that is dropped without `close` ends its guest all the same, as does the end of the process.
"""

from __future__ import annotations

import os
import weakref
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import anyio

from rlm._async.portal import leave_to_parent
from rlm.engine.prompts import user_cells_note
from rlm.errors import SessionClosed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from rlm._async.closing import KeptGuest
    from rlm._async.portal import Portal
    from rlm.engine.conversation import Conversation
    from rlm.engine.run import Run
    from rlm.values import Answer, CellResult, Variable

__all__ = ["RLMSession", "require_text"]


class RLMSession:
    """A guest, a conversation about its context, and the way to ask on. Made by `RLM_REPL.session`.

    It does one thing at a time: a second call waits for the first. A question that is cancelled, by Ctrl-C or by
    its caller, leaves the session as it was before the cell that was running.

    Every method raises `SessionClosed` after `close`, where `close` meets it under way, and in a forked child, where
    the guest is the parent's.

    Attributes:
        answers: the answers so far, in the order of the questions.
    """

    def __init__(
        self,
        portal: Portal,
        kept: KeptGuest,
        conversation: Conversation,
        new_run: Callable[[], AbstractAsyncContextManager[Run]],
    ) -> None:
        self.answers: list[Answer] = []
        self._portal = portal
        self._kept = kept
        self._conversation = conversation
        self._new_run = new_run
        self._turn = anyio.Lock()
        self._user_cells: list[str] = []
        self._process = os.getpid()
        weakref.finalize(self, _let_go, kept, portal, self._process).atexit = False

    def ask(self, question: str) -> Answer:
        """Answer the next question; see `RLM_REPL.acompletion` for what it raises."""
        return self._open_portal.call(self._ask, question)

    async def aask(self, question: str) -> Answer:
        """Answer the next question; see `RLM_REPL.acompletion` for what it raises."""
        return await self._open_portal.acall(self._ask, question)

    def run(self, code: str) -> CellResult:
        """Run Python in the model's namespace, with `context`, `llm_query` and `llm_batch` at hand."""
        return self._open_portal.call(self._run, code)

    async def arun(self, code: str) -> CellResult:
        """Run Python in the model's namespace, with `context`, `llm_query` and `llm_batch` at hand."""
        return await self._open_portal.acall(self._run, code)

    def variables(self) -> tuple[Variable, ...]:
        """The names that cells have defined, with their types, sizes and the heads of their values."""
        return self._open_portal.call(self._variables)

    async def avariables(self) -> tuple[Variable, ...]:
        """The names that cells have defined, with their types, sizes and the heads of their values."""
        return await self._open_portal.acall(self._variables)

    def fetch(self, name: str) -> Any:
        """The value of a variable, where its type can cross to the host."""
        return self._open_portal.call(self._fetch, name)

    async def afetch(self, name: str) -> Any:
        """The value of a variable, where its type can cross to the host."""
        return await self._open_portal.acall(self._fetch, name)

    def close(self) -> None:
        """End the guest, and the cell or question under way. Idempotent; in a forked child it does nothing."""
        if self._may_be_closed:
            try:
                self._portal.call(self._kept.end)
            except RuntimeError:
                if not self._kept.over:  # else `RLM_REPL.close` was faster
                    raise

    async def aclose(self) -> None:
        """End the guest, and the cell or question under way. Idempotent; in a forked child it does nothing."""
        if self._may_be_closed:
            try:
                await self._portal.afinish(self._kept.end)
            except RuntimeError:
                if not self._kept.over:
                    raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _ask(self, question: str) -> Answer:
        require_text(question, "ask(question)")
        async with self._one_at_a_time():
            note = self._take_note()
            async with self._new_run() as run:
                answer = await run.ask(question, self._conversation, self._kept.guest, note=note)
            self.answers.append(answer)
            return answer

    async def _run(self, code: str) -> CellResult:
        async with self._one_at_a_time():
            self._conversation.cells += 1
            async with self._new_run() as run:
                result = await run.run_cell(self._kept.guest, code, turn=0, cell=self._conversation.cells)
            if result.state == "kept":
                self._user_cells.append(code)
            return result

    async def _variables(self) -> tuple[Variable, ...]:
        async with self._one_at_a_time():
            return await self._kept.guest.variables()

    async def _fetch(self, name: str) -> Any:
        async with self._one_at_a_time():
            return await self._kept.guest.fetch(name)

    @asynccontextmanager
    async def _one_at_a_time(self) -> AsyncIterator[None]:
        with self._kept.work.under_way():
            async with self._turn:
                yield

    @property
    def _open_portal(self) -> Portal:
        if self._process != os.getpid():
            raise SessionClosed(
                "this session belongs to the process that was forked: open one here with RLM_REPL.session(context)"
            )
        if self._kept.over:
            raise SessionClosed("this session is closed: open another with RLM_REPL.session(context)")
        return self._portal

    @property
    def _may_be_closed(self) -> bool:
        return not self._kept.over and self._process == os.getpid()

    def _take_note(self) -> str:
        """What the root model should know of the cells the user ran since the last question."""
        cells, self._user_cells = self._user_cells, []
        return user_cells_note(cells) if cells else ""


def require_text(question: object, call: str) -> None:
    """Make sure that a question is one.

    Raises:
        TypeError: it is something else, such as the context.
    """
    if not isinstance(question, str):
        raise TypeError(f"the question is a text, not {type(question).__name__}: it is {call}")


def _let_go(kept: KeptGuest, portal: Portal, process: int) -> None:
    """Nobody holds the session any more; called on whatever thread noticed it."""
    if process == os.getpid():
        portal.post(kept.release)
    else:
        leave_to_parent(kept)
