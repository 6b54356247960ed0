"""`RLM_REPL`: ask a question of a context that is too long for a prompt.

    rlm = RLM_REPL(model="gpt-5", recursive_model="gpt-5-nano")
    answer = rlm.completion(context, "Which clauses let the tenant leave early?")

Every method that blocks has an async twin. All of them run on the portal's one event loop, so that one object may
be used from scripts, notebooks, servers and many threads at once, and keeps its connections for its whole life.
In a forked child it begins anew, with the client it has; sessions stay with the parent.
"""

from __future__ import annotations

import inspect
import logging
import os
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence, Sized
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import anyio
import anyio.to_thread

from rlm import sources
from rlm._async import preload
from rlm._async.closing import KeptGuest, Work
from rlm._async.portal import Portal, lease, leave_to_parent
from rlm.clients.function import as_client
from rlm.clients.openai import AsyncOpenAIClient, is_like_a_key, warm_up
from rlm.engine import prompts
from rlm.engine.conversation import Conversation
from rlm.engine.run import Run, new_run_id
from rlm.errors import ContextError, LimitReached, SessionClosed, SettingsError
from rlm.events import AnswerGiven, CallFinished, CallRetried, Warned, ignore
from rlm.journal.runs import RunJournal
from rlm.metering.bounds import bound
from rlm.metering.prices import Price, missing_price, price
from rlm.metering.tokens import Counter
from rlm.offline.client import OfflineClient
from rlm.sandbox.session import open_session
from rlm.scheduler.budget import Budget, Ledger
from rlm.scheduler.scheduler import Scheduler
from rlm.session import RLMSession, require_text
from rlm.settings import RunSettings, SandboxSettings, SchedulerSettings
from rlm.values import Usage

if TYPE_CHECKING:
    from types import TracebackType

    from rlm.clients.base import Client
    from rlm.clients.function import ClientFunction
    from rlm.display import Display
    from rlm.errors import CallError
    from rlm.events import Emit, Event
    from rlm.sandbox.launchers import Launcher
    from rlm.sandbox.session import Session
    from rlm.sandbox.shelf import Shelved
    from rlm.scheduler.batch import Kept
    from rlm.values import Answer, Call, Reply

__all__ = ["RLM_REPL"]

logger = logging.getLogger("rlm")

_DEFAULTS = RunSettings()
_LONG_QUESTION_CHARS = 5_000
_WHEN_CLOSED = "this RLM_REPL was closed: make a new one, or keep it open with `with RLM_REPL(...) as rlm:`"


