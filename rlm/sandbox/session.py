# ruff: noqa: SLF001 - a session, its cell under way and its guest are one room with three doors
"""The host's side of one guest: feed it cells, serve its calls, and survive whatever it does.

    session = await open_session()
    await session.load(text)
    result = await session.run("len(context)", serve=answer_host_call)
    await session.aclose()

A `Session` may be held by one task and used by another; calls take turns. No task outlives a method. The host
trusts nothing that arrives: it only decodes plain values, of bounded size, of the kinds that are due.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import dataclasses
import functools
import tempfile
from collections import deque
from dataclasses import dataclass, field
from subprocess import PIPE
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar, get_args

import anyio
import anyio.lowlevel
import anyio.to_thread

from rlm.errors import (
    CallError,
    ContextError,
    GuestDied,
    GuestStartFailed,
    HostCallRefused,
    IsolationUnavailable,
    ProtocolViolation,
    SessionClosed,
)
from rlm.sandbox.guest import wire
from rlm.sandbox.guest.sketch import Sketch
from rlm.sandbox.launchers import Launcher, local
from rlm.sandbox.launchers.command import guest_code
from rlm.sandbox.scratch import Scratch
from rlm.sandbox.shelf import SHELVED_VALUES, Shelf, Shelved, make_shelf
from rlm.settings import IsolationTier, SandboxSettings
from rlm.values import CellResult, Final, HostCall, Variable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import IO

    from anyio.abc import Process, TaskGroup

T = TypeVar("T")
HostCallHandler: TypeAlias = "Callable[[HostCall], Awaitable[Any]]"
OutputHandler: TypeAlias = "Callable[[str, str], None]"

__all__ = ["HostCallHandler", "Isolation", "OutputHandler", "Session", "WarmPool", "open_session"]

CALL_BYTES = 256 << 20
LARGE_BYTES = 1 << 16
SMALL_BYTES = 1 << 20
DECODED_VALUES = SHELVED_VALUES
MOST_OFFSET = 1 << 63
PLACES_BYTES = 4 << 20
OVERDUE_SECONDS = 30.0
KILL_SECONDS = 10.0
ASK_SECONDS = 30.0
END_SECONDS = 2.0
LOG_CHARS = 4000
CONFINED = frozenset({"files", "network", "signals", "programs"})
STREAMS = {1: "stdout", 2: "stderr"}
OUTCOMES = frozenset({"ok", "raised", "timeout", "memory", "exited", "crashed", "protocol", "cancelled"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """What confines a guest, as it found by trying.

    Attributes:
        tier: the tier that is reached.
        levels: what is in force.
        missing: what is not, each with the reason.
        python: the version of the guest's interpreter.
        platform: the guest's `sys.platform`.
        recovers: whether a cell that dies costs only that cell (a fork before each), or all variables.
    """

    tier: IsolationTier
    levels: tuple[str, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)
    python: str = ""
    platform: str = ""
    recovers: bool = True


async def open_session(
    settings: SandboxSettings = SandboxSettings(),  # noqa: B008 - frozen
    *,
    launcher: Launcher | None = None,
    piece: Shelved | None = None,
) -> Session:
    """Start a guest.

    Args:
        settings: its limits.
        launcher: how to start it; by default, as a process of this machine.
        piece: what is going to be loaded, where that lies on the shelf of another guest.

    Raises:
        GuestStartFailed: it did not get ready in time, or ended; `.log` is what it wrote.
    """
    session = Session(settings, local() if launcher is None else launcher, piece)
    await session._start()
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

    def __init__(self, settings: SandboxSettings, launcher: Launcher, piece: Shelved | None = None) -> None:
        self._settings = settings
        self._launcher = launcher
        self._piece = piece
        self._turn = anyio.Lock()
        self._guest: _Guest | None = None
        self._loaded: wire.Parts | Shelved | None = None
        self._fresh_answer = True
        self._cells = 0
        self._unreported_loss = False
        self._closed = False

    async def load(self, context: Any) -> None:
        """Set `context` and forget every variable.

        A `Shelved` is the context that lies there. Where it is the one that this session was opened with, the
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
        keep_shelved: bool = False,
    ) -> CellResult:
        """Run one cell.

        `serve` answers what the cell asks of the host; each call runs in a task of its own. Where it raises
        `CallError` or `HostCallRefused`, that is raised in the cell as `LLMError`; any other exception kills
        the cell and is raised here. `on_output` gets `("stdout" | "stderr", text)` as it comes. With `keep_shelved`
        the contexts of child runs are handed to `serve` as they lie on the guest's shelf; else it gets the values.

        Cancelled, it kills the cell, and the variables are as before.
        """
        async with self._turn:
            self._require_open()
            lost_before = await self._revive()
            self._cells += 1
            handler = serve if keep_shelved else _with_values(serve)
            result = await _CellRun(self, code, handler, on_output).perform()
            self._require_open()
            self._unreported_loss = False
            self._fresh_answer = self._fresh_answer and result.state != "kept"
            return dataclasses.replace(result, state="lost") if lost_before else result

    async def variables(self) -> tuple[Variable, ...]:
        """What the cells made, with bounded previews; a `__repr__` that hangs or lies costs a preview."""
        async with self._turn:
            for plain in (False, True):
                with contextlib.suppress(ContextError):  # the cells may have changed how their process tells
                    told = await self._ask({"what": "variables", "plain": plain, "name": ""})
                    if isinstance(told, list):
                        return tuple(filter(None, map(_variable, told)))
            return ()

    async def fetch(self, name: str) -> Any:
        """The value of a variable.

        Raises:
            KeyError: there is none of this name; the message lists those there are.
            ContextError: its type cannot cross.
        """
        async with self._turn:
            told = await self._ask({"what": "fetch", "plain": True, "name": name})
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
                await self._exchange(self._guest, [wire.frame(wire.RESET)], wire.LOADED)

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

    async def _loadable(self, context: Any) -> wire.Parts | Shelved:
        """The context as it is sent, or where the guest can read it."""
        piece, self._piece = self._piece, None
        if isinstance(context, Shelved):
            if context is piece and (self._guest is None or self._guest.has_piece):
                return context
            context = await context.value()
        return await anyio.to_thread.run_sync(_encode_context, context)

    async def _start(self) -> None:
        piece = self._loaded if isinstance(self._loaded, Shelved) else self._piece
        self._guest, facts = await _Guest.start(self._settings, self._launcher, piece)
        self.isolation = facts
        if self._loaded is not None:
            await self._reload(self._guest)

    async def _reload(self, guest: _Guest) -> None:
        match self._loaded:
            case Shelved() as piece:
                await self._pick(guest, piece)
            case list() as parts:
                await self._exchange(guest, wire.frames(wire.LOAD, 0, parts), wire.LOADED)

    async def _pick(self, guest: _Guest, piece: Shelved) -> None:
        """Have the guest read the piece that it was started with."""
        if not guest.has_piece:  # it has no descriptors of ours: through the host, then
            self._loaded = await self._loadable(piece)
            return await self._reload(guest)
        guest.has_piece = False
        place = {"offset": piece.offset, "length": piece.length, "values": SHELVED_VALUES}
        frames = wire.frames(wire.PICK, 0, wire.encode(place))
        problem = _decode(await self._exchange(guest, frames, wire.LOADED))
        if problem is not None:
            raise ContextError(f"the context cannot be read: {problem}")
        return None

    async def _exchange(self, guest: _Guest, frames: Any, expected: int) -> bytes | bytearray:
        """Say something and hear the one answer; whatever goes wrong ends the guest."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(guest.offer, frames)
                kind, _, payload = await guest.receive()
            if kind != expected:
                raise ProtocolViolation(  # noqa: TRY301 - as everything that goes wrong here
                    f"the guest answered with a message of kind {kind}, not {expected}"
                )
        except BaseException as error:  # noqa: BLE001 - whatever it is, the guest must not outlive it
            with anyio.CancelScope(shield=True):
                log = await self._discard()
            alone = _alone(error)
            if isinstance(alone, GuestDied) and log:
                raise GuestDied(f"{alone}; its log ends:\n{log}") from None
            raise alone from alone.__cause__
        return payload

    async def _ask(self, question: dict[str, Any]) -> Any:
        self._require_open()
        await self._revive()
        assert self._guest is not None  # noqa: S101 - _revive has seen to it
        payload: bytes | bytearray | None = None
        # Shielded, because half a conversation would cost all variables; and soon over.
        with anyio.move_on_after(ASK_SECONDS, shield=True):
            payload = await self._exchange(
                self._guest, wire.frames(wire.ASK, 0, wire.encode(question)), wire.TOLD
            )
        if payload is None:
            raise GuestDied(f"the guest did not answer within {ASK_SECONDS:g} seconds and was ended")
        try:
            told = await _off_the_loop(_decode, payload)
        except ProtocolViolation as violation:
            raise ContextError(str(violation)) from None
        return tuple(told) if isinstance(told, tuple) else told

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
        # Alone, it may be deep in a cell; else its supervisor ends all it started.
        return await guest.end(END_SECONDS if guest.isolation.recovers else 0.1)


def _encode_context(context: Any) -> wire.Parts:
    try:
        return wire.encode(context)
    except wire.Uncrossable as problem:
        raise ContextError(f"context{problem.path}: {problem.reason}") from None


def _with_values(serve: HostCallHandler) -> HostCallHandler:
    """The same for a handler that knows of no shelf."""

    async def served(call: HostCall) -> Any:
        for child in _children(call):
            if isinstance(context := child.get("context"), Shelved):
                child["context"] = await context.value()
        return await serve(call)

    return served


def _children(call: HostCall) -> list[dict[str, Any]]:
    """The arguments that stand for one child run each."""
    match call:
        case HostCall("rlm_query", dict(arguments)):
            return [arguments]
        case HostCall("rlm_batch", {"items": list(items)}):
            return [item for item in items if isinstance(item, dict)]
        case _:
            return []


def _variable(row: Any) -> Variable | None:
    match row:
        case (str(name), str(kind), int() | None as length, str(preview)):
            return Variable(name=name, type_name=kind, length=length, preview=preview)
        case _:
            return None  # described in a way of its own


def _alone(error: BaseException) -> BaseException:
    """The one exception that a task group wrapped, as itself."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


