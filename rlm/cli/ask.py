"""`rlm ask`: one question about files or piped data."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rlm.cli.command import Command, GroupedOption
from rlm.cli.failures import complain
from rlm.cli.options import encoding_option, files_argument, json_option, run_options

if TYPE_CHECKING:
    from rlm.cli.options import RunFlags

__all__ = ["command"]


@click.command("ask", cls=Command)
@files_argument
@click.option(
    "-q",
    "--query",
    "queries",
    cls=GroupedOption,
    group="Input",
    metavar="TEXT",
    multiple=True,
    help="The question.",
)
@encoding_option
@run_options()
@json_option
def command(
    files: tuple[str, ...],
    queries: tuple[str, ...],
    encoding: str | None,
    as_json: bool,
    options: RunFlags,
) -> int:
    """Ask a question about files, or about piped data.

    The answer goes to stdout, progress to stderr. Several files become a dict from name to text. `-` is stdin.

    \b
    Examples:
      rlm ask contract.txt -q "Which clauses let the tenant leave early?"
      rlm ask minutes/*.md -q "Who asked for the budget?" -m gpt-5 -M gpt-5-nano
      journalctl -b | rlm ask -q "What failed first?" --json | jq .answer
      rlm ask a.txt -q "Who is A?" -m qwen3 --base-url http://localhost:11434/v1
      rlm ask book.txt -q "Who is Ann?" --budget 0.50 --cache on

    \b
    With --journal every event is kept, such as the calls that failed and what
    each depth cost:
      rlm ask book.txt -q "Who is Ann?" --journal runs.journal
      jq 'select(.type == "CallFailed") | {call, kind, error}' runs.journal
      jq -n '[inputs | select(.type | IN("CallFinished", "CallFailed"))]
        | group_by(.depth)[] | {depth: .[0].depth, calls: length,
        usd: (map((.reply // .).cost_usd) | if all then add else "unknown" end)}
        ' runs.journal

    Exit codes: 0 answered, 1 the run failed, 2 wrong usage or input, 3 a limit was reached and the answer is
    partial or empty, 5 the provider failed or refused, 130 interrupted.
    """  # noqa: D301 - the backspace is click's mark for lines that keep their breaks
    query = _only_query(queries, files)

    from rlm.cli.answers import show_answer
    from rlm.cli.inputs import read_context
    from rlm.cli.running import open_rlm

    context = read_context(files, encoding, quiet=options.quiet)
    with open_rlm(options) as rlm:
        answer = rlm.completion(context, query)
        return show_answer(answer, rlm, as_json=as_json, quiet=options.quiet)


def _only_query(queries: tuple[str, ...], files: tuple[str, ...]) -> str:
    """Return the one question.

    Raises:
        click.UsageError: there is none, or more than one.
    """
    if len(queries) > 1:
        raise click.UsageError(f"{len(queries)} questions: ask takes one, rlm chat takes several")
    if queries and queries[0].strip():
        if not set(queries[0]) & set(" ?\n") and Path(queries[0]).is_file():
            complain(
                f"note: the question is the text {queries[0]!r}, not the content of the file with that name"
            )
        return queries[0]
    perhaps = next((name for name in files if " " in name and not Path(name).exists()), None)
    if perhaps is not None:
        rest = shlex.join([name for name in files if name is not perhaps] or ["FILE"])
        raise click.UsageError(f"no question; did you mean rlm ask {rest} -q {shlex.quote(perhaps)}?")
    raise click.UsageError('no question: add -q "What do you want to know?"')
