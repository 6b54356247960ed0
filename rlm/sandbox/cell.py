"""One cell under way: its output, its calls, its end; whatever it does, the session goes on."""

from __future__ import annotations

import codecs
import functools
from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio

from rlm._async.groups import first_error
from rlm.errors import CallError, GuestDied, HostCallRefused, ProtocolViolation
from rlm.sandbox.guest import frames, values
from rlm.sandbox.guest.sketch import Sketch
from rlm.sandbox.messages import (
    children_of,
    host_call_of,
    off_the_loop,
    own_verdict,
    places_of,
    report_of,
    verdict_of,
)
from rlm.sandbox.process import CALL_BYTES
from rlm.sandbox.shared_contexts import ContextRef
from rlm.values import CellResult, HostCall

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from anyio.abc import TaskGroup

    from rlm.sandbox.process import Guest
    from rlm.settings import SandboxSettings

__all__ = ["CellRun", "HostCallHandler", "OutputHandler"]

HostCallHandler: TypeAlias = "Callable[[HostCall], Awaitable[Any]]"
OutputHandler: TypeAlias = "Callable[[str, str], None]"

OVERDUE_SECONDS = 30.0
KILL_SECONDS = 10.0
STREAMS = {1: "stdout", 2: "stderr"}


class CellRun:
    """One cell from RUN to ENDED.

    Args:
        guest: runs it.
        cell: what is sent: its number, its code, its timeout in seconds, and whether it finds `answer` as at first.
        settings: the limits of the guest.
        serve: answers its calls.
        on_output: gets what it prints, as it comes.
        discard: ends the guest, which the cell has made unusable.
    """

    def __init__(
        self,
        guest: Guest,
        cell: Mapping[str, Any],
        settings: SandboxSettings,
        *,
        serve: HostCallHandler,
        on_output: OutputHandler | None,
        discard: Callable[[], Awaitable[object]],
    ) -> None:
        self._guest = guest
        self._cell = cell
        self._settings = settings
        self._serve = serve
        self._end_guest = discard
        self._is_discarded = False
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
            only = first_error(error)
            if only is error:
                raise
            raise only from only.__cause__  # a failure of `on_output`, without the task group's wrapping
        if self._failure is not None:
            raise self._failure
        return self._result(verdict)

    async def _follow(self, tasks: TaskGroup) -> dict[str, Any]:
        """Listen to the guest until its last word on this cell."""
        try:
            tasks.start_soon(self._send_cell)
            while True:
                kind, number, payload = await self._guest.receive()
                if kind == frames.ENDED:
                    return verdict_of(payload)
                await self._take(kind, number, payload, tasks)
        except (GuestDied, ProtocolViolation) as broken:
            return await self._lost(broken)

    async def _take(self, kind: int, number: int, payload: bytes | bytearray, tasks: TaskGroup) -> None:
        if kind == frames.OUTPUT and number in self._output:
            self._output[number].take(payload)
        elif kind == frames.LOCATIONS and self._told is None and self._guest.shared_memory is not None:
            self._told = number, await off_the_loop(places_of, payload)
        elif kind == frames.CALL and number not in self._calls:
            places = self._places_of(number)
            self._calls[number] = len(payload)
            self._set_deadline()
            if sum(self._calls.values()) > CALL_BYTES:
                self._complain(f"the cell has calls of more than {CALL_BYTES:,} bytes under way")
            else:
                tasks.start_soon(self._answer, number, payload, places)
        elif kind == frames.DONE and self._report is None:
            self._report = await off_the_loop(report_of, payload)
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
            call = await off_the_loop(host_call_of, payload)
        except ProtocolViolation as violation:
            self._complain(str(violation))
            return
        try:
            self._find_pieces(call, number, places)
            reply: tuple[Any, ...] = (True, await self._serve(call))
            parts = values.encode(reply)
        except (CallError, HostCallRefused) as refusal:
            parts = values.encode((False, type(refusal).__name__, str(refusal)))
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends the run; `perform` raises it
            self._fail(error)
            return
        self._calls.pop(number, None)  # the cell may use the number again as soon as it has the reply
        await self._guest.offer(frames.message_frames(frames.REPLY, number, parts))
        self._set_deadline()

    def _find_pieces(self, call: HostCall, number: int, places: list[tuple[int, int]]) -> None:
        """Put the contexts that are on the shelf in their place among the arguments, where the cell named them.

        Raises:
            HostCallRefused: there is none of this number, or what the cell says of it is in no form of ours.
        """
        for child in children_of(call):
            if "shared" in child:
                child["context"] = self._piece(child.pop("shared"), number, places)

    def _piece(self, named: Any, number: int, places: list[tuple[int, int]]) -> ContextRef:
        shelf = self._guest.shared_memory
        match named:
            case (int(index), drawn) if shelf is not None and 0 <= index < len(places):
                offset, length = places[index]
                try:
                    sketch = Sketch.from_tuple(drawn)
                except ValueError as error:
                    raise HostCallRefused(str(error)) from None
                return ContextRef(shelf, offset, length, sketch, functools.partial(self._reserve, number))
            case _:
                raise HostCallRefused("there is no such shared context")

    def _reserve(self, number: int, count: int) -> None:
        """Count what of a piece comes into our memory as if it had come with the call."""
        if sum(self._calls.values()) + count > CALL_BYTES:
            raise HostCallRefused(
                f"contexts of more than {CALL_BYTES:,} bytes are under way: pass smaller pieces, or fewer at once"
            )
        self._calls[number] = self._calls.get(number, 0) + count

    async def _send_cell(self) -> None:
        self._is_sent = True
        with anyio.move_on_after(KILL_SECONDS, shield=True) as sending:
            await self._guest.offer(frames.message_frames(frames.RUN, 0, values.encode(self._cell)))
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
        waits = bool(self._calls)
        self._watch.deadline = (
            float("inf") if waits else anyio.current_time() + self._settings.cell_timeout_s + OVERDUE_SECONDS
        )

    async def _broken_off(self) -> dict[str, Any]:
        """The cell was stopped from here: by a handler's failure, or because the guest was overdue."""
        if self._failure is not None or self._complaint:
            with anyio.CancelScope(shield=True):
                verdict = await self._kill_cell()
            return {**verdict, "outcome": "protocol", "error": self._complaint}
        with anyio.CancelScope(shield=True):
            await self._discard()
        seconds = self._settings.cell_timeout_s
        return own_verdict("timeout", f"the cell computed for more than {seconds:g} seconds and was stopped")

    async def _kill_cell(self) -> dict[str, Any]:
        """Have the cell killed, and hear the end of it, so that the guest is ready for the next one."""
        guest = self._guest
        if self._is_discarded or not self._is_sent:
            return own_verdict("cancelled", "")
        with anyio.move_on_after(KILL_SECONDS):
            try:
                await guest.send([frames.frame(frames.CANCEL)])
                while True:
                    kind, _, payload = await guest.receive()
                    if kind == frames.ENDED:
                        return verdict_of(payload)
            except (GuestDied, ProtocolViolation):
                pass
        await self._discard()
        return own_verdict("cancelled", "")

    async def _discard(self) -> None:
        self._is_discarded = True
        await self._end_guest()

    async def _lost(self, broken: GuestDied | ProtocolViolation) -> dict[str, Any]:
        with anyio.CancelScope(shield=True):
            await self._discard()
        outcome = "protocol" if isinstance(broken, ProtocolViolation) else "crashed"
        return own_verdict(outcome, f"{broken}; the guest was started anew")

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