class RLM_REPL:  # noqa: N801 - the name that rlm-minimal made known
    """Answers questions about contexts of any length, by a root model that reads them through a REPL.

    Args:
        model: the root model, which writes the cells.
        recursive_model: the sub-model, which the cells call; with `base_url` and a `model`, by default that model.
        max_iterations: turns of the root model per question.
        max_depth: 1 for sub-calls only; more allows child runs, that many levels deep.
        enable_logging: show turns, cells and calls on stderr as they happen.
        api_key: the provider's key; default is what the SDK reads, `OPENAI_API_KEY`.
        base_url: any OpenAI-compatible endpoint; default is what the SDK reads, `OPENAI_BASE_URL`.
        client: asks the models instead of the OpenAI client, on the portal's loop: an object with `async def
            complete(call) -> Reply`, or `async def ask(messages, model) -> str`. "offline" asks none: rules that find,
            count and quote.
        budget: what one completion may spend, children included: dollars, or a `Budget`. Never exceeded; where the
            next call might, the answer is partial.
        prices: dollars per million tokens by model, ahead of the price list.
        cache: keep finished answers on disk and use them again: "on", "read" (add nothing), "off", which is the default.
        max_concurrent: calls in flight at once over the whole tree; by default, what the endpoint turns out to bear.
        timeout_s: wall clock of one question in seconds, with the start of its guest and with its child runs; files of
            the context are read before.
        on_limit: a budget or the wall clock ends a completion with a "partial" answer, or it "raise"s
            `LimitReached`, which holds that answer in `.partial`.
        max_children: child runs with an open guest at once, at each depth.
        child_models: root models of child runs, by depth, the last one for all below; by default, the parent's.
        child_iterations: turns of a child run; by default `max_iterations`.
        child_timeout_s: wall clock of each child run, in seconds; one that takes longer fails alone.
        sub_context_chars: how many characters of prompt a sub-model can take.
        cell_timeout_s: seconds of work a cell may take, by default 120; waiting for models does not count.
        sandbox: "auto" takes the best isolation this machine gives; "strict" refuses to start a guest that is not
            confined in files, network and processes; `SandboxSettings` sets all limits of the guest, instead of
            `cell_timeout_s`.
        launcher: how to start a guest, such as in a container; by default a process on this machine.
        scheduler: all settings of the calls, instead of `max_concurrent` and `cache`.
        on_event: a plain function, called with every event, on the portal's thread: return soon. Where it raises,
            it hears no more, and `Answer.warnings` says so.
        journal: a file to which every event of every run is appended as it happens; see `rlm.journal.runs`. Where
            the disk does not take it, the runs go on, and `Answer.warnings` says so.

    Raises:
        SettingsError: a value cannot work.
        JournalLocked: another process, or an object in this one that is not closed, writes to the journal.
        JournalError: the journal cannot be opened, or is a file of another kind.
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
        client: Client | ClientFunction | Literal["offline"] | None = None,
        budget: Budget | float | None = None,
        prices: Mapping[str, Price] | None = None,
        cache: Literal["off", "read", "on"] | None = None,
        max_concurrent: int | None = None,
        timeout_s: float | None = None,
        on_limit: Literal["partial", "raise"] = "partial",
        max_children: int = _DEFAULTS.max_children,
        child_models: Sequence[str] = (),
        child_iterations: int | None = None,
        child_timeout_s: float | None = None,
        sub_context_chars: int = _DEFAULTS.sub_context_chars,
        cell_timeout_s: float | None = None,
        sandbox: SandboxSettings | Literal["auto", "strict"] = "auto",
        launcher: Launcher | None = None,
        scheduler: SchedulerSettings | None = None,
        on_event: Emit | None = None,
        journal: str | os.PathLike[str] | None = None,
    ) -> None:
        child_models = _names("child_models", child_models)
        _require_no_key(model=model, recursive_model=recursive_model)
        _require_no_key(**{f"child_models[{index}]": name for index, name in enumerate(child_models)})
        if isinstance(client, str):
            client = _named_client(client)
        elif client is not None:
            client = as_client(client)
        if base_url is not None and recursive_model == _DEFAULTS.recursive_model and model != _DEFAULTS.model:
            recursive_model = model  # an endpoint of one's own, told one model, is meant for both roles
        only_model = getattr(client, "only_model", None)
        self.settings = RunSettings(
            model=only_model or model,
            recursive_model=only_model or recursive_model,
            max_iterations=max_iterations,
            max_depth=max_depth,
            timeout_s=timeout_s,
            on_limit=on_limit,
            max_children=max_children,
            child_models=() if only_model else child_models,
            child_iterations=child_iterations,
            child_timeout_s=child_timeout_s,
            sub_context_chars=sub_context_chars,
            sandbox=_sandbox_settings(sandbox, cell_timeout_s),
            scheduler=_scheduler_settings(scheduler, max_concurrent, cache),
        )
        self.budget = _budget(budget)
        _require_prices_of_ours(prices)
        self.client = _openai_client(recursive_model, api_key, base_url) if client is None else client
        self._counter = counter = Counter()
        if isinstance(self.client, OfflineClient):
            prices = {self.client.only_model: Price(input=0.0, output=0.0), **(prices or {})}
        self._price = partial(price, overrides=prices, endpoint=base_url)
        self._new_scheduler = partial(
            Scheduler,
            self.client,
            self.settings.scheduler,
            price=self._price,
            count_tokens=counter.count_call,
            bound_tokens=bound(counter.count_call),
            observe=counter.observe_call,
        )
        self._here = _Here(self._new_scheduler())
        self._launcher = launcher
        self._ledger = Ledger(self.budget)
        self._listeners = [] if on_event is None else [_listener(on_event)]
        self._journal = _journal(journal)
        self._display: Display | None = None
        if enable_logging:
            from rlm.display import show_on_stderr

            self._display = show_on_stderr()
            self._listeners.append(self._display)
        self._portal: Portal = lease(_WHEN_CLOSED)
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

    async def aask_model(self, call: Call) -> Reply:
        """Make one call through the scheduler, without a run around it."""
        return await self._portal.acall(self._ask_model, call)

    def ask_models(self, calls: Sequence[Call], *, max_concurrent: int = 10) -> list[Reply | CallError]:
        """Make many calls at once, in order; one that failed for good leaves its error in its place.

        Raises:
            LimitReached: the budget does not allow all of them; `.partial` has the replies there are, in order, and
                this error in the place of each that is not.
        """
        return self._portal.call(self._ask_models, calls, max_concurrent)

    async def aask_models(
        self, calls: Sequence[Call], *, max_concurrent: int = 10
    ) -> list[Reply | CallError]:
        """Make many calls at once; see `ask_models`."""
        return await self._portal.acall(self._ask_models, calls, max_concurrent)

    def bare_session(self, context: Any = None) -> RLMSession:
        """Open a session that may also be without a context: Python in a guest, with models at hand."""
        return self._portal.call(self._open_bare_session, context)

    async def abare_session(self, context: Any = None) -> RLMSession:
        """Open a session that may also be without a context: Python in a guest, with models at hand."""
        return await self._portal.acall(self._open_bare_session, context)

    def cost_summary(self) -> dict[str, Any]:
        """What the runs that have ended spent since this object was made or `reset`: in all, per model and depth."""
        return self._ledger.cost_summary()

    def reset(self) -> None:
        """Start counting from zero."""
        self._ledger = Ledger(self.budget)

    def close(self) -> None:
        """End what is under way and open sessions, close connections, and give the event loop back. Idempotent.

        Whoever waits for a completion then gets a `RuntimeError`. A forked child only drops what it inherited.

        Raises:
            RuntimeError: on the portal's own loop, such as in a listener; nothing is closed then.
        """
        self._portal.require_another_thread()
        if self._begin_closing():
            try:
                self._portal.call(self._close)
            finally:
                self._portal.close()

    async def aclose(self) -> None:
        """Like `close`, from any loop; one that is cancelled closes all the same."""
        if self._begin_closing():
            try:
                await self._portal.afinish(self._close)
            finally:
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
        if query is not None:
            require_text(query, "completion(context, question)")
        async with self._new_run(listener) as run:
            if doubt := await _doubt(context, query):
                run.emit(Warned(run_id=run.run_id, depth=0, at=time.time(), message=doubt))
            context = await _load(context)
            return await run.complete(query or prompts.DEFAULT_QUESTION, context)

    async def _open_session(self, context: Any) -> RLMSession:
        with self._in_this_process().work.under_way():
            await _doubt(context)
            context = await _load(context)
        return await self._open_bare_session(context)

    async def _open_bare_session(self, context: Any) -> RLMSession:
        with self._in_this_process().work.under_way():
            kept = KeptGuest(await self._open_guest(), Work("this session", SessionClosed))
            try:
                await kept.guest.load(context)
                self._portal.start(self._keep, kept)
                await kept.kept()
            except BaseException:
                await kept.end()
                raise
            conversation = Conversation(self.settings, prompts.describe_context(context))
            return RLMSession(self._portal, kept, conversation, self._new_run)

    async def _keep(self, kept: KeptGuest) -> None:
        guests = self._here.guests
        guests.add(kept)
        try:
            await kept.keep()
        finally:
            guests.discard(kept)

    def _in_this_process(self) -> _Here:
        """What lives on the loop; made anew in a forked child."""
        if self._here.process != os.getpid():
            leave_to_parent(self._here)
            self._here = _Here(self._new_scheduler())
        return self._here

    def _begin_closing(self) -> bool:
        """Whether there is something to close, by whoever asks first; a close that fails is final."""
        if self._closed:
            return False
        self._closed = True
        if self._here.process == os.getpid():
            return True
        leave_to_parent(self._here, self.client)
        self._portal.close()
        return False

    async def _close(self) -> None:
        here = self._here
        with anyio.CancelScope(shield=True):
            async with AsyncExitStack() as last_first:
                if self._journal is not None:
                    last_first.callback(self._journal.close)
                if self._display is not None:
                    last_first.push_async_callback(anyio.to_thread.run_sync, self._display.close)
                last_first.push_async_callback(here.scheduler.aclose)
                last_first.push_async_callback(here.end_guests)
                await here.work.end()

    async def _open_guest(self, piece: Shelved | None = None) -> Session:
        return await open_session(self.settings.sandbox, launcher=self._launcher, piece=piece)

    async def _ask_model(self, call: Call) -> Reply:
        async with self._new_run() as run:
            return await run.tree.complete(call)

    async def _ask_models(self, calls: Sequence[Call], max_concurrent: int) -> list[Reply | CallError]:
        kept: Kept = {}
        async with self._new_run() as run:
            try:
                return await run.tree.complete_all(calls, max_concurrent=max_concurrent, kept=kept)
            except LimitReached as limit:
                limit.partial = [kept.get(index, limit) for index in range(len(calls))]
                raise

    @asynccontextmanager
    async def _new_run(self, listener: Emit = ignore) -> AsyncIterator[Run]:
        """A new tree with its first run; what it spent is added to this object's sum at the end."""
        here = self._in_this_process()
        has_prices = not hasattr(self.client, "only_model")
        if has_prices and not here.loads_lists:
            here.loads_lists = True
            self._portal.start(anyio.to_thread.run_sync, preload.load, self._load_lists)
        if self.budget is not None:
            await anyio.to_thread.run_sync(self._require_prices)
        run_id = new_run_id()
        telling = _Telling(self._journal, listener, self._emit)
        with here.work.under_way():
            tree = here.scheduler.tree(
                run_id=run_id,
                budget=self.budget,
                emit=telling,
                models=self.settings.models,
                stream=bool(self._listeners) or listener is not ignore,
            )
            try:
                yield Run(
                    settings=self.settings,
                    tree=tree,
                    open_guest=self._open_guest,
                    emit=telling,
                    run_id=run_id,
                    warnings=telling.warnings,
                )
            finally:
                self._ledger.absorb(tree.ledger)
                await telling.finish()

    def _load_lists(self) -> None:
        """Load prices and vocabularies, which takes up to a second, while the first model thinks."""
        for model in self.settings.models:
            self._price(model, Usage())
            self._counter.count("", model)

    def _require_prices(self) -> None:
        if self.budget is None or self.budget.dollars is None:
            return
        for model in self.settings.models:
            if self._price(model, Usage(calls=1)) is None:
                by_hand = f"prices={{{model!r}: Price(input=..., output=...)}}"
                raise SettingsError(missing_price(model, by_hand=by_hand))

    def _emit(self, event: Event) -> list[str]:
        """Tell the listeners; those that raise are told no more. What is to be said of them."""
        problems = []
        for listener in list(self._listeners):
            try:
                listener(event)
            except (Exception, SystemExit) as error:  # an exit here would end the loop of everybody
                if listener in self._listeners:  # two runs may find out at once
                    self._listeners.remove(listener)
                problems.append(f"{listener!r} hears no more events: {error!r}")
                logger.warning("%s", problems[-1], exc_info=error)
        return problems


