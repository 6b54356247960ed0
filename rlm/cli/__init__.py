"""The `rlm` command: one module per command; `command`, `options` and `failures` are shared.

Exit codes: 0 answered · 1 the run failed · 2 wrong usage or input · 3 a limit was reached, the answer is partial ·
5 the provider failed or refused · 130 interrupted.
"""

from __future__ import annotations

import os
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from rlm.cli.failures import State, broken_pipe, report

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMPLETE_VARIABLE", "command", "commands", "main"]

_SUMMARIES: Final = {
    "demo": "See it work, with no key and no network.",
    "ask": "Ask a question about files, or about piped data.",
    "chat": "Ask several questions, and run Python next to the model.",
    "map": "Ask the same question about every row of a table.",
    "count": "Count the rows, tokens, calls and dollars of a job over a table.",
    "split": "Cut a table into parts of a given size.",
    "config": "Show and change the defaults of options.",
    "completion": "Print the script for completion in your shell.",
    "doctor": "Check this machine: isolation, keys, packages.",
}

COMPLETE_VARIABLE: Final = "_RLM_COMPLETE"
_SHOWN_CHARS: Final = 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, by default that of the process, and return the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    state = State(as_json="--json" in words)
    _prepare_streams()
    try:
        code = command.main(
            words, prog_name="rlm", standalone_mode=False, obj=state, complete_var=COMPLETE_VARIABLE
        )
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as stop:  # click turns the one that it sees into the other
        if COMPLETE_VARIABLE in os.environ and isinstance(stop, SystemExit):
            return 0
        return broken_pipe(state)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the process border: one line and a code
        return report(error, state)
    return code if isinstance(code, int) else 0


def commands() -> dict[str, click.Command]:
    """Import all commands, and return them by name."""
    return {name: import_module(f"rlm.cli.{name}").command for name in _SUMMARIES}


def _prepare_streams() -> None:
    """Replace a closed stream by the null device; escape characters that a stream cannot encode."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 - open until the end
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


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
            if error.option_name not in {"-q", "--query"}:
                raise
            raise click.UsageError(f"the command is missing; did you mean {_as_ask(given)}?", ctx) from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _SUMMARIES and not ctx.resilient_parsing:
            raise click.UsageError(_not_a_command(args), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_SUMMARIES.items()))


def _not_a_command(arguments: Sequence[str]) -> str:
    """Return the message for a first argument that is not a command: often a file, or a question."""
    name = arguments[0]
    if name in ("help", "version"):
        meant = ["rlm", *arguments[1:2], f"--{name}"]
        return f"there is no command {name!r}; did you mean {' '.join(meant)}?"
    if Path(name).exists():
        return f"{name!r} is not a command; did you mean {_as_ask(arguments)}?"
    if " " in name:
        return f"{name!r} is not a command; did you mean {_as_ask(['FILE', '-q', name])}?"
    return click.NoSuchCommand(name, f"there is no command {name!r}.", _SUMMARIES).format_message()


def _as_ask(arguments: Sequence[str]) -> str:
    """Return the command line with the missing `ask`; long arguments are cut."""
    words = [word if len(word) <= _SHOWN_CHARS else f"{word[:_SHOWN_CHARS]}…" for word in arguments]
    return f"rlm ask {shlex.join(words)}"


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

    \b
    Then:
      rlm config set model gpt-5                    a default of your own
      rlm completion bash >> ~/.bashrc              completion in your shell

    Exit codes: 0 answered, 1 the run failed, 2 wrong usage or input, 3 a limit was reached and the answer is
    partial, 5 the provider failed or refused, 130 interrupted.
    """  # noqa: D301 - the backspace is click's mark for lines that keep their breaks
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
