"""`rlm count`: the size and the price of a job over a table."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from rlm.cli.command import Command, GroupedOption, PathOption
from rlm.cli.defaults import settings_option
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

__all__ = ["command"]


@click.command("count", cls=Command)
@click.argument("table", metavar="INPUT", type=PathOption())
@settings_option
@prompt_option
@schema_option
@rows_per_call_option
@job_option("limit", group="Job")
@encoding_option
@models_option
@price_option
@click.option(
    "--json", "as_json", cls=GroupedOption, group="Output", is_flag=True, help="Print one JSON object."
)
def command(
    table: str, *, models: tuple[str, ...], prices: tuple[tuple[str, Any], ...], as_json: bool, **options: Any
) -> int:
    """Count the rows, tokens, calls and dollars of a job over a table. Asks no model.

    \b
    Examples:
      rlm count in.csv
      rlm count in.csv -p 'Label {{text}}' --schema 'label: str' -m gpt-5-nano \\
        -m own-model --price own-model=0.1,0.8
      rlm count --settings job.toml          # that of rlm map
    """  # noqa: D301 - the backspace is click's mark for lines that keep their breaks
    from rlm.bulk import count_rows

    models = models or (DEFAULT_MODEL,)
    given = {name: value for name, value in options.items() if value is not None}
    count = count_rows(table, models=models, prices=by_model(prices, models), **given)
    click.echo(json.dumps(asdict(count)) if as_json else str(count))
    return 0
