"""`rlm count`: what a job over a table would take."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

import click

from rlm.cli.settings_file import settings_option
from rlm.cli.tables import (
    DEFAULT_MODEL,
    encoding_option,
    models_option,
    price_option,
    prompt_option,
    rows_per_call_option,
    schema_of_option,
    schema_option,
    text_of_option,
)

if TYPE_CHECKING:
    from rlm.cli.tables import Prices

__all__ = ["command"]


@click.command("count")
@click.argument("table", metavar="INPUT")
@settings_option
@prompt_option
@schema_option
@models_option
@rows_per_call_option
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N rows.")
@price_option
@encoding_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    table: str,
    *,
    prompt: str | None,
    schema: str | None,
    models: tuple[str, ...],
    rows_per_call: int | Literal["auto"],
    limit: int | None,
    prices: Prices,
    encoding: str,
    as_json: bool,
) -> int:
    """Say what a job over a table would take: rows, tokens, calls, dollars. Asks no model.

    \b
    Examples:
      rlm count in.csv
      rlm count in.csv -p 'Label {{text}}' --schema 'label: str' -m gpt-5-nano \\
        -m own-model --price own-model=0.1,0.8
      rlm count --settings job.toml          # that of rlm map
    """  # noqa: D301 - the backspace is click's mark for lines that keep their breaks
    from rlm.bulk import count_rows

    asked = models or (DEFAULT_MODEL,)
    count = count_rows(
        table,
        text_of_option(prompt),
        schema=schema_of_option(schema),
        models=asked,
        rows_per_call=rows_per_call,
        limit=limit,
        prices=prices.of(asked),
        encoding=encoding,
    )
    click.echo(json.dumps(asdict(count)) if as_json else str(count))
    return 0
