"""`rlm chat`: several questions about one context, and Python next to the model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from rlm.cli.command import Command
from rlm.cli.failures import FAILED, complain, exit_code_of
from rlm.cli.options import encoding_option, files_argument, run_options

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rlm.cli.chat_inputs import Input
    from rlm.cli.options import RunFlags
    from rlm.rlm_repl import RLM_REPL
    from rlm.session import RLMSession
    from rlm.values import CellResult, Variable

__all__ = ["command"]

HELP = """\
  a plain line  asks the model; it knows the earlier questions and variables
  !code         runs Python where the model does, with context, llm_query,
                llm_batch and its variables
  ?name         shows a variable;  ? or /vars lists them
  /cost         what was spent, and the budget
  /reset        starts anew on the same data
  /quit         leaves, as does Ctrl-D
  Enter sends, Alt-Enter begins a new line, unfinished code goes on by itself
  Ctrl-C stops what runs; variables and conversation are kept"""

SHOWN_LINES = 60
SHOWN_CHARS = 500


@click.command("chat", cls=Command)
@files_argument
@encoding_option
@run_options()
def command(files: tuple[str, ...], encoding: str | None, options: RunFlags) -> int:
    """Ask several questions about files, and run Python next to the model.

    The model keeps its variables and the conversation. From a pipe, each line is one input.

    \b
    Examples:
      rlm chat contract.txt
      rlm chat minutes/*.md -m qwen3 --base-url http://localhost:11434/v1
      printf 'Who are the parties?\\n!len(context)\\n' | rlm chat contract.txt
      rlm chat contract.txt --journal runs.journal
      jq -r 'select(.type == "AnswerGiven" and .depth == 0)
        | .answer.text' runs.journal

    \b
    In the chat:
      a plain line asks · !code runs Python · ?name shows a variable
      /vars /cost /reset /help /quit · Ctrl-C stops a turn and keeps everything
    """  # noqa: D301 - the backspace is click's mark for lines that keep their breaks
    from rlm.cli.chat_prompt import can_prompt, lines_of_stdin, lines_of_terminal
    from rlm.cli.inputs import read_context
    from rlm.cli.running import open_rlm

    interactive = can_prompt()
    lines = lines_of_terminal() if interactive else lines_of_stdin()
    context = read_context(files, encoding, may_read_stdin=False, quiet=options.quiet)
    with open_rlm(options) as rlm:
        if interactive:
            click.echo(f"{_describe(context)} {_who_answers(rlm)} /help lists the commands.", err=True)
        return _Chat(rlm, context, interactive=interactive, quiet=options.quiet).follow(lines)


class _Chat:
    """One conversation; `/reset` opens a new session on the same context."""

    def __init__(self, rlm: RLM_REPL, context: object, *, interactive: bool, quiet: bool) -> None:
        self._rlm = rlm
        self._context = context
        self._interactive = interactive
        self._quiet = quiet
        self._session: RLMSession = rlm.session(context)

    def follow(self, lines: Iterable[str]) -> int:
        """Run each line. Return the exit code of the first failure if the lines came from a pipe, else 0."""
        from rlm.cli.chat_inputs import ChatCommand, parse

        first_failure = 0
        for line in lines:
            wanted = parse(line)
            if wanted == ChatCommand("quit"):
                break
            code = self._do_safely(wanted)
            first_failure = first_failure or code
        return 0 if self._interactive else first_failure

    def _do_safely(self, wanted: Input) -> int:
        """Run one input; print an error in one line, so that the chat goes on."""
        from rlm.errors import RLMError, SessionClosed

        try:
            return self._do(wanted)
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            complain("stopped; variables and conversation are kept")
            return 0
        except SessionClosed:
            raise
        except RLMError as error:
            complain(str(error))
            return exit_code_of(error)

    def _do(self, wanted: Input) -> int:
        from rlm.cli.answers import show_answer
        from rlm.cli.chat_inputs import AskModel, ChatCommand, RunCode, ShowVariable, Unknown
        from rlm.cli.running import budget_of, spent

        match wanted:
            case AskModel(text):
                code = show_answer(self._session.ask(text), self._rlm, quiet=self._quiet)
                if self._interactive:
                    click.echo(err=True)
                return code
            case RunCode(text):
                return _show_result(self._session.run(text))
            case ShowVariable(name):
                return self._show(name)
            case ChatCommand("vars"):
                _show_variables(self._session.variables())
            case ChatCommand("cost"):
                click.echo(f"{spent(self._rlm)}\n{budget_of(self._rlm)}")
            case ChatCommand("reset"):
                self._reset()
            case ChatCommand("help"):
                click.echo(HELP)
            case Unknown(text):
                complain(f"there is no command {text}; /help lists the commands")
                return FAILED
            case _:
                pass
        return 0

    def _show(self, name: str) -> int:
        from rlm.errors import ContextError

        try:
            value = self._session.fetch(name)
        except KeyError:
            complain(f"there is no variable {name!r}; ? lists the variables")
            return FAILED
        except ContextError:  # a value that cannot be sent to the host, such as a function: show its preview
            found = [variable for variable in self._session.variables() if variable.name == name]
            _show_variables(found)
            return 0
        size = f" of {len(value):,}" if hasattr(value, "__len__") else ""
        click.echo(f"{name}: {type(value).__name__}{size}", err=True)
        _print_clipped(value if isinstance(value, str) else repr(value))
        return 0

    def _reset(self) -> None:
        self._session.close()
        self._session = self._rlm.session(self._context)
        complain("variables and conversation are gone; the data is as it was")


def _show_result(result: CellResult) -> int:
    """Print the output of the user's cell, and its error on stderr; return the exit code."""
    if result.stdout:
        _print(result.stdout.removesuffix("\n"), sys.stdout.isatty())
    for text in (result.stderr, result.error):
        if text:
            _print(text.removesuffix("\n"), sys.stderr.isatty(), err=True)
    if result.state != "kept":
        complain(f"the cell {result.outcome}: variables are {result.state}")
    return 0 if result.outcome == "ok" else FAILED


def _show_variables(variables: Iterable[Variable]) -> None:
    from rlm.display.text import one_line

    rows = [
        (
            variable.name,
            variable.type_name,
            "" if variable.length is None else f"{variable.length:,}",
            variable.preview,
        )
        for variable in variables
        if variable.type_name != "module"
    ]
    if not rows:
        click.echo("no variables yet, besides context")
        return
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, kind, length, preview in rows:
        click.echo(
            f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {length:>{widths[2]}}  {one_line(preview, 80)}".rstrip()
        )


def _print_clipped(text: str) -> None:
    from rlm.display.text import first_lines
    from rlm.wording import counted

    lines, more = first_lines(text, SHOWN_LINES, SHOWN_CHARS)
    click.echo("\n".join(lines))
    if more:
        complain(f"{counted(more, 'more line')}; !print(…) shows what you choose")


def _print(text: str, on_terminal: bool, *, err: bool = False) -> None:
    from rlm.display.text import visible

    click.echo(visible(text) if on_terminal or err else text, err=err)


def _who_answers(rlm: RLM_REPL) -> str:
    from rlm.cli.endpoint import OFFLINE

    model = rlm.settings.model
    return "Rules answer, no model." if model == OFFLINE else f"Asks {model}."


def _describe(context: str | dict[str, str]) -> str:
    if isinstance(context, str):
        return f"{len(context):,} characters of text."
    return f"{len(context):,} files, {sum(map(len, context.values())):,} characters in all."
