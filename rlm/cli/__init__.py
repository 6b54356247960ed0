"""The `rlm` command: one file per command, what they share in `options`, `failures` and `running`.

Exit codes: 0 answered · 1 the run failed · 2 wrong usage or input · 3 a limit was reached, the answer is partial ·
5 the provider failed or refused · 130 interrupted.
"""

from __future__ import annotations

import os
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rlm.cli.failures import State, broken_pipe, report

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["command", "main"]

_SUMMARIES = {
    "demo": "See it work, with no key and no network.",
    "ask": "Ask a question of files, or of what is piped in.",
    "chat": "Ask several questions, and run Python next to the model.",
    "map": "Ask the same of every row of a table, many rows in one call.",
    "count": "Say what a job over a table would take, in calls and dollars.",
    "split": "Cut a table into parts that are each small enough.",
    "doctor": "Say what works here: isolation, keys, packages.",
}

_OF_A_QUESTION = frozenset({"-q", "--question"})
_SHOWN_CHARS = 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, by default that of the process; gives the exit code."""
    state = State()
    _prepare_streams()
    try:
        code = command.main(arguments, prog_name="rlm", standalone_mode=False, obj=state)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # click turns the one that it sees into the other
        return broken_pipe(state)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the process border: one line and a code
        return report(error, state)
    return code if isinstance(code, int) else 0


def _prepare_streams() -> None:
    """A closed stream swallows what is written; what a stream cannot encode is written out as an escape."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 - open until the end
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _as_question(arguments: Sequence[str]) -> str:
    """The command line as it was perhaps meant; a long question is cut."""
    words = [word if len(word) <= _SHOWN_CHARS else f"{word[:_SHOWN_CHARS]}…" for word in arguments]
    return f"rlm ask {shlex.join(words)}"


def _not_a_command(arguments: Sequence[str]) -> str:
    """What to say where the first argument is none of the commands."""
    import difflib

    name = arguments[0]
    if name in ("help", "version"):
        return f"there is no command {name!r}; did you mean rlm {' '.join([*arguments[1:2], f'--{name}'])}?"
    close = difflib.get_close_matches(name, _SUMMARIES, n=1)
    if close:
        return f"there is no command {name!r}; did you mean rlm {close[0]}?"
    if Path(name).exists() or _OF_A_QUESTION & set(arguments[1:]):
        return f"{name!r} is no command; did you mean {_as_question(arguments)}?"
    if " " in name:
        return f"{name!r} is no command; did you mean {_as_question(['FILE', '-q', name])}?"
    return f"there is no command {name!r}"


class _Commands(click.Group):
    """The commands, each imported when it is used: `rlm --help` loads none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - the same
        if cmd_name not in _SUMMARIES:
            return None
        found: click.Command = import_module(f"rlm.cli.{cmd_name}").command
        return found

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if error.option_name not in _OF_A_QUESTION:
                raise
            ctx.fail(f"the command is missing; did you mean {_as_question(given)}?")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _SUMMARIES:
            raise click.UsageError(_not_a_command(args), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_SUMMARIES.items()))


def _show_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from rlm import __version__

        click.echo(f"rlm-cells {__version__}")
        ctx.exit()


@click.group(
    cls=_Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version.",
)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Ask questions of texts far longer than any prompt.

    A root model reads the text through Python cells in a sandbox, asks sub-models about its parts, and answers.

    \b
    Begin here:
      rlm demo                                      no key, no network
      rlm ask contract.txt -q "Who may terminate?"  with OPENAI_API_KEY, or:
      rlm ask contract.txt -q "…" -m qwen3 --base-url http://localhost:11434/v1
      rlm ask contract.txt -q "…" --client offline  only quotes, no model

    Exit codes: 0 answered, 1 the run failed, 2 wrong usage or input, 3 a limit was reached and the answer is
    partial, 5 the provider failed or refused, 130 interrupted.
    """  # noqa: D301 - the backspace is click's mark for lines that keep their breaks
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