class _Telling:
    """The `Emit` of one tree: the journal first, so that what was paid for is kept before anybody acts on it.

    Attributes:
        warnings: what the user should know.
    """

    def __init__(
        self, journal: RunJournal | None, listener: Emit, tell: Callable[[Event], list[str]]
    ) -> None:
        self.warnings: list[str] = []
        self._journal = journal
        self._listener = listener
        self._tell = tell
        self._answer: Answer | None = None
        self._problem_told = False
        self._trouble = ""

    def __call__(self, event: Event) -> None:
        if isinstance(event, Warned):
            self.warnings.append(event.message)
        if isinstance(event, AnswerGiven) and not event.depth:
            self._tell_trouble(event)
            self._answer = event.answer
        self._note_trouble(event)
        problems = self._record(event)
        self._listener(event)
        for problem in problems + self._tell(event):
            self(Warned(run_id=event.run_id, depth=event.depth, at=event.at, message=problem))

    async def finish(self) -> None:
        """Wait until the journal is on the disk itself."""
        if self._journal is not None:
            await self._journal.sync()
            for problem in self._journal_problems(self._journal):
                logger.warning("%s", problem)

    def _note_trouble(self, event: Event) -> None:
        """Remember why a call is asked again, until one is answered."""
        if isinstance(event, CallRetried):
            self._trouble = event.error
        elif isinstance(event, CallFinished):
            self._trouble = ""

    def _tell_trouble(self, event: AnswerGiven) -> None:
        """A run out of time may have waited for a provider in trouble, which is then the cause."""
        if self._trouble and event.answer.status == "timeout":
            message = f"when time ran out, a call was to be asked again: {self._trouble}"
            event.answer.warnings += (message,)
            self(Warned(run_id=event.run_id, depth=event.depth, at=event.at, message=message))

    def _record(self, event: Event) -> list[str]:
        """Write it into the journal, if there is one; gives what is to be said of that."""
        if self._journal is None:
            return []
        self._journal.write(event)
        return self._journal_problems(self._journal)

    def _journal_problems(self, journal: RunJournal) -> list[str]:
        """What is wrong with the journal, once; an answer that is there already is told itself, after its events."""
        if not journal.problem or self._problem_told:
            return []
        self._problem_told = True
        if self._answer is None:
            return [journal.problem]
        self._answer.warnings += (journal.problem,)
        logger.warning("%s", journal.problem)
        return []


