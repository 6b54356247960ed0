"""A running guest as the host holds it: started with what it needs, sent to, heard, and ended with all it started."""

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
from rlm.sandbox.messages import decoded
from rlm.sandbox.scratch import Scratch
from rlm.sandbox.shared_contexts import ContextRef, SharedContexts, make_shared_contexts
from rlm.settings import IsolationTier, SandboxSettings

if TYPE_CHECKING:
    from typing import IO

    from anyio.abc import Process

    from rlm.sandbox.launchers import Launcher

__all__ = ["CALL_BYTES", "CONFINED", "END_SECONDS", "PLACES_BYTES", "Guest", "Isolation"]

CALL_BYTES = 256 << 20
SMALL_BYTES = 1 << 20
PLACES_BYTES = 4 << 20
END_SECONDS = 2.0
LOG_CHARS = 4000
CONFINED = frozenset({"files", "network", "signals", "programs"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """What confines a guest, as it found by trying.

    Attributes:
        tier: the tier that is reached.
        levels: what is in force.
        missing: what is not, each with the reason.
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

    def __init__(self, process: Process, belongings: _Belongings, answer_bytes: int) -> None:
        self._process = process
        self._belongings = belongings
        self.shared_memory = belongings.shared_memory
        self.has_parent_memory = False
        self._sending = anyio.Lock()
        self._messages: deque[tuple[int, int, bytes | bytearray]] = deque()
        self._assembler = frames.MessageReader(
            {
                frames.READY: SMALL_BYTES,
                frames.LOADED: SMALL_BYTES,
                frames.OUTPUT: frames.FRAME_BYTES,
                frames.CALL: CALL_BYTES,
                frames.LOCATIONS: PLACES_BYTES,
                frames.DONE: 2 * answer_bytes + 8 * SMALL_BYTES,
                frames.ENDED: SMALL_BYTES,
                frames.INSPECTED: answer_bytes + 8 * SMALL_BYTES,
            }
        )

    @classmethod
    async def start(
        cls, settings: SandboxSettings, launcher: Launcher, parent_context: ContextRef | None = None
    ) -> tuple[Guest, Isolation]:
        """Launch a guest, send it its code and settings, and hear that it is ready."""
        try:
            belongings, code = await anyio.to_thread.run_sync(_prepare, launcher)
        except OSError as error:
            raise GuestStartFailed(f"nothing could be prepared for a guest: {error}") from error
        inherited = {"shared_memory": -1, "parent_memory": -1}
        try:
            with contextlib.ExitStack() as while_starting:
                if belongings.shared_memory is not None:
                    inherited["shared_memory"] = belongings.shared_memory.writing
                    if parent_context is not None:
                        inherited["parent_memory"] = while_starting.enter_context(
                            parent_context.memory.opened()
                        )
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
        guest.has_parent_memory = inherited["parent_memory"] >= 0
        if belongings.shared_memory is not None:
            belongings.shared_memory.hand_over()
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
                data = await self._process.stdout.receive(frames.FRAME_BYTES)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                raise GuestDied("the guest is gone") from None
            try:
                self._messages += self._assembler.feed(data)
            except values.WireError as error:
                raise ProtocolViolation(f"the guest sent {error}") from None
        return self._messages.popleft()

    async def end(self, patience: float = END_SECONDS) -> str:
        """End it: politely for a moment, then not. Gives the end of its log."""
        assert self._process.stdin is not None  # noqa: S101 - opened with a pipe
        with contextlib.suppress(OSError, anyio.BrokenResourceError):
            await self._process.stdin.aclose()
        if self.shared_memory is not None:
            self.shared_memory.close()  # here, on the loop, where others open it
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
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


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
        shared_memory: for the contexts of its child runs, where it can have one.
    """

    log: IO[bytes]
    scratch: Scratch | None
    shared_memory: SharedContexts | None

    def clear_up(self) -> str:
        """Remove all of it; the end of what was logged."""
        if self.shared_memory is not None:
            self.shared_memory.close()
        with self.log:
            self.log.seek(0)
            text = self.log.read().decode("utf-8", "replace")[-LOG_CHARS:].strip()
        if self.scratch is not None:
            self.scratch.remove()
        return text


def _prepare(launcher: Launcher) -> tuple[_Belongings, bytes]:
    """What the guest is given, and its code."""
    code = guest_code()
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `clear_up`
    try:
        scratch = Scratch() if launcher.shares_files else None
    except OSError:
        log.close()
        raise
    shared_memory = make_shared_contexts() if launcher.keeps_descriptors else None
    return _Belongings(log, scratch, shared_memory), code
