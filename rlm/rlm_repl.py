"""`RLM_REPL`: ask a question about a context that is too long for a prompt.

    rlm = RLM_REPL(model="gpt-5", recursive_model="gpt-5-nano")
    answer = rlm.completion(context, "Which clauses let the tenant leave early?")

Every method that blocks has an async twin. All of them run on the portal's one event loop, so that one object may
be used from scripts, notebooks, servers and many threads at once, and keeps its connections for its whole life.
In a forked child it starts with a new scheduler and the client it has; sessions stay with the parent.
"""

from __future__ import annotations

import os
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Unpack

import anyio
import anyio.to_thread

from rlm import loading, options
from rlm._async import preload
from rlm._async.closing import GuestOwner, RunningWork
from rlm._async.portal import Portal, lease, leave_to_parent
from rlm._async.twins import AsyncContext, BlockingContext, blocking, on_portal
from rlm.engine import prompts
from rlm.engine.conversation import Conversation
from rlm.engine.run import Run, new_run_id
from rlm.engine.run_events import Listeners, OutputBacklog, RunEvents
from rlm.errors import LimitReached, SessionClosed
from rlm.events import Warned, ignore
from rlm.metering.bounds import bound
from rlm.metering.prices import price
from rlm.metering.tokens import Counter
from rlm.sandbox.session import open_session
from rlm.scheduler.ledger import Ledger
from rlm.scheduler.scheduler import Scheduler
from rlm.session import RLMSession, require_query
from rlm.values import Usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from rlm.clients.base import Client
    from rlm.clients.function import ClientFunction
    from rlm.display import Display
    from rlm.errors import CallError
    from rlm.events import Emit, Event
    from rlm.metering.prices import Price
    from rlm.options import RunOptions
    from rlm.sandbox.launchers import Launcher
    from rlm.sandbox.session import Session
    from rlm.sandbox.shared_contexts import ContextRef
    from rlm.scheduler.batch import Kept
    from rlm.scheduler.budget import Budget
    from rlm.settings import SandboxSettings, SchedulerSettings
    from rlm.values import Answer, Call, Reply

__all__ = ["RLM_REPL"]

_WHEN_CLOSED = "this RLM_REPL was closed: make a new one, or keep it open with `with RLM_REPL(...) as rlm:`"


