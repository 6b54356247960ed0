"""`rlm map`: the same question about every row of a table."""

from __future__ import annotations

import json
import sys
from contextlib import AsyncExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from click.core import ParameterSource

from rlm.cli.command import Command, GroupedOption, PathOption
from rlm.cli.defaults import settings_option
from rlm.cli.endpoint import load_env_file, require_endpoint
from rlm.cli.failures import complain
from rlm.cli.options import ABOVE_ZERO, COUNT_OR_NONE
from rlm.cli.tables import (
    DEFAULT_MODEL,
    by_model,
    encoding_option,
    job_option,
    models_option,
    price_option,
    prompt_option,
    rows_per_call_option,
    schema_option,
)
from rlm.display.status_line import StatusLine, job_in_words

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm.bulk import JobEstimate, JobProgress, JobReport

__all__ = ["command"]

F = TypeVar("F", bound="Callable[..., Any]")

PILOT_ROWS: Final = 20
MOST_TEMPERATURE: Final = 2
OVERRULED: Final = {
    "retry": ("table", "prompt", "output"),
    "resume": ("overwrite",),
    "overwrite": ("resume",),
}
"""Option of the command line → options of the settings file that it replaces, because they exclude each other."""
OF_RETRY: Final = frozenset({"max_output_tokens", "budget", "prices", "base_url"})
"""Options that a retry takes; the others are those of the job that it repeats."""


class _TemperatureOf(click.ParamType[Any]):
    """`T`, the temperature of all models, with the name ''; or `NAME=T`."""

    name = "temperature"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        """Return the name and the temperature."""
        name, _, number = str(value).rpartition("=")
        try:
            temperature = float(number)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor of the form NAME=NUMBER", param, ctx)
        if not 0 <= temperature <= MOST_TEMPERATURE:
            self.fail(f"{value!r} is not between 0 and {MOST_TEMPERATURE}", param, ctx)
        return name, temperature


def _option(*names: str, group: str, **keywords: Any) -> Callable[[F], F]:
    return click.option(*names, cls=GroupedOption, group=group, **keywords)