class _CellRun:
    """One cell from RUN to ENDED."""

    def __init__(
        self, session: Session, code: str, serve: HostCallHandler, on_output: OutputHandler | None
    ) -> None:
        assert session._guest is not None  # noqa: S101 - run has revived it
        self._session = session
        self._guest = session._guest
        self._settings = session._settings
        self._code = code
        self._serve = serve
        self._output = {
            number: _Output(name, self._settings.output_chars, on_output) for number, name in STREAMS.items()
        }
        self._is_sent = False
        self._report: Any = None
        self._failure: BaseException | None = None
        self._complaint = ""
        self._calls: dict[int, int] = {}
        self._told: tuple[int, list[tuple[int, int]]] | None = None
        self._began = anyio.current_time()
        self._watch = anyio.CancelScope()

    async def perform(self) -> CellResult:
        """Run it; the guest is usable afterwards, or is replaced when it is next needed."""
        try:
            async with anyio.create_task_group() as tasks:
                with self._watch:
                    self._set_deadline()
                    verdict = await self._follow(tasks)
                if self._watch.cancelled_caught:
                    verdict = await self._broken_off()
                tasks.cancel_scope.cancel()
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await self._kill_cell()
            alone = _alone(error)
            if alone is error:
                raise
            raise alone from alone.__cause__  # a failure of `on_output`, without the task group's wrapping
        if self._failure is not None:
            raise self._failure
        return self._result(verdict)

    async def _follow(self, tasks: TaskGroup) -> dict[str, Any]:
        """Listen to the guest until its last word on this cell."""
        try:
            cell = {
                "cell": self._session._cells,
                "code": self._code,
                "fresh_answer": self._session._fresh_answer,
                "timeout": float(self._settings.cell_timeout_s),
            }
            tasks.start_soon(self._send_cell, cell)
            while True:
                kind, number, payload = await self._guest.receive()
                if kind == wire.ENDED:
                    return _verdict(payload)
                await self._take(kind, number, payload, tasks)
        except (GuestDied, ProtocolViolation) as broken:
            return await self._lost(broken)

    async def _take(self, kind: int, number: int, payload: bytes | bytearray, tasks: TaskGroup) -> None:
        if kind == wire.OUTPUT and number in self._output:
            self._output[number].take(payload)
        elif kind == wire.PLACES and self._told is None and self._guest.shelf is not None:
            self._told = number, await _off_the_loop(_places, payload)
        elif kind == wire.CALL and number not in self._calls:
            places = self._places_of(number)
            self._calls[number] = len(payload)
            self._set_deadline()
            if sum(self._calls.values()) > CALL_BYTES:
                self._complain(f"the cell has calls of more than {CALL_BYTES:,} bytes under way")
            else:
                tasks.start_soon(self._answer, number, payload, places)
        elif kind == wire.DONE and self._report is None:
            self._report = await _off_the_loop(_report, payload)
        else:
            raise ProtocolViolation(f"a message of kind {kind} out of turn")

    def _places_of(self, number: int) -> list[tuple[int, int]]:
        """Where the supervisor said that the pieces of this call lie."""
        told, self._told = self._told, None
        if told is None:
            return []
        if told[0] != number:
            raise ProtocolViolation("the guest named places for a call that it did not make")
        return told[1]

    async def _answer(self, number: int, payload: bytes | bytearray, places: list[tuple[int, int]]) -> None:
        """Serve one call; its task ends with its cell."""
        try:
            call = await _off_the_loop(_host_call, payload)
        except ProtocolViolation as violation:
            self._complain(str(violation))
            return
        try:
            self._find_pieces(call, number, places)
            reply: tuple[Any, ...] = (True, await self._serve(call))
            parts = wire.encode(reply)
        except (CallError, HostCallRefused) as refusal:
            parts = wire.encode((False, type(refusal).__name__, str(refusal)))
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends the run; `perform` raises it
            self._fail(error)
            return
        self._calls.pop(number, None)  # the cell may use the number again as soon as it has the reply
        await self._guest.offer(wire.frames(wire.REPLY, number, parts))
        self._set_deadline()

    def _find_pieces(self, call: HostCall, number: int, places: list[tuple[int, int]]) -> None:
        """Put the contexts that are on the shelf in their place among the arguments, where the cell named them.

        Raises:
            HostCallRefused: there is none of this number, or what the cell says of it is in no form of ours.
        """
        for child in _children(call):
            if "shelved" in child:
                child["context"] = self._piece(child.pop("shelved"), number, places)

    def _piece(self, named: Any, number: int, places: list[tuple[int, int]]) -> Shelved:
        shelf = self._guest.shelf
        match named:
            case (int(index), drawn) if shelf is not None and 0 <= index < len(places):
                offset, length = places[index]
                try:
                    sketch = Sketch.read(drawn)
                except ValueError as error:
                    raise HostCallRefused(str(error)) from None
                return Shelved(shelf, offset, length, sketch, functools.partial(self._reserve, number))
            case _:
                raise HostCallRefused("there is no such context on the shelf")

    def _reserve(self, number: int, count: int) -> None:
        """Count what of a piece comes into our memory as if it had come with the call."""
        if sum(self._calls.values()) + count > CALL_BYTES:
            raise HostCallRefused(
                f"contexts of more than {CALL_BYTES:,} bytes are under way: pass smaller pieces, or fewer at once"
            )
        self._calls[number] = self._calls.get(number, 0) + count

    async def _send_cell(self, cell: dict[str, Any]) -> None:
        self._is_sent = True
        with anyio.move_on_after(KILL_SECONDS, shield=True) as sending:
            await self._guest.offer(wire.frames(wire.RUN, 0, wire.encode(cell)))
        if sending.cancelled_caught:
            self._guest.kill()  # half a cell cannot be killed

    def _complain(self, complaint: str) -> None:
        """What a cell says may be garbage; the frames around it were in order, so it costs the cell alone."""
        self._complaint = self._complaint or complaint
        self._watch.cancel()

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        self._watch.cancel()

    def _set_deadline(self) -> None:
        """The guest stops a cell by itself; a guest that does not do so in time is stopped from here."""
        grace = OVERDUE_SECONDS if self._guest.isolation.recovers else 0.0
        waits = bool(self._calls)
        self._watch.deadline = (
            float("inf") if waits else anyio.current_time() + self._settings.cell_timeout_s + grace
        )

    async def _broken_off(self) -> dict[str, Any]:
        """The cell was stopped from here: by a handler's failure, or because the guest was overdue."""
        if self._failure is not None or self._complaint:
            with anyio.CancelScope(shield=True):
                verdict = await self._kill_cell()
            return {**verdict, "outcome": "protocol", "error": self._complaint}
        with anyio.CancelScope(shield=True):
            await self._session._discard()
        seconds = self._settings.cell_timeout_s
        return _own_verdict("timeout", f"the cell computed for more than {seconds:g} seconds and was stopped")

    async def _kill_cell(self) -> dict[str, Any]:
        """Have the cell killed, and hear the end of it, so that the guest is ready for the next one."""
        guest = self._session._guest
        if guest is None or not self._is_sent:
            return _own_verdict("cancelled", "")
        if not guest.isolation.recovers:
            await self._session._discard()
            return _own_verdict("cancelled", "")
        with anyio.move_on_after(KILL_SECONDS):
            try:
                await guest.send([wire.frame(wire.CANCEL)])
                while True:
                    kind, _, payload = await guest.receive()
                    if kind == wire.ENDED:
                        return _verdict(payload)
            except (GuestDied, ProtocolViolation):
                pass
        await self._session._discard()
        return _own_verdict("cancelled", "")

    async def _lost(self, broken: GuestDied | ProtocolViolation) -> dict[str, Any]:
        with anyio.CancelScope(shield=True):
            await self._session._discard()
        outcome = "protocol" if isinstance(broken, ProtocolViolation) else "crashed"
        return _own_verdict(outcome, f"{broken}; the guest was started anew")

    def _result(self, verdict: dict[str, Any]) -> CellResult:
        outcome, error, draft, final = verdict["outcome"], verdict["error"], None, None
        if not outcome:
            if self._report is None:
                raise ProtocolViolation("the guest ended a cell without a report")
            outcome, error, draft, final = self._report
        stdout, stderr = self._output[1], self._output[2]
        return CellResult(
            stdout=stdout.finish(),
            stderr=stderr.finish(),
            stdout_chars=stdout.count,
            stderr_chars=stderr.count,
            error=error,
            outcome=outcome,
            state=verdict["state"],
            final=final,
            draft=draft,
            execution_time=anyio.current_time() - self._began,
            compute_time=verdict["compute"],
        )


