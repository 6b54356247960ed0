"""Print an answer: Markdown on a terminal, plain text in a pipe, or JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from rlm.cli.failures import PARTIAL, State, complain
from rlm.display import is_live_terminal
from rlm.display.text import visible

if TYPE_CHECKING:
    from rlm.rlm_repl import RLM_REPL
    from rlm.values import Answer

__all__ = ["show_answer"]


def show_answer(answer: Answer, rlm: RLM_REPL, *, as_json: bool = False, quiet: bool = False) -> int:
    """Print the answer on stdout, and on stderr why it is partial; return the exit code.

    If progress was `quiet`, the warnings of the answer are printed, too.
    """
    code = 0 if answer.status == "ok" else PARTIAL
    context = click.get_current_context(silent=True)
    if context is not None and (state := context.find_object(State)) is not None:
        state.code = code
    if code:
        whole = "the answer is partial" if answer else "there is no partial answer"
        complain(f"stopped: {answer.limit or answer.status}; {whole}")
    for warning in answer.warnings if quiet and not as_json else ():
        complain(f"warning: {warning}")
    if as_json:
        click.echo(_as_json(answer, rlm))
    elif answer or not code:
        _show_text(str(answer))
    return code


def _show_text(text: str) -> None:
    if not sys.stdout.isatty():
        click.echo(text)
        return
    if not is_live_terminal(sys.stdout):
        click.echo(visible(text))
        return
    from rich.console import Console

    from rlm.display.markdown import rendered

    Console(highlight=False).print(rendered(visible(text)))


def _as_json(answer: Answer, rlm: RLM_REPL) -> str:
    try:
        json.dumps(answer.value, allow_nan=False)
        value = answer.value
    except (TypeError, ValueError, RecursionError):
        value = str(answer)
    fields = {
        "answer": str(answer),
        "value": value,
        "status": answer.status,
        "limit": answer.limit,
        "model": rlm.settings.model,
        "recursive_model": rlm.settings.recursive_model,
        "usage": {**asdict(answer.usage), "total_tokens": answer.usage.total_tokens},
        "cost_usd": answer.cost_usd,
        "cost_summary": rlm.cost_summary(),
        "turns": answer.turns,
        "seconds": round(answer.seconds, 3),
        "run_id": answer.run_id,
        "warnings": list(answer.warnings),
    }
    readable = (sys.stdout.encoding or "").lower().startswith("utf")
    return json.dumps(fields, ensure_ascii=not readable)
