"""The context that the user gave: checked for likely mistakes, and loaded from its files while progress is reported."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sized
from typing import TYPE_CHECKING, Any

import anyio.from_thread
import anyio.to_thread

from rlm import sources
from rlm.errors import ContextError
from rlm.events import ContextLoading

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["load", "warn_of_mistakes"]

_LONG_QUERY_CHARS = 5_000
_REPORT_INTERVAL_S = 0.1


async def warn_of_mistakes(context: Any, query: str | None = None) -> str:
    """Warn when the arguments look like a mistake, before anything is paid for; return the warning, or "".

    It is a Python warning, too, since `print(answer)` does not show `Answer.warnings`.
    """
    warning = _swapped(context, query) or await anyio.to_thread.run_sync(sources.file_name_warning, context)
    if warning:
        # No stack level fits: on the portal's thread there is no line of the caller.
        warnings.warn_explicit(warning, UserWarning, "rlm", 0, module="rlm")
    return warning


async def load(context: Any, emit: Callable[[ContextLoading], object], run_id: str = "") -> Any:
    """Return the context, read from its files when it consists of paths.

    The files are read in a thread. Reading that takes longer emits a `ContextLoading` about every 0.1 s; when the
    caller is cancelled, it ends with the piece that is being read.

    Raises:
        ContextError: it is empty, or a file cannot be read.
    """
    reported = time.monotonic()

    def report(name: str, read_bytes: int, total_bytes: int) -> None:
        nonlocal reported
        anyio.from_thread.check_cancelled()
        now = time.monotonic()
        if now - reported < _REPORT_INTERVAL_S:
            return
        reported = now
        event = ContextLoading(
            run_id=run_id,
            depth=0,
            at=time.time(),
            name=name,
            read_bytes=read_bytes,
            total_bytes=total_bytes,
        )
        anyio.from_thread.run_sync(emit, event)

    context = await anyio.to_thread.run_sync(sources.load, context, report)
    if context is None or (isinstance(context, Sized) and not len(context)):
        raise ContextError(f"the context is empty ({context!r}): nothing can be asked about it")
    return context


def _swapped(context: Any, query: str | None) -> str:
    if not (isinstance(context, str) and isinstance(query, str)):
        return ""
    if len(query) < _LONG_QUERY_CHARS or len(query) < 10 * len(context):
        return ""
    sizes = f"{len(context):,} characters and the query {len(query):,}"
    return f"the context has {sizes}: are they swapped? The order is completion(context, query)"
