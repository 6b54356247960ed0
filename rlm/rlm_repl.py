"""`RLM_REPL`: ask a question of a context that is too long for a prompt.

    rlm = RLM_REPL(model="gpt-5", recursive_model="gpt-5-nano")
    answer = rlm.completion(context, "Which clauses let the tenant leave early?")

Every method that blocks has an async twin. All of them run on the portal's one event loop, so that one object may
be used from scripts, notebooks, servers and many threads at once, and keeps its connections for its whole life.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self
from weakref import WeakSet

import anyio
import anyio.to_thread

from rlm import prompts, sources
from rlm.clients.openai import AsyncOpenAIClient, warm_up
from rlm.conversation import Conversation
from rlm.errors import ContextError, SettingsError
from rlm.events import Warned, ignore
from rlm.portal import Portal, lease
from rlm.prices import missing_price, price
from rlm.rlm_session import RLMSession
from rlm.runtime import Run, new_run_id
from rlm.sandbox.session import open_session
from rlm.scheduler.budget import Budget, Ledger
from rlm.scheduler.measure import bound
from rlm.scheduler.scheduler import Scheduler
from rlm.settings import RunSettings, SandboxSettings, SchedulerSettings
from rlm.tokens import Counter
from rlm.values import Usage

if TYPE_CHECKING:
    from types import TracebackType

    from rlm.clients.base import Client
    from rlm.display import Display
    from rlm.errors import CallError
    from rlm.events import Emit, Event
    from rlm.prices import Price
    from rlm.sandbox.launchers import Launcher
    from rlm.sandbox.session import Session
    from rlm.values import Answer, Call, Reply

__all__ = ["RLM_REPL"]

_DEFAULTS = RunSettings()


class RLM_REPL:  # noqa: N801 - the name that rlm-minimal made known
    """Answers questions about contexts of any length, by a root model that reads them through a REPL.

    Args:
        model: the root model, which writes the cells.
        recursive_model: the sub-model, which the cells call.
        max_iterations: turns of the root model per question.
        max_depth: 1 for sub-calls only; more allows child runs, that many levels deep.
        enable_logging: show turns, cells and calls on stderr as they happen.
        api_key: the provider's key; default is what the SDK reads, `OPENAI_API_KEY`.
        base_url: any OpenAI-compatible endpoint; default is what the SDK reads, `OPENAI_BASE_URL`.
        client: asks the models instead of the OpenAI client; its methods run on the portal's loop.
        budget: what one completion may spend, children included: dollars, or a `Budget`. Never exceeded; where the
            next call might, the answer is partial.
        prices: dollars per million tokens by model, ahead of the price list of the extra `[prices]`.
        cache: keep finished answers on disk and use them again: "on", "read" (add nothing), "off".
        max_concurrent: calls in flight at once over the whole tree; by default, what the endpoint turns out to bear.
        timeout_s: wall clock of one completion, in seconds.
        on_limit: a budget or the wall clock ends a completion with a "partial" answer, or it "raise"s
            `LimitReached`, which holds that answer in `.partial`.
        max_children: child runs with an open guest at once, at each depth.
        sub_context_chars: how many characters of prompt a sub-model can take.
        cell_timeout_s: seconds of work a cell may take; waiting for models does not count.
        sandbox: "auto" takes the best isolation this machine gives; "strict" refuses to start a guest that is not
            confined in files, network and processes; `SandboxSettings` sets all limits of the guest, instead of
            `cell_timeout_s`.
        launcher: how to start a guest, such as in a container; by default a process on this machine.
        scheduler: all settings of the calls, instead of `max_concurrent` and `cache`.
        on_event: called with every event, on the portal's thread: return soon.

    Raises:
        SettingsError: a value cannot work.
    """

    def __init__(
        self,
        model: str = "gpt-5",
        recursive_model: str = "gpt-5-nano",
        max_iterations: int = 20,
        max_depth: int = 1,
        enable_logging: bool = False,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        client: Client | None = None,
        budget: Budget | float | None = None,
        prices: Mapping[str, Price] | None = None,
        cache: Literal["off", "read", "on"] = "off",
        max_concurrent: int | None = None,
        timeout_s: float | None = None,
        on_limit: Literal["partial", "raise"] = "partial",
        max_children: int = _DEFAULTS.max_children,
        sub_context_chars: int = _DEFAULTS.sub_context_chars,
        cell_timeout_s: float = _DEFAULTS.sandbox.cell_timeout_s,
        sandbox: SandboxSettings | Literal["auto", "strict"] = "auto",
        launcher: Launcher | None = None,
        scheduler: SchedulerSettings | None = None,
        on_event: Emit | None = None,
    ) -> None:
        only_model = getattr(client, "only_model", None)
        self.settings = RunSettings(
            model=only_model or model,
            recursive_model=only_model or recursive_model,
            max_iterations=max_iterations,
            max_depth=max_depth,
            timeout_s=timeout_s,
            on_limit=on_limit,
            max_children=max_children,
            sub_context_chars=sub_context_chars,
            sandbox=_sandbox_settings(sandbox, cell_timeout_s),
            scheduler=scheduler or SchedulerSettings(max_concurrent=max_concurrent or "auto", cache=cache),
        )
        self.budget = Budget(dollars=budget) if isinstance(budget, (int, float)) else budget
        self.client = client or _openai_client(recursive_model, api_key, base_url)
        counter = Counter()
        self._price = partial(price, overrides=prices, endpoint=base_url)
        self._scheduler = Scheduler(
            self.client,
            self.settings.scheduler,
            price=self._price,
            count_tokens=counter.count_call,
            bound_tokens=bound(counter.count_call),
            observe=counter.observe_call,
        )
        self._launcher = launcher
        self._ledger = Ledger(self.budget)
        self._listeners = [listener for listener in (on_event,) if listener is not None]
        self._display: Display | None = None
        if enable_logging:
            from rlm.display import show_on_stderr

            self._display = show_on_stderr()
            self._listeners.append(self._display)
        self._sessions: WeakSet[RLMSession] = WeakSet()
        self._portal: Portal = lease()
        self._closed = False

    def completion(self, context: Any, query: str | None = None) -> Answer:
        """Answer a question about a context; see `acompletion`."""
        return self._portal.call(self._complete, context, query)

    async def acompletion(self, context: Any, query: str | None = None) -> Answer:
        """Answer a question about a context.

        Args:
            context: a str, list, dict or list of messages of any length, or `pathlib.Path`s of text files. It
                reaches the guest exactly as it is.
            query: the question; without one, the root model follows what the context itself asks.

        Returns:
            The answer: a `str` with `.value`, `.status`, `.usage` and more. A limit gives a partial one.

        Raises:
            ContextError: the context is empty, unreadable, or of a type that cannot cross.
            CallError: the root model cannot be asked.
            SandboxError: no guest could be started.
        """
        return await self._portal.acall(self._complete, context, query)

    def stream(self, context: Any, query: str | None = None) -> Iterator[Event]:
        """Answer a question, and yield what happens as it happens; the last event is `AnswerGiven`.

        Leaving the loop early cancels the run. Raises what `acompletion` raises.
        """
        return self._portal.iterate(partial(self._complete, context, query))

    def astream(self, context: Any, query: str | None = None) -> AsyncIterator[Event]:
        """The same on an event loop; leave it early through `contextlib.aclosing`."""
        return self._portal.aiterate(partial(self._complete, context, query))

    def session(self, context: Any) -> RLMSession:
        """Open a session: several questions about one context, on one guest."""
        return self._portal.call(self._open_session, context)

    async def asession(self, context: Any) -> RLMSession:
        """Open a session: several questions about one context, on one guest."""
        return await self._portal.acall(self._open_session, context)

    def ask_model(self, call: Call) -> Reply:
        """Make one call through the scheduler, without a run around it."""
        return self._portal.call(self._ask_model, call)

    def ask_models(self, calls: Sequence[Call], *, max_concurrent: int = 10) -> list[Reply | CallError]:
        """Make many calls at once, in order; one that failed for good leaves its error in its place."""
        return self._portal.call(self._ask_models, calls, max_concurrent)

    def bare_session(self, context: Any = None) -> RLMSession:
        """Open a session that may also be without a context: Python in a guest, with models at hand."""
        return self._portal.call(self._open_bare_session, context)

    def cost_summary(self) -> dict[str, Any]:
        """What the runs that have ended spent since this object was made or `reset`: in all, per model and depth."""
        return self._ledger.cost_summary()

    def reset(self) -> None:
        """Start counting from zero."""
        self._ledger = Ledger(self.budget)

    def close(self) -> None:
        """End open sessions, close connections, and give the event loop back. Idempotent."""
        if not self._closed:
            self._closed = True
            self._portal.call(self._close)
            self._portal.close()

    async def aclose(self) -> None:
        """End open sessions, close connections, and give the event loop back. Idempotent."""
        if not self._closed:
            self._closed = True
            await self._portal.acall(self._close)
            await self._portal.aclose()

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

    async def _complete(self, context: Any, query: str | None, listener: Emit = ignore) -> Answer:
        context = await _load(context)
        with self._new_run(listener) as run:
            return await run.complete(query or prompts.DEFAULT_QUESTION, context)

    async def _open_session(self, context: Any) -> RLMSession:
        context = await _load(context)
        return await self._open_bare_session(context)

    async def _open_bare_session(self, context: Any) -> RLMSession:
        guest = await self._open_guest()
        try:
            await guest.load(context)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await guest.aclose()
            raise
        conversation = Conversation(self.settings, prompts.describe_context(context))
        session = RLMSession(self._portal, guest, conversation, self._new_run)
        self._sessions.add(session)
        return session

    async def _close(self) -> None:
        for session in list(self._sessions):
            await session.aclose()
        await self._scheduler.aclose()
        if self._display is not None:
            await anyio.to_thread.run_sync(self._display.close)

    async def _open_guest(self) -> Session:
        return await open_session(self.settings.sandbox, launcher=self._launcher)

    async def _ask_model(self, call: Call) -> Reply:
        with self._new_run() as run:
            return await run.tree.complete(call)

    async def _ask_models(self, calls: Sequence[Call], max_concurrent: int) -> list[Reply | CallError]:
        with self._new_run() as run:
            return await run.tree.complete_all(calls, max_concurrent=max_concurrent)

    @contextmanager
    def _new_run(self, listener: Emit = ignore) -> Iterator[Run]:
        """A new tree with its first run; what it spent is added to this object's sum at the end."""
        self._require_prices()
        run_id = new_run_id()
        warned: list[str] = []

        def emit(event: Event) -> None:
            if isinstance(event, Warned):
                warned.append(event.message)
            listener(event)
            self._emit(event)

        tree = self._scheduler.tree(
            run_id=run_id,
            budget=self.budget,
            emit=emit,
            models=self._models,
            stream=bool(self._listeners) or listener is not ignore,
        )
        try:
            yield Run(
                settings=self.settings,
                tree=tree,
                open_guest=self._open_guest,
                emit=emit,
                run_id=run_id,
                warnings=warned,
            )
        finally:
            self._ledger.absorb(tree.ledger)

    def _require_prices(self) -> None:
        if self.budget is None or self.budget.dollars is None:
            return
        for model in self._models:
            if self._price(model, Usage(calls=1)) is None:
                by_hand = f"prices={{{model!r}: Price(input=..., output=...)}}"
                raise SettingsError(missing_price(model, by_hand=by_hand))

    @property
    def _models(self) -> tuple[str, str]:
        return self.settings.model, self.settings.recursive_model

    def _emit(self, event: Event) -> None:
        for listener in list(self._listeners):
            try:
                listener(event)
            except Exception as error:  # noqa: BLE001 - whatever a listener does, the run is paid for and goes on
                self._listeners.remove(listener)
                warnings.warn(f"{listener!r} hears no more events: {error!r}", RuntimeWarning, stacklevel=2)


def _sandbox_settings(
    sandbox: SandboxSettings | Literal["auto", "strict"], cell_timeout_s: float
) -> SandboxSettings:
    match sandbox:
        case SandboxSettings():
            return sandbox
        case "auto":
            return SandboxSettings(cell_timeout_s=cell_timeout_s)
        case "strict":
            return SandboxSettings(cell_timeout_s=cell_timeout_s, minimum_tier="confined")
        case _:
            raise SettingsError(f"sandbox={sandbox!r}: must be 'auto', 'strict' or a SandboxSettings")


def _openai_client(model: str, api_key: str | None, base_url: str | None) -> Client:
    """The default client; its library starts to load at once, so that it is there when the first turn is."""
    client = AsyncOpenAIClient(model, api_key=api_key, base_url=base_url)
    warm_up()
    return client


async def _load(context: Any) -> Any:
    """The context itself, read from its files where it is made of paths.

    Raises:
        ContextError: it is empty, or a file cannot be read.
    """
    context = await anyio.to_thread.run_sync(sources.load, context)
    if context is None or (isinstance(context, Sized) and not len(context)):
        raise ContextError(f"the context is empty ({context!r}): there is nothing to ask about")
    return context
