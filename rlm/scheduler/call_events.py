"""The events of one call."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio

from rlm.events import CallFailed, CallFinished, CallRetried, CallStarted, CallWrote, Emit, Warned

if TYPE_CHECKING:
    from rlm.errors import CallError
    from rlm.scheduler.budget import Spent
    from rlm.values import Call, Reply

__all__ = ["CallEvents"]


class CallEvents:
    """Tells a listener what becomes of one call: that it started, and how it ended, once each."""

    def __init__(self, emit: Emit, call: Call, *, number: int) -> None:
        self._emit = emit
        self._call = call
        self._number = number

    def started(self) -> None:
        """The call was taken on."""
        call = self._call
        self._emit(
            CallStarted(
                run_id=call.run_id,
                depth=call.depth,
                at=time.time(),
                call=self._number,
                role=call.role,
                model=call.model,
                messages=call.messages,
                batch=call.batch,
            )
        )

    def wrote(self, text: str) -> None:
        """A piece of the answer was written."""
        self._emit(
            CallWrote(
                run_id=self._call.run_id,
                depth=self._call.depth,
                at=time.time(),
                call=self._number,
                text=text,
            )
        )

    def retried(self, error: CallError, *, attempt: int, wait_s: float) -> None:
        """An attempt failed and the next one follows."""
        self._emit(
            CallRetried(
                run_id=self._call.run_id,
                depth=self._call.depth,
                at=time.time(),
                call=self._number,
                attempt=attempt,
                error=str(error),
                wait_s=wait_s,
            )
        )

    def finished(self, reply: Reply) -> None:
        """The call was answered; its warnings are told, too."""
        self._emit(
            CallFinished(
                run_id=self._call.run_id,
                depth=self._call.depth,
                at=time.time(),
                call=self._number,
                reply=reply,
            )
        )
        for warning in reply.warnings:
            self.warned(warning)

    def failed(self, error: BaseException, bill: Spent) -> None:
        """The call got no answer, for whatever reason; `bill` is what its attempts cost."""
        cancelled = isinstance(error, anyio.get_cancelled_exc_class())
        self._emit(
            CallFailed(
                run_id=self._call.run_id,
                depth=self._call.depth,
                at=time.time(),
                call=self._number,
                kind="Cancelled" if cancelled else type(error).__name__,
                error="the run was stopped" if cancelled else str(error),
                usage=bill.usage,
                cost_usd=bill.cost_usd,
            )
        )

    def warned(self, message: str) -> None:
        """Something the user should know."""
        self._emit(Warned(run_id=self._call.run_id, depth=self._call.depth, at=time.time(), message=message))