def _own_verdict(outcome: str, error: str) -> dict[str, Any]:
    return {"outcome": outcome, "error": error, "state": "lost", "wall": 0.0, "compute": 0.0}


def _verdict(payload: bytes | bytearray) -> dict[str, Any]:
    match _decode(payload):
        case {
            "outcome": str(outcome),
            "error": str(),
            "state": "kept" | "rolled back" | "lost",
            "compute": float(),
            **_rest,
        } as verdict if outcome in OUTCOMES or not outcome:
            return dict(verdict)
        case _:
            raise ProtocolViolation("the guest ended a cell in a way of its own")


def _report(payload: bytes | bytearray) -> tuple[str, str, Any, Final | None]:
    """What a cell's process says of it; where that cannot be read, the cell is kept and its answer is not."""
    try:
        told = _decode(payload)
    except ProtocolViolation as violation:
        return "protocol", str(violation), None, None
    match told:
        case (("ok" | "raised" | "exited") as outcome, str(error), draft, None):
            return outcome, error, draft, None
        case (
            ("ok" | "raised" | "exited") as outcome,
            str(error),
            draft,
            (("FINAL" | "FINAL_VAR" | "answer") as source, value),
        ):
            return outcome, error, draft, Final(value, source)
        case _:
            return "protocol", "the cell's process reported on it in a way of its own", None, None


