"""`rlm map`: the same question about every row of a table."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import click

from rlm.cli.settings_file import settings_option, without_overruled
from rlm.cli.tables import (
    DEFAULT_MODEL,
    encoding_option,
    models_option,
    number_or_auto,
    price_option,
    prompt_option,
    require_endpoint,
    rows_per_call_option,
    schema_of_option,
    schema_option,
    temperatures_of,
    text_of_option,
)
from rlm.display.job_line import JobLine

if TYPE_CHECKING:
    from rlm.bulk import Estimate, Report
    from rlm.cli.tables import Prices, Temperatures

__all__ = ["command"]

PILOT_ROWS = 20
NOT_WITH = {
    "retry": ("table", "prompt", "output"),
    "resume": ("overwrite",),
    "overwrite": ("resume",),
}
"""Option → those that it cannot be together with."""


@click.command("map")
@click.argument("table", required=False, metavar="[INPUT]")
@settings_option
@prompt_option
@schema_option
@click.option(
    "-o", "--output", metavar="FILE", help="The table to write: .csv .tsv .jsonl .json .parquet .xlsx"
)
@models_option
@click.option("--samples", type=click.IntRange(min=1), default=1, help="Ask each model so often, and vote.")
@click.option(
    "--escalate-to",
    metavar="NAME",
    help="A stronger model for rows in doubt: no answer, or opinions disagree.",
)
@click.option(
    "--escalate-when",
    metavar="RULE",
    help="Which answers are in doubt, such as \"confidence < 0.7 or label == 'other'\".",
)
@rows_per_call_option
@click.option(
    "--max-concurrency",
    "--max-concurrent",
    "max_concurrency",
    callback=number_or_auto,
    default="auto",
    metavar="N|auto",
    help="Calls at once.  [default: as many as the endpoint turns out to take]",
)
@click.option(
    "--temperature",
    "temperatures",
    callback=temperatures_of,
    multiple=True,
    metavar="T|NAME=T",
    help="Passed to the models, or to one of them; repeatable.",
)
@click.option("--max-output-tokens", type=click.IntRange(min=1), metavar="N", help="Output cap of each call.")
@click.option("--column", default="answer", help="Column of an answer that is no object.  [default: answer]")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N rows.")
@click.option(
    "--pilot",
    type=click.IntRange(min=0),
    metavar="N",
    help="Ask N rows first, tell what the whole will take, and ask whether to go on.  [default: 20 on a terminal]",
)
@click.option("-y", "--yes", is_flag=True, help="Go on after the pilot without asking.")
@click.option(
    "--skip-when", metavar="RULE", help="Rows not to ask, such as \"len(text) < 3 or lang != 'en'\"."
)
@click.option(
    "--budget", type=click.FloatRange(min=0, min_open=True), metavar="DOLLARS", help="Never spend more."
)
@price_option
@click.option("--resume", is_flag=True, help="Go on with an interrupted job of this output.")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists, and forget its job.")
@click.option("--retry", metavar="OUT.failed.jsonl", help="Ask the failed rows of a finished job again.")
@click.option("--batch-api", is_flag=True, help="Ask through the Batch API: within a day, at half the price.")
@click.option("--no-wait", is_flag=True, help="With --batch-api: submit and end; --resume collects.")
@click.option("--cancel", is_flag=True, help="With --batch-api: cancel the batches of this output's job.")
@click.option("--base-url", metavar="URL", help="Any OpenAI-compatible endpoint.")
@encoding_option
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@click.option("--quiet", is_flag=True, help="Show no progress and no report.")
@click.pass_context
def command(context: click.Context, /, **values: Any) -> int:
    """Ask the same of every row of a table, many rows in one call.

    The output has every row of the input, in order, with the new columns. Rows that failed are in
    OUT.failed.jsonl with the reason, and the answers, as they come, in OUT.journal. Progress goes to stderr.

    \b
    Examples:
      rlm map in.csv -p 'Label {{text}}' -o out.csv \\
        --schema "label: 'spam'|'ham', score: float"
      rlm map in.csv -p 'Label {{text}}' -o out.csv --resume
      rlm map in.parquet -p @prompt.txt --schema @schema.json -o out.parquet \\
        --budget 5 --skip-when 'len(text) < 3'
      rlm map --retry out.csv.failed.jsonl --max-output-tokens 4000
    \b
    Two opinions and their agreement; half the price, within a day:
      rlm map in.csv -p 'Label {{text}}' -o out.csv -m gpt-5-nano -m a \\
        --temperature 0.2 --temperature a=0.9 --price a=0.1,0.8
      rlm map in.csv -p 'Label {{text}}' -o out.csv --batch-api
    \b
    A stronger model for what the cheap one is not sure of:
      rlm map in.csv -p 'Label {{text}}' -o out.csv -m gpt-5-nano \\
        --schema "label: 'spam'|'ham', confidence: float" \\
        --escalate-to gpt-5 --escalate-when 'confidence < 0.8'
    \b
    With all of it in a file, which `rlm count` and `rlm split` take, too:
      rlm map --settings job.toml --limit 50
    \b
      # job.toml: any option by its long name, and input
      input = "in.csv"             # paths begin at the folder of this file
      output = "out.csv"
      prompt = "Label {{text}}"    # or "@prompt.txt"
      schema = "label: 'spam'|'ham', score: float"
      model = ["gpt-5-nano", "a"]
      temperature = {a = 0.9}
      rows-per-call = 20
      resume = true

    What the command line says goes before the file. Keys stay in the environment.

    Exit codes: 0 done, 1 stopped or no row was answered, 2 wrong usage or input, 3 the budget is used up, 5 the
    provider failed or refused, 130 interrupted.
    """  # noqa: D301 - the backspace is click's mark for lines that keep their breaks
    options = _Options(**without_overruled(context, values, NOT_WITH))
    _check(options)
    require_endpoint(options.base_url)

    from rlm._async.portal import lease
    from rlm.errors import JobStopped

    try:
        with lease() as portal:
            if options.cancel:
                number = portal.call(_cancel, options)
                click.echo(f"{number} {'batch' if number == 1 else 'batches'} cancelled")
                return 0
            report = portal.call(_run, options)
    except JobStopped as stop:
        hint = " (--resume)" if "resume" in str(stop) else ""
        raise JobStopped(f"{stop}{hint}", cause=stop.cause) from stop
    except KeyboardInterrupt:
        from rlm.cli.failures import complain

        complain("interrupted; what was answered is kept: go on with --resume")
        raise
    _show(report, options)
    return 0 if report.answered else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """What the user said."""

    table: str | None
    prompt: str | None
    schema: str | None
    output: str | None
    models: tuple[str, ...]
    samples: int
    escalate_to: str | None
    escalate_when: str | None
    rows_per_call: int | Literal["auto"]
    max_concurrency: int | Literal["auto"]
    temperatures: Temperatures
    max_output_tokens: int | None
    column: str
    limit: int | None
    pilot: int | None
    yes: bool
    skip_when: str | None
    budget: float | None
    prices: Prices
    resume: bool
    overwrite: bool
    retry: str | None
    batch_api: bool
    no_wait: bool
    cancel: bool
    base_url: str | None
    encoding: str
    as_json: bool
    quiet: bool


def _check(options: _Options) -> None:
    if options.cancel:
        if not options.output:
            raise click.UsageError("--cancel needs the output of the job: -o FILE")
        return
    if options.retry is not None:
        if options.table is not None or options.prompt is not None or options.output is not None:
            raise click.UsageError(
                "--retry does the job of its file again: it takes no INPUT, --prompt or --output"
            )
        return
    if options.table is None:
        raise click.UsageError("no INPUT: name a table, such as in.csv")
    if not options.prompt:
        raise click.UsageError("no prompt: add -p 'Label {{text}}'")
    if not options.output:
        raise click.UsageError("no output: add -o out.csv")
    if options.resume and options.overwrite:
        raise click.UsageError("--resume goes on with a job, --overwrite forgets it: give one of them")


async def _run(options: _Options) -> Report:
    from rlm.bulk import amap_rows, aretry_rows
    from rlm.bulk.batch_api.passes import BatchAPI

    models = options.models or _models_of_job(options.retry)
    prices = options.prices.of((*models, options.escalate_to) if options.escalate_to else models)
    async with AsyncExitStack() as stack:
        line = stack.enter_context(JobLine()) if not options.quiet else None
        progress = None if line is None else line.show
        batch_api = None
        if options.batch_api:
            batch_api = await stack.enter_async_context(
                BatchAPI(base_url=options.base_url, prices=prices, wait=not options.no_wait)
            )
        if options.retry is not None:
            retried = await aretry_rows(
                options.retry,
                max_output_tokens=options.max_output_tokens,
                budget=options.budget,
                prices=prices,
                base_url=options.base_url,
                on_progress=progress,
                ask_packs=batch_api,
            )
            return retried.report
        mapped = await amap_rows(
            str(options.table),
            text_of_option(options.prompt),
            schema=schema_of_option(options.schema),
            output=options.output,
            model=models,
            samples=options.samples,
            escalate_to=options.escalate_to,
            escalate_when=options.escalate_when,
            rows_per_call=options.rows_per_call,
            max_concurrent=options.max_concurrency,
            temperature=options.temperatures.of(models),
            max_output_tokens=options.max_output_tokens,
            column=options.column,
            limit=options.limit,
            pilot=_pilot(options),
            confirm=partial(_confirm, options.yes, line),
            skip_when=options.skip_when,
            budget=options.budget,
            prices=prices,
            resume=options.resume,
            overwrite=options.overwrite,
            encoding=options.encoding,
            base_url=options.base_url,
            on_progress=progress,
            ask_packs=batch_api,
        )
        return mapped.report


def _models_of_job(dead_letters: str | None) -> tuple[str, ...]:
    """The models of the job that is retried, or the default one; with that for rows in doubt."""
    if dead_letters is None or not dead_letters.endswith(".failed.jsonl"):
        return (DEFAULT_MODEL,)
    from pathlib import Path

    from rlm.bulk.checkpoint import read_job

    journal = Path(f"{dead_letters.removesuffix('.failed.jsonl')}.journal")
    task = read_job(journal).task
    return (*task["models"], *filter(None, [task.get("escalate_to")]))


async def _cancel(options: _Options) -> int:
    from pathlib import Path

    from rlm.bulk.batch_api.passes import BatchAPI

    async with BatchAPI(base_url=options.base_url) as batch_api:
        return await batch_api.cancel(Path(f"{options.output}.journal"))


def _pilot(options: _Options) -> int:
    if options.pilot is not None:
        return options.pilot
    asks = not options.yes and not options.batch_api and sys.stdin is not None and sys.stdin.isatty()
    return PILOT_ROWS if asks else 0


def _confirm(yes: bool, line: JobLine | None, estimate: Estimate) -> bool:
    """Whether to go on after the pilot; where nobody can be asked, only with --yes."""
    if line is not None:
        line.end()
    click.echo(str(estimate), err=True)
    if yes:
        return True
    if sys.stdin is None or not sys.stdin.isatty():
        click.echo("nobody can be asked here whether to go on: --yes goes on", err=True)
        return False
    return click.confirm("Go on?", default=True, err=True)


def _show(report: Report, options: _Options) -> None:
    if options.as_json:
        import json

        click.echo(json.dumps(asdict(report), default=str))
    elif not options.quiet:
        click.echo(str(report), err=True)
