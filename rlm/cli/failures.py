"""Errors as one line on stderr, as JSON on stdout where that was asked for, and as an exit code."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass

import click

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "PARTIAL",
    "PROVIDER",
    "USAGE",
    "State",
    "broken_pipe",
    "complain",
    "exit_code_of",
    "report",
]

FAILED = 1
USAGE = 2
PARTIAL = 3
PROVIDER = 5
INTERRUPTED = 130

LONGEST_COMPLAINT = 2_000
NARROWEST = 40


@dataclass(slots=True)
class State:
    """What the commands pass to `main`.

    Attributes:
        as_json: print failures as JSON on stdout, too.
        verbose: number of `-v`.
        code: exit code if stdout is closed by its reader.
    """

    as_json: bool = False
    verbose: int = 0
    code: int = 0


def report(error: BaseException, state: State) -> int:
    """Print an error in one line and return the exit code.

    With `-v` the causes follow, with the place of each. With `-vv`, and for an error that is not one of ours, the
    whole traceback follows.
    """
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    interrupted = isinstance(error, (KeyboardInterrupt, click.Abort))
    code = INTERRUPTED if interrupted else exit_code_of(error)
    message = "interrupted" if interrupted else _words_of(error)
    if not interrupted:
        complain(message)
    if state.as_json:
        _print_json(error, message, code)
    if state.verbose and not interrupted and not isinstance(error, click.ClickException):
        _show_causes(error, whole=state.verbose > 1 or not _is_expected(error))
    return code


def _print_json(error: BaseException, message: str, code: int) -> None:
    import json

    kind = "Interrupted" if code == INTERRUPTED else type(error).__name__
    failure = {"type": kind, "message": message, "exit_code": code}
    with suppress(OSError):  # stdout is closed, and stderr has the message
        click.echo(json.dumps({"status": "failed", "error": failure}))


def complain(message: str) -> None:
    """Print one line on stderr, with control codes escaped; a terminal gets it wrapped at words."""
    from rlm.display.text import one_line

    line = f"rlm: {one_line(message, LONGEST_COMPLAINT)}"
    if sys.stderr.isatty():
        import shutil
        import textwrap

        columns = max(NARROWEST, shutil.get_terminal_size().columns)
        line = textwrap.fill(line, columns - 1, subsequent_indent=" " * 5, break_on_hyphens=False)
    click.echo(line, err=True)


def exit_code_of(error: BaseException) -> int:
    """Return the documented exit code of an error."""
    from rlm.errors import (
        CallError,
        ContextError,
        InputError,
        JobStopped,
        LimitReached,
        MissingExtra,
        OutputError,
        SchemaError,
        SettingsError,
    )

    match error:
        case click.ClickException():
            return error.exit_code
        case SettingsError() | ContextError() | MissingExtra() | InputError() | OutputError() | SchemaError():
            return USAGE
        case JobStopped() if error.cause is not None:
            return exit_code_of(error.cause)
        case CallError():
            return PROVIDER
        case LimitReached():
            return PARTIAL
        case _:
            return FAILED


def broken_pipe(state: State) -> int:
    """Return the exit code after the reader of stdout has closed it, which is not a failure; write nothing more."""
    with suppress(OSError, ValueError):  # stdout is no file, such as in a test
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return state.code


def _show_causes(error: BaseException, *, whole: bool) -> None:
    import traceback

    from rlm.display.text import one_line, visible

    for cause in _causes_of(error):
        what = one_line(f"{type(cause).__name__}: {cause}", LONGEST_COMPLAINT)
        click.echo(f"  because of {what}", err=True)
    if whole:
        click.echo(visible("".join(traceback.format_exception(error))), err=True, nl=False)
        return
    for raised in (error, *_causes_of(error)):
        if frames := traceback.extract_tb(raised.__traceback__):
            last = frames[-1]
            where = one_line(f"{last.filename}:{last.lineno} in {last.name}", LONGEST_COMPLAINT)
            click.echo(f"  {type(raised).__name__} at {where}", err=True)
    click.echo("  -vv shows the whole traceback", err=True)


def _causes_of(error: BaseException) -> list[BaseException]:
    """Return the causes of an error, the first cause last."""
    causes: list[BaseException] = []
    while (cause := error.__cause__) is not None and cause not in causes:
        causes.append(cause)
        error = cause
    return causes


def _is_expected(error: BaseException) -> bool:
    from rlm.errors import RLMError

    return isinstance(error, (RLMError, OSError))


def _words_of(error: BaseException) -> str:
    from rlm.errors import RLMError

    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"{error.format_message()} (see: {error.ctx.command_path} --help)"
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, RLMError):
        return str(error)
    if isinstance(error, OSError):
        return str(error)
    return f"unexpected {type(error).__name__}: {error} (-v shows where; please report it)"