async def _off_the_loop(read: Callable[[bytes | bytearray], T], payload: bytes | bytearray) -> T:
    """Read a payload; a large one in a thread, so that a guest cannot hold up everybody else."""
    if len(payload) <= LARGE_BYTES:
        return read(payload)
    return await anyio.to_thread.run_sync(read, payload)


def _host_call(payload: bytes | bytearray) -> HostCall:
    match _decode(payload):
        case (str(name), dict(arguments)):
            return HostCall(name, arguments)
        case _:
            raise ProtocolViolation("the guest made a call in a way of its own")


def _places(payload: bytes | bytearray) -> list[tuple[int, int]]:
    match _decode(payload):
        case [*numbers] if len(numbers) % 2 == 0 and all(map(_is_offset, numbers)):
            return list(zip(numbers[::2], numbers[1::2], strict=True))
        case _:
            raise ProtocolViolation("the guest named places in a way of its own")


def _is_offset(number: Any) -> bool:
    return type(number) is int and 0 <= number < MOST_OFFSET


def _decode(payload: bytes | bytearray) -> Any:
    try:
        return wire.decode(payload, values=DECODED_VALUES)
    except wire.WireError as error:
        raise ProtocolViolation(f"the guest sent what is not a value: {error}") from None


class _Output:
    """One stream of a cell: the whole as it comes, the head and tail of it to keep."""

    def __init__(self, name: str, limit: int, on_output: OutputHandler | None) -> None:
        self._name = name
        self._head_left = limit - limit // 2
        self._tail_limit = limit // 2
        self._head: list[str] = []
        self._tail: deque[str] = deque()
        self._tail_size = 0
        self._on_output = on_output
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.count = 0

    def take(self, data: bytes | bytearray, *, final: bool = False) -> None:
        """Add what came."""
        text = self._decoder.decode(data, final)
        if not text:
            return
        if self._on_output is not None:
            self._on_output(self._name, text)
        self.count += len(text)
        if self._head_left:
            self._head.append(text[: self._head_left])
            text = text[len(self._head[-1]) :]
            self._head_left -= len(self._head[-1])
        if text:
            self._tail.append(text[-self._tail_limit :])
            self._tail_size += len(self._tail[-1])
            while self._tail_size - len(self._tail[0]) >= self._tail_limit:
                self._tail_size -= len(self._tail.popleft())

    def finish(self) -> str:
        """The head and tail, with a line between them that counts what was cut."""
        self.take(b"", final=True)
        head, tail = "".join(self._head), "".join(self._tail)
        if self._tail_limit:
            tail = tail[-self._tail_limit :]
        cut = self.count - len(head) - len(tail)
        return f"{head}\n… {cut:,} characters cut …\n{tail}" if cut else head + tail


