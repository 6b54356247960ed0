"""One running cell on the host: keeps its output (head and tail, `output_chars`), serves its host calls, reads its end.

No cell can make the session unusable.
"""

from __future__ import annotations

import codecs
import functools
from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
import anyio.to_thread

from rlm._async.groups import first_error
from rlm.errors import CallError, GuestDied, HostCallRefused, ProtocolViolation
from rlm.sandbox.guest import frames, values
from rlm.sandbox.guest.failures import ERROR_CHARS, cut
from rlm.sandbox.guest.sketch import Sketch
from rlm.sandbox.messages import (
    LARGE_BYTES,
    child_arguments,
    host_ending,
    off_the_loop,
    read_ending,
    read_host_call,
    read_locations,
    read_report,
)
from rlm.sandbox.process import CALL_BYTES
from rlm.sandbox.shared_contexts import ContextRef
from rlm.values import CellResult, HostCall, written_size

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
        guest: runs the cell.
        cell: the value of the RUN message: number, code, timeout in seconds, and whether `answer` is reset.
        settings: the limits of the guest.
        serve: answers the host calls of the cell.
        on_output: receives the output while the cell runs.
        discard: ends the guest, if the cell made it unusable.
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
        self._locations: tuple[int, list[tuple[int, int]]] | None = None
        self._began = anyio.current_time()
        self._watch = anyio.CancelScope()

    async def perform(self) -> CellResult:
        """Run the cell. Afterwards the guest is ready for the next cell, or ended."""
        try:
            async with anyio.create_task_group() as tasks:
                with self._watch:
                    self._set_deadline()
                    ending = await self._follow(tasks)
                if self._watch.cancelled_caught:
                    ending = await self._stop()
                tasks.cancel_scope.cancel()
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await self._kill_cell()
            only = first_error(error)
            if only is error:
                raise
            raise only from only.__cause__  # an error of `on_output`, without its exception group
        if self._failure is not None:
            raise self._failure
        return self._result(ending)

    async def _follow(self, tasks: TaskGroup) -> dict[str, Any]:
        """Handle the messages of the guest until the one that ends the cell."""
        try:
            tasks.start_soon(self._send_cell)
            while True:
                kind, number, payload = await self._guest.receive()
                if kind == frames.ENDED:
                    return read_ending(payload)
                await self._handle(kind, number, payload, tasks)
        except (GuestDied, ProtocolViolation) as broken:
            return await self._lost(broken)

    async def _handle(self, kind: int, number: int, payload: bytes | bytearray, tasks: TaskGroup) -> None:
        if kind == frames.OUTPUT and number in self._output:
            self._output[number].add(payload)
        elif kind == frames.LOCATIONS and self._locations is None and self._guest.shared_memory is not None:
            self._locations = number, await off_the_loop(read_locations, payload)
        elif kind == frames.CALL and number not in self._calls:
            locations = self._take_locations(number)
            self._calls[number] = len(payload)
            self._set_deadline()
            if sum(self._calls.values()) > CALL_BYTES:
                self._stop_for(f"the cell has host calls of more than {CALL_BYTES:,} bytes in flight")
            else:
                tasks.start_soon(self._answer, number, payload, locations)
        elif kind == frames.DONE and self._report is None:
            self._report = await off_the_loop(read_report, payload)
        else:
            raise ProtocolViolation(f"the guest sent a message of kind {kind} out of turn")

    def _take_locations(self, number: int) -> list[tuple[int, int]]:
        """Return the locations in shared memory that the supervisor sent for this host call."""
        locations, self._locations = self._locations, None
        if locations is None:
            return []
        if locations[0] != number:
            raise ProtocolViolation("the guest sent locations for a call that it did not make")
        return locations[1]

    async def _answer(
        self, number: int, payload: bytes | bytearray, locations: list[tuple[int, int]]
    ) -> None:
        """Serve one host call; the task is cancelled when the cell ends."""
        try:
            call = await off_the_loop(read_host_call, payload)
        except ProtocolViolation as violation:
            self._stop_for(str(violation))
            return
        try:
            self._insert_context_refs(call, number, locations)
            reply: tuple[Any, ...] = (True, await self._serve(call))
            parts = await _encoded(reply)
        except (CallError, HostCallRefused) as refusal:
            parts = values.encode((False, type(refusal).__name__, cut(str(refusal), ERROR_CHARS)))
        except values.Uncrossable as problem:
            parts = values.encode((False, "HostCallRefused", f"the answer holds {problem.reason}"))
        except Exception as error:  # noqa: BLE001 - any error ends the run; `perform` raises it
            self._fail(error)
            return
        # Before the reply is sent: with the reply in hand, the cell may use the number again at once.
        self._calls.pop(number, None)
        await self._guest.send_unless_dead(frames.message_frames(frames.REPLY, number, parts))
        self._set_deadline()

    def _insert_context_refs(self, call: HostCall, number: int, locations: list[tuple[int, int]]) -> None:
        """Replace the cell's description of each shared context by a `ContextRef`.

        Raises:
            HostCallRefused: the host call has no shared context of this index, or its description is malformed.
        """
        for child in child_arguments(call):
            if "shared" in child:
                child["context"] = self._context_ref(child.pop("shared"), number, locations)

    def _context_ref(self, named: Any, number: int, locations: list[tuple[int, int]]) -> ContextRef:
        memory = self._guest.shared_memory
        match named:
            case (int(index), drawn) if memory is not None and 0 <= index < len(locations):
                offset, length = locations[index]
                try:
                    sketch = Sketch.from_tuple(drawn)
                except ValueError as error:
                    raise HostCallRefused(str(error)) from None
                return ContextRef(memory, offset, length, sketch, functools.partial(self._reserve, number))
            case _:
                raise HostCallRefused("there is no such shared context")

    def _reserve(self, number: int, count: int) -> None:
        """Count bytes that the host reads from shared memory as if they had come with the host call."""
        if sum(self._calls.values()) + count > CALL_BYTES:
            raise HostCallRefused(
                f"contexts of more than {CALL_BYTES:,} bytes are in flight: pass smaller pieces, or fewer at once"
            )
        self._calls[number] = self._calls.get(number, 0) + count

    async def _send_cell(self) -> None:
        self._is_sent = True
        with anyio.move_on_after(KILL_SECONDS, shield=True) as sending:
            await self._guest.send_unless_dead(
                frames.message_frames(frames.RUN, 0, values.encode(self._cell))
            )
        if sending.cancelled_caught:
            self._guest.kill()  # the guest cannot cancel a cell that it has received in part

    def _stop_for(self, complaint: str) -> None:
        """Stop the cell for a malformed payload; its frames were in order, so the guest can run the next cell."""
        self._complaint = self._complaint or complaint
        self._watch.cancel()

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        self._watch.cancel()

    def _set_deadline(self) -> None:
        """Set the deadline after which the host ends a guest that did not stop an overdue cell itself."""
        waits = bool(self._calls)
        self._watch.deadline = (
            float("inf") if waits else anyio.current_time() + self._settings.cell_timeout_s + OVERDUE_SECONDS
        )

    async def _stop(self) -> dict[str, Any]:
        """Stop the cell after an error of a handler, a malformed payload, or because the guest is overdue."""
        if self._failure is not None or self._complaint:
            with anyio.CancelScope(shield=True):
                ending = await self._kill_cell()
            return {**ending, "outcome": "protocol", "error": self._complaint}
        with anyio.CancelScope(shield=True):
            await self._discard()
        seconds = self._settings.cell_timeout_s
        return host_ending("timeout", f"the cell computed for more than {seconds:g} seconds and was stopped")

    async def _kill_cell(self) -> dict[str, Any]:
        """Have the guest kill the cell, and wait for its end; end the guest if that takes too long."""
        guest = self._guest
        if self._is_discarded or not self._is_sent:
            return host_ending("cancelled", "")
        with anyio.move_on_after(KILL_SECONDS):
            try:
                await guest.send([frames.frame(frames.CANCEL)])
                while True:
                    kind, _, payload = await guest.receive()
                    if kind == frames.ENDED:
                        return read_ending(payload)
            except (GuestDied, ProtocolViolation):
                pass
        await self._discard()
        return host_ending("cancelled", "")

    async def _discard(self) -> None:
        self._is_discarded = True
        await self._end_guest()

    async def _lost(self, broken: GuestDied | ProtocolViolation) -> dict[str, Any]:
        with anyio.CancelScope(shield=True):
            await self._discard()
        outcome = "protocol" if isinstance(broken, ProtocolViolation) else "crashed"
        return host_ending(outcome, f"{broken}; the guest was restarted")

    def _result(self, ending: dict[str, Any]) -> CellResult:
        outcome, error, draft, final = ending["outcome"], ending["error"], None, None
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
            state=ending["state"],
            final=final,
            draft=draft,
            execution_time=anyio.current_time() - self._began,
            compute_time=ending["compute"],
        )


async def _encoded(reply: Any) -> values.Parts:
    """Encode a reply; a large one in a thread, so that it does not block the event loop for other runs."""
    if written_size(reply, LARGE_BYTES) <= LARGE_BYTES:
        return values.encode(reply)
    return await anyio.to_thread.run_sync(values.encode, reply)


class _Output:
    """One output stream of a cell: passes all text on, keeps head and tail."""

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

    def add(self, data: bytes | bytearray, *, final: bool = False) -> None:
        """Decode the next bytes, pass the text on, and keep it within the limit."""
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
        """Return head and tail, with the number of characters cut between them."""
        self.add(b"", final=True)
        head, tail = "".join(self._head), "".join(self._tail)
        if self._tail_limit:
            tail = tail[-self._tail_limit :]
        cut = self.count - len(head) - len(tail)
        return f"{head}\n… {cut:,} characters cut …\n{tail}" if cut else head + tail
