"""The process of a guest: started with its code and settings, sent to, received from, ended with its children."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from collections import deque
from dataclasses import dataclass, field
from subprocess import PIPE
from typing import TYPE_CHECKING, Any, get_args

import anyio
import anyio.lowlevel
import anyio.to_thread

from rlm.errors import GuestDied, GuestStartFailed, IsolationUnavailable, ProtocolViolation
from rlm.sandbox.guest import frames, values
from rlm.sandbox.launchers.command import guest_code
from rlm.sandbox.launchers.start_failures import command_failure, guest_failure, resource_failure
from rlm.sandbox.messages import decoded
from rlm.sandbox.scratch import Scratch
from rlm.sandbox.shared_contexts import ContextRef, SharedContexts, make_shared_contexts
from rlm.settings import IsolationTier, SandboxSettings

if TYPE_CHECKING:
    from typing import IO

    from anyio.abc import Process

    from rlm.sandbox.launchers import Launcher

__all__ = ["CALL_BYTES", "CONFINED", "END_SECONDS", "LOCATIONS_BYTES", "Guest", "Isolation"]

CALL_BYTES = 256 << 20
SMALL_BYTES = 1 << 20
LOCATIONS_BYTES = 4 << 20
END_SECONDS = 2.0
LOG_CHARS = 4000
CONFINED = frozenset({"files", "network", "signals", "programs"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """Confinement of a guest, as the guest found by trying each measure.

    Attributes:
        tier: the tier reached.
        levels: the measures in force.
        missing: the measures not in force, with the reasons.
        python: the version of the guest's interpreter.
        platform: the guest's `sys.platform`.
    """

    tier: IsolationTier
    levels: tuple[str, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)
    python: str = ""
    platform: str = ""


class Guest:
    """A running guest: its process, its two streams, its scratch folder and its log."""

    isolation: Isolation

    def __init__(self, process: Process, resources: _Resources, answer_bytes: int) -> None:
        self._process = process
        self._resources = resources
        self.shared_memory = resources.shared_memory
        self.has_parent_memory = False
        self._sending = anyio.Lock()
        self._messages: deque[tuple[int, int, bytes | bytearray]] = deque()
        self._assembler = frames.MessageReader(
            {
                frames.READY: SMALL_BYTES,
                frames.LOADED: SMALL_BYTES,
                frames.OUTPUT: frames.FRAME_BYTES,
                frames.CALL: CALL_BYTES,
                frames.LOCATIONS: LOCATIONS_BYTES,
                frames.DONE: 2 * answer_bytes + 8 * SMALL_BYTES,
                frames.ENDED: SMALL_BYTES,
                frames.INSPECTED: answer_bytes + 8 * SMALL_BYTES,
            }
        )

    @classmethod
    async def start(
        cls, settings: SandboxSettings, launcher: Launcher, parent_context: ContextRef | None = None
    ) -> tuple[Guest, Isolation]:
        """Launch a guest, send its code and settings, and wait until it is ready."""
        try:
            resources, code = await anyio.to_thread.run_sync(_prepare, launcher)
        except OSError as error:
            raise GuestStartFailed(resource_failure(error)) from error
        inherited = {"shared_memory": -1, "parent_memory": -1}
        try:
            with contextlib.ExitStack() as while_starting:
                if resources.shared_memory is not None:
                    inherited["shared_memory"] = resources.shared_memory.writing
                    if parent_context is not None:
                        inherited["parent_memory"] = while_starting.enter_context(
                            parent_context.memory.opened()
                        )
                with anyio.CancelScope(
                    shield=True
                ):  # short; a process cancelled halfway would have no owner to end it
                    process = await anyio.open_process(
                        launcher.command(),
                        stdin=PIPE,
                        stdout=PIPE,
                        stderr=resources.log,
                        env=launcher.variables(),
                        cwd=None if resources.scratch is None else resources.scratch.path,
                        start_new_session=True,
                        pass_fds=[number for number in inherited.values() if number >= 0],
                    )
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(resources.remove)
            if isinstance(error, OSError):
                raise GuestStartFailed(command_failure(launcher, error)) from error
            raise
        guest = cls(process, resources, settings.answer_bytes)
        guest.has_parent_memory = inherited["parent_memory"] >= 0
        if resources.shared_memory is not None:
            resources.shared_memory.hand_over()
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
                status = None if isinstance(error, TimeoutError) else process.returncode
                raise GuestStartFailed(guest_failure(launcher, reason, text, status), log=text) from None
            raise
        return guest, facts

    async def _greet(self, code: bytes, settings: SandboxSettings, inherited: dict[str, int]) -> Isolation:
        scratch = self._resources.scratch
        start = {
            "memory_bytes": settings.memory_bytes,
            "answer_bytes": settings.answer_bytes,
            "scratch_bytes": settings.scratch_bytes,
            "processes": settings.processes,
            "scratch": "" if scratch is None else scratch.path,
            "confine": settings.highest_tier != "process",
            "namespaces": settings.highest_tier == "isolated",
            **inherited,
        }
        await self._send_raw(code)
        await self.send(frames.message_frames(frames.START, 0, values.encode(start)))
        kind, _, payload = await self.receive()
        match decoded(payload):
            case {
                "python": str(python),
                "platform": str(platform),
                "levels": list(levels),
                "missing": dict(missing),
            } if kind == frames.READY:
                self.isolation = Isolation(
                    tier=_tier(levels),
                    levels=tuple(map(str, levels)),
                    missing={str(name): str(reason) for name, reason in missing.items()},
                    python=python,
                    platform=platform,
                )
                _require_tier(self.isolation, settings.minimum_tier)
                return self.isolation
            case _:
                raise ProtocolViolation("the guest did not send READY")

    async def send_unless_dead(self, frames: Any) -> None:
        """Send frames, ignoring `GuestDied`: the task that receives from the guest handles its death."""
        with contextlib.suppress(GuestDied):
            await self.send(frames)

    async def send(self, frames: Any) -> None:
        """Send frames. Cancellation takes effect between frames, so that the stream stays in step."""
        async with self._sending:
            for data in frames:
                await self._send_raw(data)
                await anyio.lowlevel.checkpoint_if_cancelled()

    async def _send_raw(self, data: bytes) -> None:
        assert self._process.stdin is not None  # noqa: S101 - opened with a pipe
        try:
            await self._process.stdin.send(data)
        except asyncio.CancelledError:
            raise  # asyncio completes a write that was begun
        except anyio.get_cancelled_exc_class():
            self.kill()
            raise
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            raise GuestDied("the guest closed its input") from None

    async def receive(self) -> tuple[int, int, bytes | bytearray]:
        """Return the kind, number and payload of the guest's next message."""
        assert self._process.stdout is not None  # noqa: S101 - opened with a pipe
        while not self._messages:
            try:
                data = await self._process.stdout.receive(frames.FRAME_BYTES)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                raise GuestDied("the guest has ended") from None
            try:
                self._messages += self._assembler.feed(data)
            except values.WireError as error:
                raise ProtocolViolation(f"the guest sent {error}") from None
        return self._messages.popleft()

    async def end(self, patience: float = END_SECONDS) -> str:
        """Close the input, wait `patience` seconds for the exit, then kill; return the end of the log."""
        assert self._process.stdin is not None  # noqa: S101 - opened with a pipe
        with contextlib.suppress(OSError, anyio.BrokenResourceError):
            await self._process.stdin.aclose()
        if self.shared_memory is not None:
            self.shared_memory.close()  # on the loop, like `opened`: the two cannot race
        with anyio.move_on_after(patience):
            await self._process.wait()
        self.kill()  # even after its exit: its children are in the process group
        await self._process.aclose()
        try:
            return await anyio.to_thread.run_sync(self._resources.remove)
        except RuntimeError:  # no threads while the interpreter shuts down
            return self._resources.remove()

    def kill(self) -> None:
        """Kill the guest and its process group; a task in `receive` gets `GuestDied`."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


def _tier(levels: list[Any]) -> IsolationTier:
    """Return the tier of the measures in force."""
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
            f"minimum_tier={minimum!r} is required, but here a guest reaches {found.tier!r} ({reasons})"
        )


@dataclass(frozen=True, slots=True)
class _Resources:
    """Files and memory that the host makes for a guest, and removes after its end.

    Attributes:
        log: the guest's standard error.
        scratch: the folder for the guest to write in, or None if it does not share the host's files.
        shared_memory: memory for the contexts of its child runs, or None if it cannot have any.
    """

    log: IO[bytes]
    scratch: Scratch | None
    shared_memory: SharedContexts | None

    def remove(self) -> str:
        """Remove everything; return the end of the log."""
        if self.shared_memory is not None:
            self.shared_memory.close()
        with self.log:
            self.log.seek(0)
            text = self.log.read().decode("utf-8", "replace")[-LOG_CHARS:].strip()
        if self.scratch is not None:
            self.scratch.remove()
        return text


def _prepare(launcher: Launcher) -> tuple[_Resources, bytes]:
    """Return the resources and the code of a new guest."""
    code = guest_code()
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `remove`
    try:
        scratch = Scratch() if launcher.shares_files else None
    except OSError:
        log.close()
        raise
    shared_memory = make_shared_contexts() if launcher.keeps_descriptors else None
    return _Resources(log, scratch, shared_memory), code
