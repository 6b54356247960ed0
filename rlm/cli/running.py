"""Open an `RLM_REPL` with a display for the options of a command line, and say what was spent."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlm.cli.endpoint import load_env_file, with_client
from rlm.cli.failures import complain
from rlm.display.text import money
from rlm.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rlm.cli.options import RunFlags
    from rlm.clients.base import Client
    from rlm.events import Emit, Event
    from rlm.rlm_repl import RLM_REPL

__all__ = ["budget_of", "is_interactive", "open_rlm", "spent"]


def is_interactive() -> bool:
    """Return True if stdin and stdout are terminals."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


@contextmanager
def open_rlm(
    options: RunFlags, *, client: Client | None = None, listener: Emit | None = None
) -> Iterator[RLM_REPL]:
    """Open an `RLM_REPL` as the options say, with a display on stderr. On Ctrl-C, say what was spent.

    Args:
        options: of the command line.
        client: instead of the one that the options mean.
        listener: receives all events, as the display does.

    Raises:
        click.UsageError: the options contradict each other, or there is no endpoint.
        ConnectionFailed: the endpoint does not answer.
    """
    if client is None:
        load_env_file(Path.cwd())
        keywords = with_client(options.keywords, os.environ, is_interactive=is_interactive())
    else:
        keywords = {**options.keywords, "client": client}

    from rlm._async.portal import lease
    from rlm.clients.base import check_reachable
    from rlm.display import show_on_stderr
    from rlm.events import CallFailed
    from rlm.rlm_repl import RLM_REPL
    from rlm.scheduler.budget import Budget

    display = None if options.quiet else show_on_stderr(verbosity=options.verbose)
    stopped_calls = 0

    def listen(event: Event) -> None:
        nonlocal stopped_calls
        stopped_calls += isinstance(event, CallFailed) and event.kind == "Cancelled"
        if display is not None:
            display(_without_final_error(event))
        if listener is not None:
            listener(event)

    with lease() as portal:
        rlm = RLM_REPL(
            **keywords,
            budget=Budget(**options.budget),
            on_event=None if display is None and listener is None else listen,
        )
        try:
            portal.call(check_reachable, rlm.client)
            yield rlm
        except KeyboardInterrupt:
            if display is not None:
                display.close()
            complain(f"interrupted; spent: {spent(rlm, stopped_calls)}")
            raise
        finally:
            if display is not None:
                display.close()
            rlm.close()


def _without_final_error(event: Event) -> Event:
    """Remove the error that ended the run: the command prints it, and a display would repeat it."""
    from rlm.events import RunFailed

    return replace(event, error="") if isinstance(event, RunFailed) and not event.depth else event


def spent(rlm: RLM_REPL, stopped_calls: int = 0) -> str:
    """Say what was spent so far, and how many calls were stopped; these are not among the calls that were made."""
    summary = rlm.cost_summary()
    parts = [counted(summary["calls"], "call"), counted(summary["total_tokens"], "token")]
    if summary["cost_usd"] is not None:
        parts.append(money(summary["cost_usd"]))
    if summary["stored_replies"]:
        parts.append(f"{counted(summary['stored_replies'], 'answer')} from the cache")
    words = ", ".join(parts)
    if stopped_calls:
        words += f"; stopped: {counted(stopped_calls, 'more call')}"
    unsure = _amounts(summary["possibly_billed"])
    return words + (f"; stopped calls may be billed up to {unsure} more" if unsure else "")


def budget_of(rlm: RLM_REPL) -> str:
    """Return the budget of a question in words."""
    budget = rlm.budget
    limits = {"cost_usd": budget.dollars, "tokens": budget.tokens, "calls": budget.calls} if budget else None
    return f"budget of each question: {(_amounts(limits) if limits else '') or 'no limit'}"


def _amounts(amounts: Mapping[str, Any]) -> str:
    """Return in words the dollars, tokens and calls that are not zero."""
    parts = [money(amounts["cost_usd"])] if amounts["cost_usd"] else []
    parts += [counted(amounts[name], name.removesuffix("s")) for name in ("tokens", "calls") if amounts[name]]
    return ", ".join(parts)