@dataclass(slots=True)
class _Here:
    """What lives on the event loop of one process."""

    scheduler: Scheduler
    work: Work = field(default_factory=partial(Work, "this RLM_REPL", RuntimeError))
    guests: set[KeptGuest] = field(default_factory=set)
    loads_lists: bool = False
    process: int = field(default_factory=os.getpid)

    async def end_guests(self) -> None:
        async with anyio.create_task_group() as tasks:
            for kept in self.guests:
                tasks.start_soon(kept.end)


def _require_no_key(**models: object) -> None:
    """rlm-minimal's first argument was the key; here it would be taken for a model, printed and sent."""
    for name, model in models.items():
        if isinstance(model, str) and is_like_a_key(model):
            raise SettingsError(
                f"{name}= was given what looks like an API key (not shown): pass it as api_key="
            )


def _named_client(name: str) -> Client:
    if name != "offline":
        raise SettingsError(
            "client= was given a text: 'offline' is the only client that has a name. Leave client= out to ask OpenAI "
            "or the endpoint at base_url=, or give an object with `async def complete(call)`"
        )
    return OfflineClient()


def _listener(on_event: Emit) -> Emit:
    hears: object = on_event  # whatever the annotation says
    if not callable(hears) or any(map(inspect.iscoroutinefunction, (hears, type(hears).__call__))):
        raise SettingsError(
            f"on_event={on_event!r}: must be a plain function of one event, not a coroutine function"
        )
    return on_event