@options.with_option_docs
class RLM_REPL(BlockingContext, AsyncContext):  # noqa: N801 - the name that rlm-minimal made known
    """Answers questions about contexts of any length with a root model that reads them through a REPL.

    Args:
        model: the root model, which writes the cells; by default `RLM_MODEL` of the environment, else "gpt-5".
        recursive_model: the sub-model, which the cells call; by default `RLM_RECURSIVE_MODEL`, else "gpt-5-nano". With a
            `base_url` and a `model`, by default that model.
        max_iterations: turns of the root model per question.
        max_depth: 1 for sub-calls only; more allows child runs, that many levels deep.
        enable_logging: show turns, cells and calls on stderr as they happen.
        api_key: the provider's key; by default `OPENAI_API_KEY`.
        base_url: any OpenAI-compatible endpoint; by default `OPENAI_BASE_URL`.
        client: asks the models instead of the OpenAI client, on rlm's own event loop: an object with `async def
            complete(call) -> Reply`, or `async def ask(messages, model) -> str`. "offline" uses no model: rules that
            find, count and quote.
        budget: what one completion may spend, child runs included: dollars, or a `Budget`. Never exceeded; a call that
            might exceed it is not sent, and the answer is partial.
        prices: dollars per million tokens by model, ahead of the built-in price list.
        sandbox: "auto" takes the best isolation of this machine; "strict" refuses to start a guest that is not
            confined in files, network and processes; `SandboxSettings` sets all limits of the guest.
        launcher: how to start a guest, such as in a container; by default a process on this machine.
        scheduler: all settings of the calls, instead of `max_concurrent` and `cache`.
        on_event: a plain function, called with every event, on rlm's own thread: return soon. It is removed when it
            raises, and `Answer.warnings` says so.
        journal: a file to which every event of every run is appended as it happens; see `rlm.journal.runs`. When
            the disk does not take it, the runs go on, and `Answer.warnings` says so.
        run_options: the options below, as keywords; `rlm.options.RunOptions` has their types.

    Raises:
        TypeError: an option is unknown.
        SettingsError: a value cannot work.
        JournalLocked: another process, or an object in this one that is not closed, writes to the journal.
        JournalError: the journal cannot be opened, or is a file of another kind.
    """

    def __init__(
        self,
        model: str | None = None,
        recursive_model: str | None = None,
        max_iterations: int = 20,
        max_depth: int = 1,
        enable_logging: bool = False,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        client: Client | ClientFunction | Literal["offline"] | None = None,
        budget: Budget | float | None = None,
        prices: Mapping[str, Price] | None = None,
        sandbox: SandboxSettings | Literal["auto", "strict"] = "auto",
        launcher: Launcher | None = None,
        scheduler: SchedulerSettings | None = None,
        on_event: Emit | None = None,
        journal: str | os.PathLike[str] | None = None,
        **run_options: Unpack[RunOptions],
    ) -> None:
        models = options.models_of(model, recursive_model, own_endpoint=base_url is not None)
        given_client = options.given_client(client)
        self.settings = options.settings_of(
            models,
            {"max_iterations": max_iterations, "max_depth": max_depth, **run_options},
            sandbox=sandbox,
            scheduler=scheduler,
            only_model=getattr(given_client, "only_model", None),
        )
        self.budget = options.budget_of(budget)
        self.client = (
            options.openai_client(models[1], api_key, base_url) if given_client is None else given_client
        )
        self._counter = counter = Counter()
        self._price = partial(price, overrides=options.prices_of(prices, self.client), endpoint=base_url)
        self._new_scheduler = partial(
            Scheduler,
            self.client,
            self.settings.scheduler,
            price=self._price,
            count_tokens=counter.count_call,
            bound_tokens=bound(counter.count_call),
            observe=counter.observe_call,
        )
        self._state = _LoopState(self._new_scheduler())
        self._launcher = launcher
        self._ledger = Ledger(self.budget)
        self._listeners = Listeners()
        if on_event is not None:
            self._listeners.add(options.require_listener(on_event))
        self._journal = options.journal_at(journal)
        self._display: Display | None = None
        if enable_logging:
            from rlm.display import show_on_stderr

            self._display = show_on_stderr()
            self._listeners.add(self._display)
        self._portal: Portal = lease(_WHEN_CLOSED)
        self._closed = False

    @on_portal
    async def acompletion(self, context: Any, query: str | None = None) -> Answer:
        """Answer a question about a context.

        Args:
            context: a str, list, dict or list of messages of any length, or `pathlib.Path`s of text files. It
                reaches the guest exactly as it is.
            query: the question; without one, the root model follows what the context itself asks.

        Returns:
            The answer: a `str` with `.value`, `.status`, `.usage` and more. A limit gives a partial one.

        Raises:
            ContextError: the context is empty, unreadable, or of a type that cannot be sent to the guest.
            CallError: the root model cannot be asked.
            SandboxError: no guest could be started.
        """
        return await self._complete(context, query)

    completion = blocking(acompletion)

    def stream(self, context: Any, query: str | None = None) -> Iterator[Event]:
        """Answer a question, and yield each event as it happens; the last one is `AnswerGiven`.

        If the loop is slower than the output of a cell, parts of that output are dropped; a `CellOutput` says how much.
        Leaving the loop early cancels the run. Raises what `completion` raises.
        """
        return OutputBacklog.read(self._portal.iterate, partial(self._complete, context, query))

    def astream(self, context: Any, query: str | None = None) -> AsyncIterator[Event]:
        """Do the same on an event loop; leave it early through `contextlib.aclosing`."""
        return OutputBacklog.aread(self._portal.aiterate, partial(self._complete, context, query))

    @on_portal
    async def asession(self, context: Any) -> RLMSession:
        """Open a session: several questions about one context, on one guest."""
        with self._in_this_process().work.track():
            await loading.warn_of_mistakes(context)
            context = await loading.load(context, self._listeners.emit)
        return await self._open_session(context)

    session = blocking(asession)

    @on_portal
    async def abare_session(self, context: Any = None) -> RLMSession:
        """Open a session that may also be without a context: Python in a guest that can call models."""
        await loading.warn_of_mistakes(context)
        return await self._open_session(context)

    bare_session = blocking(abare_session)

    @on_portal
    async def aask_model(self, call: Call) -> Reply:
        """Send one call through the scheduler, outside of any run."""
        async with self._new_run() as run:
            return await run.tree.complete(call)

    ask_model = blocking(aask_model)

    @on_portal
    async def aask_models(
        self, calls: Sequence[Call], *, max_concurrent: int = 10
    ) -> list[Reply | CallError]:
        """Send many calls at once and return their replies in order; the slot of one that failed for good has its error.

        Raises:
            LimitReached: the budget does not allow all of them; `.partial` has the replies so far, in order, and
                this error in the slot of each that is missing.
        """
        kept: Kept = {}
        async with self._new_run() as run:
            try:
                return await run.tree.complete_all(calls, max_concurrent=max_concurrent, kept=kept)
            except LimitReached as limit:
                limit.partial = [kept.get(index, limit) for index in range(len(calls))]
                raise

    ask_models = blocking(aask_models)

    def cost_summary(self) -> dict[str, Any]:
        """Return what finished runs have spent since this object was made or `reset`: in all, per model and depth."""
        return self._ledger.cost_summary()

    def reset(self) -> None:
        """Start counting costs from zero."""
        self._ledger = Ledger(self.budget)

    def close(self) -> None:
        """End running completions and open sessions, close connections, and release the event loop. Idempotent.

        A thread that waits for a completion then gets a `RuntimeError`. A forked child only drops what it inherited.

        Raises:
            RuntimeError: called on rlm's own event loop, such as in `on_event`; nothing is closed then.
        """
        self._portal.require_another_thread()
        if self._start_close():
            try:
                self._portal.call(self._close)
            finally:
                self._portal.close()

    async def aclose(self) -> None:
        """Do what `close` does, from any loop; the closing is completed even if the caller is cancelled."""
        if self._start_close():
            try:
                await self._portal.afinish(self._close)
            finally:
                await self._portal.aclose()

    async def _complete(self, context: Any, query: str | None, listener: Emit = ignore) -> Answer:
        if query is not None:
            require_query(query, "completion(context, query)")
        async with self._new_run(listener) as run:
            if warning := await loading.warn_of_mistakes(context, query):
                run.emit(Warned(run_id=run.run_id, depth=0, at=time.time(), message=warning))
            context = await loading.load(context, run.emit, run.run_id)
            return await run.complete(query or prompts.DEFAULT_QUESTION, context)

    async def _open_session(self, context: Any) -> RLMSession:
        with self._in_this_process().work.track():
            owner = GuestOwner(await self._open_guest(), RunningWork("this session", SessionClosed))
            try:
                await owner.guest.load(context)
                self._portal.start(self._run_until_released, owner)
                await owner.wait_started()
            except BaseException:
                await owner.end()
                raise
            conversation = Conversation(self.settings, prompts.describe_context(context))
            return RLMSession(self._portal, owner, conversation, self._new_run)

    async def _run_until_released(self, owner: GuestOwner) -> None:
        guests = self._state.guests
        guests.add(owner)
        try:
            await owner.run_until_released()
        finally:
            guests.discard(owner)

    def _in_this_process(self) -> _LoopState:
        """Return the state on this process's event loop; a forked child makes its own."""
        if self._state.process != os.getpid():
            leave_to_parent(self._state)
            self._state = _LoopState(self._new_scheduler())
        return self._state

    def _start_close(self) -> bool:
        """Return True for the first caller when there is something to close; a close that fails is not repeated."""
        if self._closed:
            return False
        self._closed = True
        if self._state.process == os.getpid():
            return True
        leave_to_parent(self._state, self.client)
        self._portal.close()
        return False

    async def _close(self) -> None:
        state = self._state
        with anyio.CancelScope(shield=True):
            async with AsyncExitStack() as last_first:
                if self._journal is not None:
                    last_first.callback(self._journal.close)
                if self._display is not None:
                    last_first.push_async_callback(anyio.to_thread.run_sync, self._display.close)
                last_first.push_async_callback(state.scheduler.aclose)
                last_first.push_async_callback(state.end_guests)
                await state.work.end()

    async def _open_guest(self, parent_context: ContextRef | None = None) -> Session:
        return await open_session(
            self.settings.sandbox, launcher=self._launcher, parent_context=parent_context
        )

    @asynccontextmanager
    async def _new_run(self, listener: Emit = ignore) -> AsyncIterator[Run]:
        """Make a tree with its root run; at the end, add what it spent to the sum of this object."""
        state = self._in_this_process()
        has_prices = not hasattr(self.client, "only_model")
        if has_prices and not state.loads_lists:
            state.loads_lists = True
            self._portal.start(anyio.to_thread.run_sync, preload.load, self._load_lists)
        if self.budget is not None:
            await anyio.to_thread.run_sync(self._require_prices, self.budget, state.scheduler)
        run_id = new_run_id()
        events = RunEvents(self._journal, listener, self._listeners.emit)
        with state.work.track():
            tree = state.scheduler.tree(
                run_id=run_id,
                budget=self.budget,
                emit=events,
                models=self.settings.models,
                stream=bool(self._listeners) or listener is not ignore,
            )
            try:
                yield Run(
                    settings=self.settings,
                    tree=tree,
                    open_guest=self._open_guest,
                    emit=events,
                    run_id=run_id,
                    warnings=events.warnings,
                )
            finally:
                self._ledger.absorb(tree.ledger)
                await events.finish()

    def _load_lists(self) -> None:
        """Load prices and vocabularies, which takes up to a second, while the first reply is awaited."""
        for model in self.settings.models:
            self._price(model, Usage())
            self._counter.count("", model)

    def _require_prices(self, budget: Budget, scheduler: Scheduler) -> None:
        for model in self.settings.models:
            scheduler.endpoint.require_price(model, budget)


@dataclass(slots=True)
class _LoopState:
    """State that is bound to the event loop of one process."""

    scheduler: Scheduler
    work: RunningWork = field(default_factory=partial(RunningWork, "this RLM_REPL", RuntimeError))
    guests: set[GuestOwner] = field(default_factory=set)
    loads_lists: bool = False
    process: int = field(default_factory=os.getpid)

    async def end_guests(self) -> None:
        async with anyio.create_task_group() as tasks:
            for owner in self.guests:
                tasks.start_soon(owner.end)
