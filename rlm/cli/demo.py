"""`rlm demo`: the whole machine on a real text, with no key and no network."""

from __future__ import annotations

import os
from typing import Literal

import click

from rlm.cli.failures import State
from rlm.cli.options import RunOptions, budget_calls_option, cell_timeout_option, sandbox_option

__all__ = ["QUESTION", "command"]

QUESTION = "What happens when a return statement passes control out of a try statement with a finally clause?"


@click.command("demo")
@click.option(
    "-q", "--question", metavar="TEXT", default=QUESTION, help="Ask something else of the same text."
)
@click.option("-v", "--verbose", count=True, help="Show whole cells; -vv every call.")
@budget_calls_option
@sandbox_option
@cell_timeout_option
@click.pass_context
def command(
    ctx: click.Context,
    *,
    question: str,
    verbose: int,
    budget_calls: int | None,
    sandbox: Literal["auto", "strict"],
    cell_timeout: float | None,
) -> int:
    """See it work, with no key and no network: a question about a long text.

    The text is the help on the Python language that ships with every Python, some 465,000 characters. No language
    model is used: the offline client writes real cells, makes real parallel calls, and answers with quotes.

    \b
    Examples:
      rlm demo
      rlm demo -q "Which string method removes a single prefix?"
      rlm demo -q "What is the population of Berlin?"   # not there: NOT FOUND
    """  # noqa: D301 - the backspace is click's mark for lines that keep their breaks
    if not question.strip():
        raise click.UsageError('no question: rlm demo -q "Which debugger command prints a stack trace?"')
    if (state := ctx.find_object(State)) is not None:
        state.verbose = verbose

    from rlm.cli.running import open_rlm, show_answer
    from rlm.display.run_state import RunState
    from rlm.display.text import count, seconds
    from rlm.offline.demo import python_topics

    text = python_topics()
    _say(f"The text: Python's own help on its language, {count(len(text), 'character')}.")
    _say("The client: offline. No language model, only rules; it answers with quotes.\n")
    progress = RunState()
    options = RunOptions(
        client="offline",
        verbose=verbose,
        budget_calls=budget_calls,
        sandbox=sandbox,
        cell_timeout=cell_timeout,
    )
    with open_rlm(options, also=progress.apply) as rlm:
        answer = rlm.completion(text, question)
        code = show_answer(answer, rlm)
    _say(
        f"\nRead: {progress.read_chars:,} of {len(text):,} characters, in {count(progress.sub_calls, 'sub-call')}."
    )
    _say(
        f"Took: {seconds(answer.seconds)}, {count(answer.turns, 'turn')}; no language model, no key, no network."
    )
    _say('Next: rlm demo -q "…" · rlm ask FILE -q "…" · rlm chat FILE · rlm --help')
    return code


def _say(line: str) -> None:
    click.secho(line, err=True, dim="NO_COLOR" not in os.environ)