def _journal(path: str | os.PathLike[str] | None) -> RunJournal | None:
    if path is None:
        return None
    if not isinstance(path, (str, os.PathLike)):
        raise SettingsError(f"journal={path!r}: must be the path of a file, such as 'runs.journal'")
    return RunJournal(path)


def _scheduler_settings(
    scheduler: SchedulerSettings | None,
    max_concurrent: int | None,
    cache: Literal["off", "read", "on"] | None,
) -> SchedulerSettings:
    if scheduler is None:
        return SchedulerSettings(
            max_concurrent="auto" if max_concurrent is None else max_concurrent,
            cache="off" if cache is None else cache,
        )
    for name, value in (("max_concurrent", max_concurrent), ("cache", cache)):
        if value is not None:
            raise SettingsError(
                f"{name}={value!r} and scheduler=: set it in the SchedulerSettings, or leave those out"
            )
    return scheduler


def _names(name: str, values: Sequence[str]) -> tuple[str, ...]:
    if isinstance(values, str):
        raise SettingsError(f"{name} is one str: give a list, such as {name}=[{values!r}]")
    return tuple(values)


def _sandbox_settings(
    sandbox: SandboxSettings | Literal["auto", "strict"], cell_timeout_s: float | None
) -> SandboxSettings:
    seconds = _DEFAULTS.sandbox.cell_timeout_s if cell_timeout_s is None else cell_timeout_s
    match sandbox:
        case SandboxSettings() if cell_timeout_s is not None:
            raise SettingsError(
                f"cell_timeout_s={cell_timeout_s!r} and sandbox=SandboxSettings: set it there, or leave those out"
            )
        case SandboxSettings():
            return sandbox
        case "auto":
            return SandboxSettings(cell_timeout_s=seconds)
        case "strict":
            return SandboxSettings(cell_timeout_s=seconds, minimum_tier="confined")
        case _:
            raise SettingsError(f"sandbox={sandbox!r}: must be 'auto', 'strict' or a SandboxSettings")


