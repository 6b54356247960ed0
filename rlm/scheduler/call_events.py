"""The events of one call."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio

from rlm.events import CallFailed, CallFinished, CallRetried, CallStarted, CallWrote, Emit, Warned

if TYPE_CHECKING:
    from rlm.errors import CallError
    from rlm.scheduler.ledger import Spent
    from rlm.values import Call, Reply

__all__ = ["CallEvents"]


class CallEvents:
    """Emits the events of one call: started, retried, and finished or failed."""

    def __init__(self, emit: Emit, call: Call, *, number: int) -> None:
        self._emit = emit
        self._call = call
        self._number = number

    def started(self) -> None:
        """Emit `CallStarted`."""
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
        """Emit `CallWrote` for a part of the answer."""
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
        """Emit `CallRetried`: an attempt failed and another one follows."""
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
        """Emit `CallFinished`, and `Warned` for each warning of the reply."""
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

    def failed(self, error: BaseException, spent: Spent) -> None:
        """Emit `CallFailed`; `spent` is what the attempts of the call cost."""
        cancelled = isinstance(error, anyio.get_cancelled_exc_class())
        self._emit(
            CallFailed(
                run_id=self._call.run_id,
                depth=self._call.depth,
                at=time.time(),
                call=self._number,
                kind="Cancelled" if cancelled else type(error).__name__,
                error="the run was stopped" if cancelled else str(error),
                usage=spent.usage,
                cost_usd=spent.cost_usd,
            )
        )

    def warned(self, message: str) -> None:
        """Emit `Warned`."""
        self._emit(Warned(run_id=self._call.run_id, depth=self._call.depth, at=time.time(), message=message))
