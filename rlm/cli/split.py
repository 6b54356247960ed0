"""`rlm split`: a table cut into parts."""

from __future__ import annotations

import click

from rlm.cli.settings_file import settings_option
from rlm.cli.tables import (
    DEFAULT_MODEL,
    encoding_option,
    models_option,
    prompt_option,
    schema_of_option,
    schema_option,
    text_of_option,
)

__all__ = ["command"]


@click.command("split")
@click.argument("table", metavar="INPUT")
@settings_option
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="The most tokens of a part.")
@click.option("--rows", "max_rows", type=click.IntRange(min=1), metavar="N", help="The most rows of a part.")
@click.option("--folder", metavar="FOLDER", help="Where the parts go.  [default: beside the input]")
@prompt_option
@schema_option
@models_option
@encoding_option
@click.option("--overwrite", is_flag=True, help="Replace all parts of an earlier split.")
def command(
    table: str,
    *,
    max_tokens: int | None,
    max_rows: int | None,
    folder: str | None,
    prompt: str | None,
    schema: str | None,
    models: tuple[str, ...],
    encoding: str,
    overwrite: bool,
) -> int:
    """Cut a table into parts, each small enough, which together are the table. Prints their names.

    With --max-tokens each row counts as a request of its own: the prompt, the schema and what the chat format adds
    are part of it. Tokens are those of the model, or of the first of several.

    \b
    Examples:
      rlm split in.csv --rows 10000
      rlm split in.csv --max-tokens 500000 --folder parts \\
        -p 'Label {{text}}' --schema 'label: str'
      rlm split --settings job.toml --rows 10000          # that of rlm map
    """  # noqa: D301 - the backspace is click's mark for lines that keep their breaks
    if max_tokens is None and max_rows is None:
        raise click.UsageError("nothing says how large a part may be: add --rows N or --max-tokens N")

    from rlm.bulk import split_rows

    parts = split_rows(
        table,
        folder=folder,
        max_rows=max_rows,
        max_tokens=max_tokens,
        prompt=text_of_option(prompt),
        schema=schema_of_option(schema),
        model=(models or (DEFAULT_MODEL,))[0],
        encoding=encoding,
        overwrite=overwrite,
    )
    for part in parts:
        click.echo(str(part))
    return 0