def _budget(budget: Budget | float | None) -> Budget | None:
    if budget is None or isinstance(budget, Budget):
        return budget
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise SettingsError(
            f"budget={budget!r}: must be a number of dollars or a Budget, such as Budget(calls=100)"
        )
    return Budget(dollars=budget)


def _require_prices_of_ours(prices: Mapping[str, Price] | None) -> None:
    for model, own in (prices or {}).items():
        if not isinstance(own, Price):
            raise SettingsError(
                f"prices[{model!r}]={own!r}: must be a Price, such as Price(input=0.05, output=0.4)"
            )


def _openai_client(model: str, api_key: str | None, base_url: str | None) -> Client:
    """The default client; its library starts to load at once, so that it is there when the first turn is."""
    client = AsyncOpenAIClient(model, api_key=api_key, base_url=base_url)
    warm_up()
    return client


async def _doubt(context: Any, query: str | None = None) -> str:
    """What looks like a mistake about the context, as a Python warning, too: `print(answer)` shows none of its own."""
    doubt = _swapped(context, query) or await anyio.to_thread.run_sync(sources.name_of_a_file, context)
    if doubt:
        # On the portal's thread there is no line of the caller's to point at.
        warnings.warn_explicit(doubt, UserWarning, "rlm", 0, module="rlm")
    return doubt


def _swapped(context: Any, query: str | None) -> str:
    if not (isinstance(context, str) and isinstance(query, str)):
        return ""
    if len(query) < _LONG_QUESTION_CHARS or len(query) < 10 * len(context):
        return ""
    sizes = f"{len(context):,} characters and the question {len(query):,}"
    return f"the context has {sizes}: are they swapped? It is completion(context, question)"


async def _load(context: Any) -> Any:
    """The context itself, read from its files where it is made of paths.

    Raises:
        ContextError: it is empty, or a file cannot be read.
    """
    context = await anyio.to_thread.run_sync(sources.load, context)
    if context is None or (isinstance(context, Sized) and not len(context)):
        raise ContextError(f"the context is empty ({context!r}): there is nothing to ask about")
    return context
