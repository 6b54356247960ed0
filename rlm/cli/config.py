"""`rlm config`: show and change the defaults of options in the user's configuration file."""

from __future__ import annotations

import json
import re
import tomllib
from typing import TYPE_CHECKING, Final

import click

from rlm.cli import commands
from rlm.cli.defaults import config_path, configured, defaults_from

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["command"]

EMPTY: Final = """\
# Defaults of options, by their long names. These are for rlm ask and rlm chat:
# model = "gpt-5"
# recursive-model = "gpt-5-nano"

# Those of another command are in a table with its name:
# [map]
# model = "gpt-5-nano"
"""


@click.group("config")
def command() -> None:
    """Show and change the defaults of options, in a file of yours.

    The file holds options by their long names. Those outside a table are for
    rlm ask and rlm chat, those in a table, such as [map], for that command.
    The command line and the environment (RLM_MODEL) are stronger. Keys are
    not read from it: set OPENAI_API_KEY in the environment.

    \b
    Examples:
      rlm config set model gpt-5
      rlm config set map.budget 5
      rlm config unset map.budget
      rlm config show
      rlm config edit
    """  # noqa: D301 - the backspace is click\'s mark for lines that keep their breaks


@command.command()
def path() -> None:
    """Print where the file is.

    \b
    Example:
      cat "$(rlm config path)"
    """  # noqa: D301 - the backspace is click\'s mark for lines that keep their breaks
    click.echo(config_path())


@command.command()
def show() -> None:
    """Print the file.

    \b
    Example:
      rlm config show
    """  # noqa: D301 - the backspace is click\'s mark for lines that keep their breaks
    file = config_path()
    click.echo(
        _text(file) if file.is_file() else f"# {file} does not exist; rlm config set creates it", nl=False
    )


@command.command()
def edit() -> None:
    """Open the file in your editor ($VISUAL or $EDITOR), then check it.

    \b
    Example:
      EDITOR=nano rlm config edit
    """  # noqa: D301 - the backspace is click\'s mark for lines that keep their breaks
    file = config_path()
    _write(file, _text(file) or EMPTY)
    click.edit(filename=str(file))
    for one in commands().values():
        configured(one)


@command.command("set")
@click.argument("name")
@click.argument("value")
def set_value(name: str, value: str) -> None:
    """Set the default of an option.

    NAME is its long name, or COMMAND.NAME.

    \b
    Examples:
      rlm config set base-url http://localhost:11434/v1
      rlm config set map.model gpt-5-nano
    """  # noqa: D301 - the backspace is click\'s mark for lines that keep their breaks
    file = config_path()
    table, key = _place(name)
    written = _literal(value)
    value_read = tomllib.loads(f"value = {written}")["value"]
    defaults_from({key: value_read}, file, commands()[table or "ask"])
    _write(file, _with_line(_text(file), table, key, f"{key} = {written}"))


@command.command()
@click.argument("name")
def unset(name: str) -> None:
    """Remove the default of an option.

    NAME is its long name, or COMMAND.NAME.

    \b
    Example:
      rlm config unset map.model
    """  # noqa: D301 - the backspace is click\'s mark for lines that keep their breaks
    file = config_path()
    table, key = _place(name)
    text = _text(file)
    changed = _with_line(text, table, key, None)
    if changed == text:
        raise click.UsageError(f"{name} is not set in {file}")
    _write(file, changed)


def _place(name: str) -> tuple[str, str]:
    """Return the table ('' for the options outside tables) and the key of an option."""
    table, _, key = name.rpartition(".")
    if table and table not in commands():
        raise click.UsageError(f"there is no command {table!r}; write NAME or COMMAND.NAME")
    return table, key.replace("_", "-").removeprefix("--")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def _literal(value: str) -> str:
    """Return a value of the command line as TOML: numbers and true/false bare, all else as a string."""
    return (
        value
        if re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?|true|false", value)
        else json.dumps(value, ensure_ascii=False)
    )


def _with_line(text: str, table: str, key: str, line: str | None) -> str:
    """Replace, add or remove (None) the line of a key, and keep all other lines with their comments.

    Raises:
        click.UsageError: the file is written in a way that this cannot change, such as a value of several lines.
    """
    lines = text.splitlines()
    headers = [index for index, one in enumerate(lines) if one.lstrip().startswith("[")]
    if table:
        start = next((index + 1 for index in headers if lines[index].strip() == f"[{table}]"), None)
        if start is None:
            lines += ["", f"[{table}]"] if lines else [f"[{table}]"]
            start = len(lines)
    else:
        start = 0
    end = next((index for index in headers if index >= start), len(lines))
    while end > start and not lines[end - 1].strip():
        end -= 1
    own = re.compile(rf"\s*[\"']?{re.escape(key).replace('-', '[-_]')}[\"']?\s*=")
    found = next((index for index in range(start, end) if own.match(lines[index])), None)
    if found is not None:
        lines[found : found + 1] = [line] if line is not None else []
    elif line is not None:
        lines.insert(end, line)
    changed = "\n".join(lines) + "\n"
    try:
        tomllib.loads(changed)
    except tomllib.TOMLDecodeError as error:
        raise click.UsageError(
            f"{key} cannot be changed line by line ({error}): use rlm config edit"
        ) from error
    return changed if line is not None or found is not None else text


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
