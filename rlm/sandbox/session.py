"""The host's side of one guest: feed it cells, serve its calls, and survive whatever it does.

    session = await open_session()
    await session.load(text)
    result = await session.run("len(context)", serve=answer_host_call)
    await session.aclose()

A `Session` may be held by one task and used by another; calls take turns. No task outlives a method. The host
trusts nothing that arrives: it only decodes plain values, of bounded size, of the kinds that are due.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.to_thread

from rlm._async.groups import first_error
from rlm.errors import ContextError, GuestDied, GuestStartFailed, ProtocolViolation, SessionClosed
from rlm.sandbox.cell import CellRun, HostCallHandler, OutputHandler
from rlm.sandbox.guest import frames, values
from rlm.sandbox.launchers import Launcher, local
from rlm.sandbox.messages import children_of, decoded, off_the_loop, variable_of
from rlm.sandbox.process import Guest, Isolation
from rlm.sandbox.shared_contexts import MOST_CONTEXT_VALUES, ContextRef
from rlm.settings import SandboxSettings

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from rlm.values import CellResult, HostCall, Variable

__all__ = ["HostCallHandler", "Isolation", "OutputHandler", "Session", "WarmPool", "open_session"]

ASK_SECONDS = 30.0


async def open_session(
    settings: SandboxSettings = SandboxSettings(),  # noqa: B008 - frozen
    *,
    launcher: Launcher | None = None,
    parent_context: ContextRef | None = None,
) -> Session:
    """Start a guest.

    Args:
        settings: its limits.
        launcher: how to start it; by default, as a process of this machine.
        parent_context: what is going to be loaded, where that lies on the shelf of another guest.

    Raises:
        GuestStartFailed: it did not get ready in time, or ended; `.log` is what it wrote.
    """
    session = Session(settings, local() if launcher is None else launcher, parent_context)
    await session._start()  # noqa: SLF001 - there is no session that was not started here
    return session


class WarmPool:
    """Keeps one guest ready, so that opening a session takes a few milliseconds instead of a cold start.

        async with WarmPool(settings) as pool:
            session = await pool.open_session()

    Whoever opened a session closes it; the spare guest is closed with the pool.
    """

    def __init__(
        self,
        settings: SandboxSettings = SandboxSettings(),  # noqa: B008 - frozen
        *,
        launcher: Launcher | None = None,
    ) -> None:
        self._settings = settings
        self._launcher = launcher
        self._spare: Session | None = None
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        self._tasks = await anyio.create_task_group().__aenter__()
        self._refill()
        return self

    async def __aexit__(self, *error: object) -> None:
        tasks, self._tasks = self._tasks, None
        if tasks is not None:
            tasks.cancel_scope.cancel()
            await tasks.__aexit__(None, None, None)
        if self._spare is not None:
            await self._spare.aclose()

    async def open_session(self) -> Session:
        """The spare guest, or a new one where it is not ready yet; the next spare is started meanwhile."""
        session, self._spare = self._spare, None
        if session is None:
            session = await open_session(self._settings, launcher=self._launcher)
        self._refill()
        return session

    def _refill(self) -> None:
        if self._tasks is not None:
            self._tasks.start_soon(self._start_spare)

    async def _start_spare(self) -> None:
        """A spare is a convenience: where it does not start, whoever opens a session hears why."""
        with contextlib.suppress(GuestStartFailed):
            spare = await open_session(self._settings, launcher=self._launcher)
            if self._spare is None and self._tasks is not None:
                self._spare = spare
            else:
                await spare.aclose()


class Session:
    """One guest in the host's hand. Made by `open_session`."""

    isolation: Isolation

    def __init__(
        self, settings: SandboxSettings, launcher: Launcher, parent_context: ContextRef | None = None
    ) -> None:
        self._settings = settings
        self._launcher = launcher
        self._parent_context = parent_context
        self._turn = anyio.Lock()
        self._guest: Guest | None = None
        self._loaded: values.Parts | ContextRef | None = None
        self._fresh_answer = True
        self._cells = 0
        self._unreported_loss = False
        self._closed = False

    async def load(self, context: Any) -> None:
        """Set `context` and forget every variable.

        A `ContextRef` is the context that lies there. Where it is the one that this session was opened with, the
        guest reads it itself.

        Raises:
            ContextError: it holds a value that cannot cross; the message names its type and place. Or it lies on a
                shelf and cannot be read.
            HostCallRefused: it lies on a shelf and does not fit into the memory of the host, or is gone.
        """
        loaded = await self._loadable(context)
        async with self._turn:
            self._require_open()
            self._loaded = loaded
            self._begin_anew()
            if self._guest is None:
                await self._start()
            else:
                await self._reload(self._guest)

    async def run(
        self,
        code: str,
        *,
        serve: HostCallHandler,
        on_output: OutputHandler | None = None,
        context_refs: bool = False,
    ) -> CellResult:
        """Run one cell.

        `serve` answers what the cell asks of the host; each call runs in a task of its own. Where it raises
        `CallError` or `HostCallRefused`, that is raised in the cell as `LLMError`; any other exception kills
        the cell and is raised here. `on_output` gets `("stdout" | "stderr", text)` as it comes. With `context_refs`
        the contexts of child runs are handed to `serve` as they lie on the guest's shelf; else it gets the values.

        Cancelled, it kills the cell, and the variables are as before.
        """
        async with self._turn:
            self._require_open()
            lost_before = await self._revive()
            self._cells += 1
            handler = serve if context_refs else _with_values(serve)
            result = await self._cell_run(code, handler, on_output).perform()
            self._require_open()
            self._unreported_loss = False
            self._fresh_answer = self._fresh_answer and result.state != "kept"
            return dataclasses.replace(result, state="lost") if lost_before else result

    async def variables(self) -> tuple[Variable, ...]:
        """What the cells made, with bounded previews; a `__repr__` that hangs or lies costs a preview."""
        async with self._turn:
            for plain in (False, True):
                with contextlib.suppress(ContextError):  # the cells may have changed how their process tells
                    told = await self._ask({"what": "variables", "safe": plain, "name": ""})
                    if isinstance(told, list):
                        return tuple(filter(None, map(variable_of, told)))
            return ()

    async def fetch(self, name: str) -> Any:
        """The value of a variable.

        Raises:
            KeyError: there is none of this name; the message lists those there are.
            ContextError: its type cannot cross.
        """
        async with self._turn:
            told = await self._ask({"what": "fetch", "safe": True, "name": name})
        match told:
            case ("value", value):
                return value
            case ("missing", list(names)):
                there = ", ".join(str(name) for name in names) or "none yet"
                raise KeyError(f"no variable {name!r}; the variables are: {there}")
            case (_, str(reason)):
                raise ContextError(reason)
            case _:
                raise ContextError(f"{name}: the guest did not give its value in time")

    async def clear_answer(self) -> None:
        """A new question begins: the next cell finds `answer` as it was at first."""
        async with self._turn:
            self._require_open()
            self._fresh_answer = True

    async def reset(self) -> None:
        """Forget every variable; `context` is as it was loaded."""
        async with self._turn:
            self._require_open()
            self._begin_anew()
            if self._guest is None:
                await self._start()
            else:
                await self._exchange(self._guest, [frames.frame(frames.RESET)], frames.LOADED)

    async def aclose(self) -> None:
        """End the guest and all it started; nothing is left of it. Again is no error.

        A cell that is under way in another task ends there with `SessionClosed`.
        """
        with anyio.CancelScope(shield=True):
            self._closed = True
            if self._turn.locked() and self._guest is not None:
                self._guest.kill()
            async with self._turn:
                await self._discard()

    def _require_open(self) -> None:
        if self._closed:
            raise SessionClosed("this session was closed; open another one")

    def _begin_anew(self) -> None:
        self._fresh_answer = True
        self._unreported_loss = False
        self._cells = 0

    async def _loadable(self, context: Any) -> values.Parts | ContextRef:
        """The context as it is sent, or where the guest can read it."""
        parent_context, self._parent_context = self._parent_context, None
        if isinstance(context, ContextRef):
            if context is parent_context and (self._guest is None or self._guest.has_parent_memory):
                return context
            context = await context.value()
        return await anyio.to_thread.run_sync(_encode_context, context)

    async def _start(self) -> None:
        parent_context = self._loaded if isinstance(self._loaded, ContextRef) else self._parent_context
        self._guest, facts = await Guest.start(self._settings, self._launcher, parent_context)
        self.isolation = facts
        if self._loaded is not None:
            await self._reload(self._guest)

    async def _reload(self, guest: Guest) -> None:
        match self._loaded:
            case ContextRef() as parent_context:
                await self._load_from_parent(guest, parent_context)
            case list() as parts:
                await self._exchange(guest, frames.message_frames(frames.LOAD, 0, parts), frames.LOADED)

    async def _load_from_parent(self, guest: Guest, parent_context: ContextRef) -> None:
        """Have the guest read the context that it was started with."""
        if not guest.has_parent_memory:  # it has no descriptors of ours: through the host, then
            self._loaded = await self._loadable(parent_context)
            return await self._reload(guest)
        guest.has_parent_memory = False
        place = {
            "offset": parent_context.offset,
            "length": parent_context.length,
            "max_values": MOST_CONTEXT_VALUES,
        }
        request = frames.message_frames(frames.LOAD_SHARED, 0, values.encode(place))
        problem = decoded(await self._exchange(guest, request, frames.LOADED))
        if problem is not None:
            raise ContextError(f"the context cannot be read: {problem}")
        return None

    async def _exchange(self, guest: Guest, message: Any, expected: int) -> bytes | bytearray:
        """Say something and hear the one answer; whatever goes wrong ends the guest."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(guest.offer, message)
                kind, _, payload = await guest.receive()
            if kind != expected:
                raise ProtocolViolation(  # noqa: TRY301 - as everything that goes wrong here
                    f"the guest answered with a message of kind {kind}, not {expected}"
                )
        except BaseException as error:  # noqa: BLE001 - whatever it is, the guest must not outlive it
            with anyio.CancelScope(shield=True):
                log = await self._discard()
            only = first_error(error)
            if isinstance(only, GuestDied) and log:
                raise GuestDied(f"{only}; its log ends:\n{log}") from None
            raise only from only.__cause__
        return payload

    async def _ask(self, question: dict[str, Any]) -> Any:
        self._require_open()
        await self._revive()
        assert self._guest is not None  # noqa: S101 - _revive has seen to it
        payload: bytes | bytearray | None = None
        # Shielded, because half a conversation would cost all variables; and soon over.
        with anyio.move_on_after(ASK_SECONDS, shield=True):
            payload = await self._exchange(
                self._guest,
                frames.message_frames(frames.INSPECT, 0, values.encode(question)),
                frames.INSPECTED,
            )
        if payload is None:
            raise GuestDied(f"the guest did not answer within {ASK_SECONDS:g} seconds and was ended")
        try:
            told = await off_the_loop(decoded, payload)
        except ProtocolViolation as violation:
            raise ContextError(str(violation)) from None
        return tuple(told) if isinstance(told, tuple) else told

    def _cell_run(self, code: str, serve: HostCallHandler, on_output: OutputHandler | None) -> CellRun:
        assert self._guest is not None  # noqa: S101 - `_revive` has seen to it
        cell = {
            "cell": self._cells,
            "code": code,
            "fresh_answer": self._fresh_answer,
            "timeout": float(self._settings.cell_timeout_s),
        }
        return CellRun(
            self._guest, cell, self._settings, serve=serve, on_output=on_output, discard=self._discard
        )

    async def _revive(self) -> bool:
        """Have a guest, whatever happened to the last one; whether variables were lost and nobody was told."""
        if self._guest is None:
            await self._start()
        lost, self._unreported_loss = self._unreported_loss, False
        return lost

    async def _discard(self) -> str:
        """End the guest, if there is one; what it logged last."""
        guest, self._guest = self._guest, None
        if guest is None:
            return ""
        self._unreported_loss = self._cells > 0
        return await guest.end()


def _encode_context(context: Any) -> values.Parts:
    try:
        return values.encode(context)
    except values.Uncrossable as problem:
        raise ContextError(f"context{problem.path}: {problem.reason}") from None


def _with_values(serve: HostCallHandler) -> HostCallHandler:
    """The same for a handler that knows of no shelf."""

    async def served(call: HostCall) -> Any:
        for child in children_of(call):
            if isinstance(context := child.get("context"), ContextRef):
                child["context"] = await context.value()
        return await serve(call)

    return served
