"""`rlm demo`: a whole run over a real text, with no key and no network."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from rlm.cli.command import Command
from rlm.cli.options import run_options

if TYPE_CHECKING:
    from rlm.cli.options import RunFlags

__all__ = ["QUESTION", "command"]

QUESTION = "What happens when a return statement passes control out of a try statement with a finally clause?"


@click.command("demo", cls=Command)
@click.option("-q", "--query", metavar="TEXT", default=QUESTION, help="Ask something else of the same text.")
@run_options("calls", "sandbox", "cell_timeout_s", "verbose")
def command(query: str, options: RunFlags) -> int:
    """See it work, with no key and no network: a question about a long text.

    The text is the help on the Python language that ships with every Python, some 465,000 characters. The cells are
    those that a model would write: look at the text, ask about its parts all at once, answer. No language model is
    used: rules find the parts and quote them.

    \b
    Examples:
      rlm demo
      rlm demo -q "Which string method removes a single prefix?"
      rlm demo -q "What is the population of Berlin?"   # not there: NOT FOUND
    """  # noqa: D301 - the backspace is click's mark for lines that keep their breaks
    if not query.strip():
        raise click.UsageError('no question: rlm demo -q "Which debugger command prints a stack trace?"')

    from rlm.cli.answers import show_answer
    from rlm.cli.running import open_rlm
    from rlm.display.run_state import RunState
    from rlm.display.text import seconds
    from rlm.offline.demo import DemoClient, python_topics
    from rlm.wording import counted

    text = python_topics()
    _say(f"The text: Python's own help on its language, {counted(len(text), 'character')}.")
    _say("NO LANGUAGE MODEL is used: the cells are fixed, and rules quote the answer.\n")
    state = RunState()
    with open_rlm(options, client=DemoClient(query), listener=state.apply) as rlm:
        answer = rlm.completion(text, query)
        code = show_answer(answer, rlm)
    _say(
        f"\nRead: {state.read_chars:,} of {len(text):,} characters, in {counted(state.sub_calls, 'sub-call')}."
    )
    _say(f"Took: {seconds(answer.seconds)}, {counted(answer.turns, 'turn')}.")
    _say("Next, with rules: rlm ask FILE -q QUESTION --client offline")
    _say("With a model:     export OPENAI_API_KEY=…; rlm ask FILE -q QUESTION")
    _say("                  rlm chat FILE")
    return code


def _say(line: str) -> None:
    click.secho(line, err=True, dim="NO_COLOR" not in os.environ)