@click.command("map", cls=Command)
@click.argument("table", required=False, metavar="[INPUT]", type=PathOption())
@settings_option
@prompt_option
@schema_option
@job_option("output", "-o", "--output", group="Job", type=PathOption(), metavar="FILE")
@job_option("column", group="Job")
@rows_per_call_option
@job_option("skip_when", group="Job", metavar="RULE")
@job_option("limit", group="Job")
@encoding_option
@models_option
@job_option("samples", group="Models")
@job_option("escalate_to", group="Models")
@job_option("escalate_when", group="Models", metavar="RULE")
@job_option("temperature", group="Models", type=_TemperatureOf(), multiple=True, metavar="T|NAME=T")
@job_option("max_output_tokens", group="Models")
@price_option
@_option("--base-url", group="Models", metavar="URL", help="Any OpenAI-compatible endpoint.")
@_option(
    "--batch-api", group="Models", is_flag=True, help="Use the Batch API: within a day, at half the price."
)
@_option(
    "--no-wait", group="Models", is_flag=True, help="With --batch-api: submit and end; --resume collects."
)
@_option(
    "--cancel",
    group="Models",
    is_flag=True,
    help="With --batch-api: cancel the batches of this output's job.",
)
@job_option("max_concurrent", group="Limits")
@_option("--budget", group="Limits", type=ABOVE_ZERO, metavar="DOLLARS", help="Never spend more.")
@job_option("pilot", group="Limits", type=COUNT_OR_NONE, default="20 on a terminal")
@_option("-y", "--yes", group="Limits", is_flag=True, help="Go on after the pilot without asking.")
@job_option("resume", group="Resume and retry")
@job_option("overwrite", group="Resume and retry")
@_option(
    "--retry",
    group="Resume and retry",
    type=PathOption(),
    metavar="OUT.failed.jsonl",
    help="Ask the failed rows of a finished job again.",
)
@_option("--json", "as_json", group="Output", is_flag=True, help="Print the report as one JSON object.")
@_option("--quiet", group="Output", is_flag=True, help="Show no progress and no report.")
@click.pass_context
def command(
    context: click.Context,
    /,
    *,
    yes: bool,
    no_wait: bool,
    cancel: bool,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> int:
    """Ask the same question about every row of a table, many rows in one call.

    The output has every row of the input, in order, with the new columns. Rows that failed are in
    OUT.failed.jsonl with the reason, and the answers, as they arrive, in OUT.journal. Progress goes to stderr.

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
    A stronger model for the rows that the cheap one is not sure of:
      rlm map in.csv -p 'Label {{text}}' -o out.csv -m gpt-5-nano \\
        --schema "label: 'spam'|'ham', confidence: float" \\
        --escalate-to gpt-5 --escalate-when 'confidence < 0.8'
    \b
    With all options in a file, which rlm count and rlm split read, too:
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

    The command line is stronger than the file. Keys stay in the environment.

    Exit codes: 0 done, 1 stopped or no row was answered, 2 wrong usage or input, 3 the budget is used up, 5 the
    provider failed or refused, 130 interrupted.
    """  # noqa: D301 - the backspace is click's mark for lines that keep their breaks
    job = _without_overruled(context, given)
    _check(job, cancels=cancel)
    load_env_file(Path.cwd())
    require_endpoint(job.get("base_url"))

    from rlm._async.portal import lease
    from rlm.errors import JobStopped
    from rlm.wording import counted

    try:
        with lease() as portal:
            if cancel:
                click.echo(f"{counted(portal.call(_cancel, job), 'batch')} cancelled")
                return 0
            report = portal.call(partial(_run, job, yes=yes, waits=not no_wait, quiet=quiet))
    except JobStopped as stop:
        hint = " (--resume)" if "resume" in str(stop) else ""
        raise JobStopped(f"{stop}{hint}", cause=stop.cause) from stop
    except KeyboardInterrupt:
        complain("interrupted; every answer received so far is kept: go on with --resume")
        raise
    if as_json:
        click.echo(json.dumps(asdict(report), default=str))
    elif not quiet:
        click.echo(str(report), err=True)
    return 0 if report.answered else 1


def _without_overruled(context: click.Context, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given, without those of the settings file that the command line excludes."""
    overruled = {
        name
        for winner, losers in OVERRULED.items()
        if context.get_parameter_source(winner) is ParameterSource.COMMANDLINE
        for name in losers
        if context.get_parameter_source(name) is ParameterSource.DEFAULT_MAP
    }
    return {name: value for name, value in given.items() if value not in (None, ()) and name not in overruled}


def _check(job: dict[str, Any], *, cancels: bool) -> None:
    """Raise a usage error if options that the job needs are missing, or exclude each other."""
    if cancels:
        if "output" not in job:
            raise click.UsageError("--cancel needs the output of the job: -o FILE")
    elif "retry" in job:
        if {"table", "prompt", "output"} & job.keys():
            raise click.UsageError(
                "--retry does the job of its file again: it takes no INPUT, --prompt or --output"
            )
    elif "table" not in job:
        raise click.UsageError("no INPUT: name a table, such as in.csv")
    elif not job.get("prompt"):
        raise click.UsageError("no prompt: add -p 'Label {{text}}'")
    elif "output" not in job:
        raise click.UsageError("no output: add -o out.csv")
    elif job.get("resume") and job.get("overwrite"):
        raise click.UsageError("--resume goes on with a job, --overwrite forgets it: give one of them")


async def _run(job: dict[str, Any], *, yes: bool, waits: bool, quiet: bool) -> JobReport:
    from rlm.bulk import amap_rows, aretry_rows
    from rlm.bulk.batch_api.passes import BatchAPI

    retry, uses_batch_api = job.pop("retry", None), job.pop("batch_api", False)
    models = job.pop("models", None) or _models_of_job(retry)
    stronger = [job["escalate_to"]] if "escalate_to" in job else []
    job["prices"] = by_model(job.pop("prices", ()), (*models, *stronger))
    async with AsyncExitStack() as stack:
        line = None if quiet else stack.enter_context(StatusLine())
        job["on_progress"] = None if line is None else partial(_show_progress, line)
        if uses_batch_api:
            job["ask_packs"] = await stack.enter_async_context(
                BatchAPI(base_url=job.get("base_url"), prices=job["prices"], wait=waits)
            )
        if retry is not None:
            taken = OF_RETRY | {"on_progress", "ask_packs"}
            return (await aretry_rows(retry, **{name: job[name] for name in taken & job.keys()})).report
        if "temperature" in job:
            pairs = job.pop("temperature")
            one_for_all = dict(pairs)[""] if {name for name, _ in pairs} == {""} else None
            job["temperature"] = by_model(pairs, models) if one_for_all is None else one_for_all
        asks = sys.stdin is not None and sys.stdin.isatty() and not (yes or uses_batch_api)
        job.setdefault("pilot", PILOT_ROWS if asks else 0)
        rows, prompt = job.pop("table"), job.pop("prompt")
        return (
            await amap_rows(rows, prompt, model=models, confirm=partial(_confirm, yes, line), **job)
        ).report


def _show_progress(line: StatusLine, progress: JobProgress) -> None:
    line.show(partial(job_in_words, progress))


def _models_of_job(dead_letters: str | None) -> tuple[str, ...]:
    """Return the models of the job that is retried, with the one for rows in doubt; or the default model."""
    if dead_letters is None or not dead_letters.endswith(".failed.jsonl"):
        return (DEFAULT_MODEL,)
    from rlm.bulk.checkpoint import read_job

    task = read_job(Path(f"{dead_letters.removesuffix('.failed.jsonl')}.journal")).task
    return (*task["models"], *filter(None, [task.get("escalate_to")]))


async def _cancel(job: dict[str, Any]) -> int:
    from rlm.bulk.batch_api.passes import BatchAPI

    async with BatchAPI(base_url=job.get("base_url")) as batch_api:
        return await batch_api.cancel(Path(f"{job['output']}.journal"))


def _confirm(yes: bool, line: StatusLine | None, estimate: JobEstimate) -> bool:
    """Print the estimate, and return True to go on after the pilot; without a terminal, only `--yes` goes on."""
    if line is not None:
        line.end()
    click.echo(str(estimate), err=True)
    if yes:
        return True
    if sys.stdin is None or not sys.stdin.isatty():
        click.echo("stdin is no terminal, so you cannot be asked whether to go on: --yes goes on", err=True)
        return False
    return click.confirm("Go on?", default=True, err=True)
