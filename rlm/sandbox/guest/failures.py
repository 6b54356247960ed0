"""Failures as a cell sees them: `LLMError`, the false slot of a batch, and the text of a traceback."""

from __future__ import annotations

import traceback

from . import values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

__all__ = ["FailedCall", "LLMError", "explain"]


class LLMError(Exception):
    """A call failed for good; the message says why."""


class FailedCall(str):  # noqa: SLOT000 - it carries what went wrong
    """The slot of a batch whose call failed: false, and its text names the error, as do `.kind` and `.error`."""

    kind: str
    error: str

    def __new__(cls, kind: str, error: str) -> Self:
        """The failure as a text."""
        self = super().__new__(cls, f"[failed: {kind}: {error}]")
        self.kind = kind
        self.error = error
        return self

    def __bool__(self) -> bool:
        return False


# In a cell these are simply there, so a traceback shows them without a module.
LLMError.__module__ = FailedCall.__module__ = "builtins"


def explain(error: BaseException) -> str:
    """The traceback as Python shows it, without the frames of the harness; whatever the exception is made of."""
    try:
        story = traceback.TracebackException.from_exception(error, compact=True)
        leave_out_harness(story, 0)
        return "".join(story.format()).rstrip("\n")
    except BaseException as failure:  # noqa: BLE001 - an exception made to break its own report
        return f"{type.__getattribute__(type(error), '__name__')} (and showing it raised {type(failure).__name__})"


def leave_out_harness(story: traceback.TracebackException | None, depth: int) -> None:
    """Remove the harness's own frames from a traceback and from those it is chained to."""
    if story is None or depth > values.DEPTH:
        return
    kept = [entry for entry in story.stack if not entry.filename.startswith("<guest/")]
    story.stack = traceback.StackSummary.from_list(kept)
    leave_out_harness(story.__cause__, depth + 1)
    leave_out_harness(story.__context__, depth + 1)
    for inner in getattr(story, "exceptions", None) or ():
        leave_out_harness(inner, depth + 1)
