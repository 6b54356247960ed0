"""Failures as a cell sees them: `LLMError`, the slot of a batch whose call failed, the text of a traceback."""

from __future__ import annotations

import traceback

from . import values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

__all__ = ["ERROR_CHARS", "FailedCall", "LLMError", "cut", "format_error"]


ERROR_CHARS = 20_000


class LLMError(Exception):
    """A host call failed for good; the message says why."""


class FailedCall(str):  # noqa: SLOT000 - it carries what went wrong
    """The slot of a batch whose call failed: it is false; its text, `.kind` and `.error` say why."""

    kind: str
    error: str

    def __new__(cls, kind: str, error: str) -> Self:
        """Make the text of a failure."""
        self = super().__new__(cls, f"[failed: {kind}: {error}]")
        self.kind = kind
        self.error = error
        return self

    def __bool__(self) -> bool:
        return False


# Cells have these without an import, so a traceback shows them without a module.
LLMError.__module__ = FailedCall.__module__ = "builtins"


def format_error(error: BaseException) -> str:
    """Return the traceback as Python shows it, without the frames of the guest's own code; never raises."""
    try:
        trace = traceback.TracebackException.from_exception(error, compact=True)
        _remove_own_frames(trace, 0)
        return cut("".join(trace.format()).rstrip("\n"), ERROR_CHARS)
    except BaseException as failure:  # noqa: BLE001 - an exception made to break its own report
        return f"{type.__getattribute__(type(error), '__name__')} (and showing it raised {type(failure).__name__})"


def cut(text: str, limit: int) -> str:
    """Return a text, or its head and tail with the number of characters cut between them."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} characters cut …\n{text[len(text) - half :]}"


def _remove_own_frames(trace: traceback.TracebackException | None, depth: int) -> None:
    """Remove the frames of the guest's own code from a traceback and from those it is chained to."""
    if trace is None or depth > values.DEPTH:
        return
    kept = [entry for entry in trace.stack if not entry.filename.startswith("<guest/")]
    trace.stack = traceback.StackSummary.from_list(kept)
    _remove_own_frames(trace.__cause__, depth + 1)
    _remove_own_frames(trace.__context__, depth + 1)
    for inner in getattr(trace, "exceptions", None) or ():
        _remove_own_frames(inner, depth + 1)
