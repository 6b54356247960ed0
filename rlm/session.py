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
from typing import TYPE_CHECKING, Any

import anyio

from rlm._async.portal import leave_to_parent
from rlm._async.twins import AsyncContext, BlockingContext, blocking, on_portal
from rlm.engine.prompts import user_cells_note
from rlm.errors import SessionClosed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from rlm._async.closing import GuestOwner
    from rlm._async.portal import Portal
    from rlm.engine.conversation import Conversation
    from rlm.engine.run import Run
    from rlm.values import Answer, CellResult, Variable

__all__ = ["RLMSession", "require_query"]


class RLMSession(BlockingContext, AsyncContext):
    """A guest and a conversation about its context. Made by `RLM_REPL.session`.

    It does one thing at a time: a second call waits for the first. A question that is cancelled, by Ctrl-C or by
    its caller, leaves the session as it was before the cell that was running.

    Every method raises `SessionClosed` after `close`, also when `close` interrupts it, and in a forked child, because the
    guest belongs to the parent.

    Attributes:
        answers: the answers so far, in the order of the questions.
    """

    def __init__(
        self,
        portal: Portal,
        owner: GuestOwner,
        conversation: Conversation,
        new_run: Callable[[], AbstractAsyncContextManager[Run]],
    ) -> None:
        self.answers: list[Answer] = []
        self._lease = portal
        self._owner = owner
        self._conversation = conversation
        self._new_run = new_run
        self._turn = anyio.Lock()
        self._user_cells: list[str] = []
        self._process = os.getpid()
        weakref.finalize(self, _release_guest, owner, portal, self._process).atexit = False

    @on_portal
    async def aask(self, query: str) -> Answer:
        """Answer the next question; see `RLM_REPL.completion` for what it raises."""
        require_query(query, "ask(query)")
        async with self._one_at_a_time():
            note = self._note_of_user_cells()
            async with self._new_run() as run:
                answer = await run.ask(query, self._conversation, self._owner.guest, note=note)
            self.answers.append(answer)
            return answer

    ask = blocking(aask)

    @on_portal
    async def arun(self, code: str) -> CellResult:
        """Run Python in the model's namespace, with `context`, `llm_query` and `llm_batch`."""
        async with self._one_at_a_time():
            self._conversation.cells += 1
            async with self._new_run() as run:
                result = await run.run_cell(self._owner.guest, code, turn=0, cell=self._conversation.cells)
            if result.state == "kept":
                self._user_cells.append(code)
            return result

    run = blocking(arun)

    @on_portal
    async def avariables(self) -> tuple[Variable, ...]:
        """Return the names that cells have defined, with types, sizes and the heads of their values."""
        async with self._one_at_a_time():
            return await self._owner.guest.variables()

    variables = blocking(avariables)

    @on_portal
    async def afetch(self, name: str) -> Any:
        """Return the value of a variable.

        Raises:
            KeyError: no variable has this name.
            ContextError: its type cannot be sent to the host.
        """
        async with self._one_at_a_time():
            return await self._owner.guest.fetch(name)

    fetch = blocking(afetch)

    def close(self) -> None:
        """End the guest, and a running cell or question. Idempotent; in a forked child it does nothing."""
        if self._may_be_closed:
            try:
                self._lease.call(self._owner.end)
            except RuntimeError:
                if not self._owner.ended:  # else `RLM_REPL.close` was faster
                    raise

    async def aclose(self) -> None:
        """End the guest, and a running cell or question. Idempotent; in a forked child it does nothing."""
        if self._may_be_closed:
            try:
                await self._lease.afinish(self._owner.end)
            except RuntimeError:
                if not self._owner.ended:
                    raise

    @asynccontextmanager
    async def _one_at_a_time(self) -> AsyncIterator[None]:
        with self._owner.work.track():
            async with self._turn:
                yield

    @property
    def _portal(self) -> Portal:
        if self._process != os.getpid():
            raise SessionClosed(
                "this session belongs to the process that was forked: open one here with RLM_REPL.session(context)"
            )
        if self._owner.ended:
            raise SessionClosed("this session is closed: open another with RLM_REPL.session(context)")
        return self._lease

    @property
    def _may_be_closed(self) -> bool:
        return not self._owner.ended and self._process == os.getpid()

    def _note_of_user_cells(self) -> str:
        """Describe the cells that the user ran since the last question to the root model; "" if none."""
        cells, self._user_cells = self._user_cells, []
        return user_cells_note(cells) if cells else ""


def require_query(query: object, call: str) -> None:
    """Require that a question is a text.

    Raises:
        TypeError: it is something else, such as the context.
    """
    if not isinstance(query, str):
        raise TypeError(f"the query is a text, not {type(query).__name__}: call {call}")


def _release_guest(owner: GuestOwner, portal: Portal, process: int) -> None:
    """Release the guest of a session that was garbage-collected, on the thread where that happened."""
    if process == os.getpid():
        portal.post(owner.release)
    else:
        leave_to_parent(owner)