class _Guest:
    """A running guest: its process, its two streams, its scratch folder and its log."""

    isolation: Isolation

    def __init__(self, process: Process, belongings: _Belongings, answer_bytes: int) -> None:
        self._process = process
        self._belongings = belongings
        self.shelf = belongings.shelf
        self.has_piece = False
        self._sending = anyio.Lock()
        self._messages: deque[tuple[int, int, bytes | bytearray]] = deque()
        self._assembler = wire.Assembler(
            {
                wire.READY: SMALL_BYTES,
                wire.LOADED: SMALL_BYTES,
                wire.OUTPUT: wire.FRAME_BYTES,
                wire.CALL: CALL_BYTES,
                wire.PLACES: PLACES_BYTES,
                wire.DONE: 2 * answer_bytes + 8 * SMALL_BYTES,
                wire.ENDED: SMALL_BYTES,
                wire.TOLD: answer_bytes + 8 * SMALL_BYTES,
            }
        )

    @classmethod
    async def start(
        cls, settings: SandboxSettings, launcher: Launcher, piece: Shelved | None = None
    ) -> tuple[_Guest, Isolation]:
        """Launch a guest, send it its code and settings, and hear that it is ready."""
        try:
            belongings, code = await anyio.to_thread.run_sync(_prepare, settings, launcher)
        except OSError as error:
            raise GuestStartFailed(f"nothing could be prepared for a guest: {error}") from error
        inherited = {"shelf": -1, "piece": -1}
        try:
            with contextlib.ExitStack() as while_starting:
                if belongings.shelf is not None:
                    inherited["shelf"] = belongings.shelf.writing
                    if piece is not None:
                        inherited["piece"] = while_starting.enter_context(piece.shelf.opened())
                with anyio.CancelScope(shield=True):  # soon over; half started, it would be nobody's to end
                    process = await anyio.open_process(
                        launcher.command(),
                        stdin=PIPE,
                        stdout=PIPE,
                        stderr=belongings.log,
                        env=launcher.variables(),
                        cwd=None if belongings.scratch is None else belongings.scratch.path,
                        start_new_session=True,
                        pass_fds=[number for number in inherited.values() if number >= 0],
                    )
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(belongings.clear_up)
            if isinstance(error, OSError):
                raise GuestStartFailed(f"the {launcher.name} launcher did not start: {error}") from error
            raise
        guest = cls(process, belongings, settings.answer_bytes)
        guest.has_piece = inherited["piece"] >= 0
        if belongings.shelf is not None:
            belongings.shelf.hand_over()
        try:
            with anyio.fail_after(settings.start_timeout_s):
                facts = await guest._greet(code, settings, inherited)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                text = await guest.end(patience=0.1)
            if isinstance(error, (GuestDied, ProtocolViolation, TimeoutError)):
                reason = (
                    f"not ready within {settings.start_timeout_s:g} seconds"
                    if isinstance(error, TimeoutError)
                    else str(error)
                )
                raise GuestStartFailed(
                    f"the guest did not start with the {launcher.name} launcher: {reason}"
                    + (f"\n{text}" if text else ""),
                    log=text,
                ) from None
            raise
        return guest, facts

    async def _greet(self, code: bytes, settings: SandboxSettings, inherited: dict[str, int]) -> Isolation:
        scratch = self._belongings.scratch
        start = {
            "memory_bytes": settings.memory_bytes,
            "answer_bytes": settings.answer_bytes,
            "scratch_bytes": settings.scratch_bytes,
            "processes": settings.processes,
            "scratch": "" if scratch is None else scratch.path,
            "confine": settings.highest_tier != "process",
            "namespaces": settings.highest_tier == "isolated",
            "fork": settings.recovery,
            **inherited,
        }
        await self._send_raw(code)
        await self.send(wire.frames(wire.START, 0, wire.encode(start)))
        kind, _, payload = await self.receive()
        match _decode(payload):
            case {
                "python": str(python),
                "platform": str(platform),
                "fork": bool(fork),
                "levels": list(levels),
                "missing": dict(missing),
            } if kind == wire.READY:
                self.isolation = Isolation(
                    tier=_tier(levels),
                    levels=tuple(map(str, levels)),
                    missing={str(name): str(reason) for name, reason in missing.items()},
                    python=python,
                    platform=platform,
                    recovers=fork,
                )
                _require_tier(self.isolation, settings.minimum_tier)
                return self.isolation
            case _:
                raise ProtocolViolation("the guest did not say that it is ready")

    async def offer(self, frames: Any) -> None:
        """Send frames; that the guest is gone is heard by whoever listens to it, who knows what to do."""
        with contextlib.suppress(GuestDied):
            await self.send(frames)

    async def send(self, frames: Any) -> None:
        """Send frames, each whole even when cancelled, so that the stream stays in step."""
        async with self._sending:
            for data in frames:
                await self._send_raw(data)
                await anyio.lowlevel.checkpoint_if_cancelled()

    async def _send_raw(self, data: bytes) -> None:
        assert self._process.stdin is not None  # noqa: S101 - opened with a pipe
        try:
            await self._process.stdin.send(data)
        except asyncio.CancelledError:
            raise  # there, what was begun goes on by itself
        except anyio.get_cancelled_exc_class():
            self.kill()
            raise
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            raise GuestDied("the guest does not listen any more") from None

    async def receive(self) -> tuple[int, int, bytes | bytearray]:
        """The next message of the guest."""
        assert self._process.stdout is not None  # noqa: S101 - opened with a pipe
        while not self._messages:
            try:
                data = await self._process.stdout.receive(wire.FRAME_BYTES)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                raise GuestDied("the guest is gone") from None
            try:
                self._messages += self._assembler.feed(data)
            except wire.WireError as error:
                raise ProtocolViolation(f"the guest sent {error}") from None
        return self._messages.popleft()

    async def end(self, patience: float = END_SECONDS) -> str:
        """End it: politely for a moment, then not. Gives the end of its log."""
        assert self._process.stdin is not None  # noqa: S101 - opened with a pipe
        with contextlib.suppress(OSError, anyio.BrokenResourceError):
            await self._process.stdin.aclose()
        if self.shelf is not None:
            self.shelf.close()  # here, on the loop, where others open it
        with anyio.move_on_after(patience):
            await self._process.wait()
        self.kill()  # also where the supervisor is gone: what it started is in its group
        await self._process.aclose()
        try:
            return await anyio.to_thread.run_sync(self._belongings.clear_up)
        except RuntimeError:  # an interpreter that is about to end starts no threads
            return self._belongings.clear_up()

    def kill(self) -> None:
        """End it at once; whoever listens hears that it is gone."""
        import os
        import signal

        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()


