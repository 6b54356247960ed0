"""The host's side of one guest: sends it cells, serves their host calls, and replaces a guest that dies.

    session = await open_session()
    await session.load(text)
    result = await session.run("len(context)", serve=answer_host_call)
    await session.aclose()

Any task may use a `Session`; its methods run one after the other, and no task outlives the method that started it.
The host trusts no message of the guest: it decodes only plain values, of bounded size, of the kinds it expects.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from rlm._async.groups import first_error
from rlm.errors import ContextError, GuestDied, ProtocolViolation, SessionClosed
from rlm.sandbox.cell import CellRun, HostCallHandler, OutputHandler
from rlm.sandbox.guest import frames, values
from rlm.sandbox.launchers import Launcher, local
from rlm.sandbox.messages import child_arguments, decoded, off_the_loop, read_variable
from rlm.sandbox.process import Guest, Isolation
from rlm.sandbox.shared_contexts import MOST_CONTEXT_VALUES, ContextRef
from rlm.settings import SandboxSettings

if TYPE_CHECKING:
    from rlm.values import CellResult, HostCall, Variable

__all__ = ["HostCallHandler", "Isolation", "OutputHandler", "Session", "open_session"]

INSPECT_SECONDS = 30.0


async def open_session(
    settings: SandboxSettings = SandboxSettings(),  # noqa: B008 - frozen
    *,
    launcher: Launcher | None = None,
    parent_context: ContextRef | None = None,
) -> Session:
    """Start a guest.

    Args:
        settings: limits of the guest.
        launcher: how to start the guest; by default, as a process of this machine.
        parent_context: the context that will be loaded, if it is in the shared memory of another guest.

    Raises:
        GuestStartFailed: the guest was not ready in time, or ended; `.log` is the end of its log.
    """
    if launcher is None:
        launcher = await anyio.to_thread.run_sync(local)  # it looks at files: not on the event loop
    session = Session(settings, launcher, parent_context)
    await session._start()  # noqa: SLF001 - sessions are started only here
    return session


class Session:
    """One guest, as the host uses it. Made by `open_session`."""

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

        A `ContextRef` refers to a context in the shared memory of another guest. This guest reads it without the host
        if the session was opened with it.

        Raises:
            ContextError: the context holds a value that cannot be sent, and the message names its type and path; or it
                cannot be read from shared memory.
            HostCallRefused: the host has to read the context from shared memory, and it is too large or gone.
        """
        loaded = await self._loadable(context)
        async with self._turn:
            self._require_open()
            self._loaded = loaded
            self._reset_counters()
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

        `serve` answers the cell's host calls, each in a task of its own. Its `CallError` or `HostCallRefused` is raised
        in the cell as `LLMError`; any other exception kills the cell and is raised here. `on_output` gets
        `("stdout" | "stderr", text)` while the cell runs. With `context_refs`, `serve` gets contexts of child runs in
        shared memory as `ContextRef`, else as values.

        Cancelling kills the cell and restores the variables from before it.
        """
        async with self._turn:
            self._require_open()
            lost_before = await self._ensure_guest()
            self._cells += 1
            handler = serve if context_refs else _with_values(serve)
            result = await self._cell_run(code, handler, on_output).perform()
            self._require_open()
            self._unreported_loss = False
            self._fresh_answer = self._fresh_answer and result.state != "kept"
            return dataclasses.replace(result, state="lost") if lost_before else result

    async def variables(self) -> tuple[Variable, ...]:
        """Return the variables that cells made, with bounded previews; a `__repr__` that hangs costs only previews."""
        async with self._turn:
            for safe in (False, True):
                with contextlib.suppress(ContextError):  # cells may have broken the code that lists variables
                    rows = await self._inspect({"what": "variables", "safe": safe, "name": ""})
                    if isinstance(rows, list):
                        return tuple(filter(None, map(read_variable, rows)))
            return ()

    async def fetch(self, name: str) -> Any:
        """Return the value of a variable.

        Raises:
            KeyError: no variable has this name; the message lists the names.
            ContextError: its type cannot be sent to the host.
        """
        async with self._turn:
            found = await self._inspect({"what": "fetch", "safe": True, "name": name})
        match found:
            case ("value", value):
                return value
            case ("missing", list(names)):
                listed = ", ".join(str(name) for name in names) or "none yet"
                raise KeyError(f"no variable {name!r}; the variables are: {listed}")
            case (_, str(reason)):
                raise ContextError(reason)
            case _:
                raise ContextError(f"{name}: the guest did not give its value in time")

    async def clear_answer(self) -> None:
        """Begin a new question: the next cell finds the initial `answer`."""
        async with self._turn:
            self._require_open()
            self._fresh_answer = True

    async def reset(self) -> None:
        """Forget every variable; set `context` to the value that was loaded."""
        async with self._turn:
            self._require_open()
            self._reset_counters()
            if self._guest is None:
                await self._start()
            else:
                await self._exchange(self._guest, [frames.frame(frames.RESET)], frames.LOADED)

    async def aclose(self) -> None:
        """End the guest and its processes, and remove its files. May be called again.

        A cell that another task is running ends there with `SessionClosed`.
        """
        with anyio.CancelScope(shield=True):
            self._closed = True
            # The task that runs a cell holds the lock: killing its guest makes it release the lock.
            if self._turn.locked() and self._guest is not None:
                self._guest.kill()
            async with self._turn:
                await self._discard()

    def _require_open(self) -> None:
        if self._closed:
            raise SessionClosed("this session was closed; open another one")

    def _reset_counters(self) -> None:
        self._fresh_answer = True
        self._unreported_loss = False
        self._cells = 0

    async def _loadable(self, context: Any) -> values.Parts | ContextRef:
        """Return the encoded context, or a reference if the guest can read the context itself."""
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
        """Have the guest read the context from the memory that it inherited."""
        if not guest.has_parent_memory:  # a guest without our descriptors: send the context through the host
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
        """Send a message and return the one reply; any error ends the guest, because the stream may be out of step."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(guest.send_unless_dead, message)
                kind, _, payload = await guest.receive()
            if kind != expected:
                raise ProtocolViolation(  # noqa: TRY301 - ends the guest like any other error
                    f"the guest answered with a message of kind {kind}, not {expected}"
                )
        except BaseException as error:  # noqa: BLE001 - on any error, the guest must end
            with anyio.CancelScope(shield=True):
                log = await self._discard()
            only = first_error(error)
            if isinstance(only, GuestDied) and log:
                raise GuestDied(f"{only}; its log ends:\n{log}") from None
            raise only from only.__cause__
        return payload

    async def _inspect(self, request: dict[str, Any]) -> Any:
        self._require_open()
        await self._ensure_guest()
        assert self._guest is not None  # noqa: S101 - set by `_ensure_guest`
        payload: bytes | bytearray | None = None
        # Shielded: cancelled halfway, it would leave the stream out of step, which costs all variables. It is short.
        with anyio.move_on_after(INSPECT_SECONDS, shield=True):
            payload = await self._exchange(
                self._guest,
                frames.message_frames(frames.INSPECT, 0, values.encode(request)),
                frames.INSPECTED,
            )
        if payload is None:
            raise GuestDied(f"the guest did not answer within {INSPECT_SECONDS:g} seconds and was ended")
        try:
            found = await off_the_loop(decoded, payload)
        except ProtocolViolation as violation:
            raise ContextError(str(violation)) from None
        return found

    def _cell_run(self, code: str, serve: HostCallHandler, on_output: OutputHandler | None) -> CellRun:
        assert self._guest is not None  # noqa: S101 - set by `_ensure_guest`
        cell = {
            "cell": self._cells,
            "code": code,
            "fresh_answer": self._fresh_answer,
            "timeout": float(self._settings.cell_timeout_s),
        }
        return CellRun(
            self._guest, cell, self._settings, serve=serve, on_output=on_output, discard=self._discard
        )

    async def _ensure_guest(self) -> bool:
        """Start a guest if the last one ended. Return True if variables were lost and no result has reported it."""
        if self._guest is None:
            await self._start()
        lost, self._unreported_loss = self._unreported_loss, False
        return lost

    async def _discard(self) -> str:
        """End the guest, if there is one; return the end of its log."""
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
    """Return a handler that reads contexts from shared memory before it calls `serve`."""

    async def served(call: HostCall) -> Any:
        for child in child_arguments(call):
            if isinstance(context := child.get("context"), ContextRef):
                child["context"] = await context.value()
        return await serve(call)

    return served
