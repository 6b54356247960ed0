"""`rlm split`: a table cut into parts."""

from __future__ import annotations

from typing import Any

import click

from rlm.cli.command import Command, GroupedOption, PathOption
from rlm.cli.defaults import settings_option
from rlm.cli.options import COUNT
from rlm.cli.tables import DEFAULT_MODEL, encoding_option, models_option, prompt_option, schema_option

__all__ = ["command"]


@click.command("split", cls=Command)
@click.argument("table", metavar="INPUT", type=PathOption())
@settings_option
@click.option(
    "--max-tokens",
    cls=GroupedOption,
    group="Parts",
    type=COUNT,
    metavar="N",
    help="The most tokens of a part.",
)
@click.option(
    "--rows",
    "max_rows",
    cls=GroupedOption,
    group="Parts",
    type=COUNT,
    metavar="N",
    help="The most rows of a part.",
)
@click.option(
    "--folder",
    cls=GroupedOption,
    group="Parts",
    type=PathOption(),
    metavar="FOLDER",
    help="Folder of the parts.  [default: that of the input]",
)
@click.option(
    "--overwrite",
    cls=GroupedOption,
    group="Parts",
    is_flag=True,
    help="Replace all parts of an earlier split.",
)
@prompt_option
@schema_option
@encoding_option
@models_option
def command(table: str, *, models: tuple[str, ...], **options: Any) -> int:
    """Cut a table into parts of a given size, and print their names.

    With --max-tokens each row counts as a request of its own: the prompt, the schema and what the chat format adds
    are part of it. Tokens are those of the model, or of the first of several.

    \b
    Examples:
      rlm split in.csv --rows 10000
      rlm split in.csv --max-tokens 500000 --folder parts \\
        -p 'Label {{text}}' --schema 'label: str'
      rlm split --settings job.toml --rows 10000          # that of rlm map
    """  # noqa: D301 - the backspace is click's mark for lines that keep their breaks
    if options["max_tokens"] is None and options["max_rows"] is None:
        raise click.UsageError("nothing says how large a part may be: add --rows N or --max-tokens N")

    from rlm.bulk import split_rows

    given = {name: value for name, value in options.items() if value is not None}
    for part in split_rows(table, model=(models or (DEFAULT_MODEL,))[0], **given):
        click.echo(str(part))
    return 0