def _tier(levels: list[Any]) -> IsolationTier:
    """The tier that the levels in force amount to."""
    if not CONFINED.issubset(levels):
        return "process"
    return "isolated" if "namespaces" in levels else "confined"


def _require_tier(found: Isolation, minimum: IsolationTier) -> None:
    order = get_args(IsolationTier)
    if order.index(found.tier) < order.index(minimum):
        reasons = (
            "; ".join(f"{name}: {reason}" for name, reason in found.missing.items()) or "no reason is known"
        )
        raise IsolationUnavailable(
            f"minimum_tier={minimum!r} was asked for, but here a guest reaches {found.tier!r} ({reasons})"
        )


@dataclass(frozen=True, slots=True)
class _Belongings:
    """What the host makes for a guest, and removes after it.

    Attributes:
        log: for what the guest logs.
        scratch: a folder to write in, where the host can give one.
        shelf: for the contexts of its child runs, where it can have one.
    """

    log: IO[bytes]
    scratch: Scratch | None
    shelf: Shelf | None

    def clear_up(self) -> str:
        """Remove all of it; the end of what was logged."""
        if self.shelf is not None:
            self.shelf.close()
        with self.log:
            self.log.seek(0)
            text = self.log.read().decode("utf-8", "replace")[-LOG_CHARS:].strip()
        if self.scratch is not None:
            self.scratch.remove()
        return text


def _prepare(settings: SandboxSettings, launcher: Launcher) -> tuple[_Belongings, bytes]:
    """What the guest is given, and its code."""
    code = guest_code()
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `clear_up`
    try:
        scratch = Scratch() if launcher.shares_files else None
    except OSError:
        log.close()
        raise
    shelf = make_shelf() if launcher.keeps_descriptors and settings.recovery else None
    return _Belongings(log, scratch, shelf), code
