"""Defaults of options, read from TOML or JSON into click's `default_map`.

Two files give them: the user's configuration, and the file of `--settings`. The command line is stronger than the
environment, that is stronger than `--settings`, and that than the configuration. A value is read as it would be on
the command line.

    model = "gpt-5"             # rlm ask and rlm chat
    [map]
    model = "gpt-5-nano"        # rlm map
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from rlm.cli.command import GroupedOption, PathOption, TextOrFile
from rlm.wording import clipped

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["config_path", "configured", "defaults_from", "read_table", "settings_option"]

READERS: Final = {".toml": tomllib.loads, ".json": json.loads}
SECRET: Final = re.compile(
    r"api-?key|secret|password|credential|authorization|bearer|^(auth-|access-)?token$|^key$"
)
SHOWN_CHARS: Final = 60
SHARED: Final = frozenset({"ask", "chat"})
"""Commands whose defaults may also be outside the tables of the configuration."""


def config_path() -> Path:
    """Return the path of the user's configuration file; `RLM_CONFIG` names another one."""
    if named := os.environ.get("RLM_CONFIG"):
        return Path(named)
    import platformdirs

    return Path(platformdirs.user_config_dir("rlm-cells", appauthor=False), "config.toml")


def configured(command: click.Command) -> dict[str, Any]:
    """Return the defaults of a command from the configuration file, by parameter.

    Raises:
        click.UsageError: the file cannot be read, or a value is not valid.
    """
    path = config_path()
    try:
        if not path.is_file():
            return {}
    except OSError:
        return {}
    table = read_table(path)
    own = table.get(command.name or "", {})
    if not isinstance(own, Mapping):
        raise click.UsageError(f"{path}: [{command.name}] is not a table")
    if command.name not in SHARED:
        return defaults_from(own, path, command)
    shared = {name: value for name, value in table.items() if not isinstance(value, Mapping)}
    others = {name for one in SHARED for name in _by_name(import_module(f"rlm.cli.{one}").command)}
    return defaults_from({**shared, **own}, path, command, ignored=others)


def _apply(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value is None:
        return
    from rlm.cli.map import command as whole_job

    path = Path(value)
    others = _by_name(
        whole_job
    )  # `rlm count` and `rlm split` take the file of `rlm map`, and leave out the rest
    read = defaults_from(read_table(path), path, context.command, ignored=others, folder=path.parent)
    context.default_map = {**(context.default_map or {}), **read}


settings_option = click.option(
    "--settings",
    cls=GroupedOption,
    group="Job",
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=_apply,
    help="Read options from a .toml or .json file; the command line is stronger.",
)


def read_table(path: Path) -> Mapping[str, Any]:
    """Read a TOML or JSON file.

    Raises:
        click.UsageError: it cannot be read, or is not a table of options.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise click.UsageError(f"{path}: settings are in a file named .toml or .json")
    try:
        table = reader(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise click.UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # of encodings, TOML and JSON
        raise click.UsageError(f"{path} cannot be read: {error}") from error
    if not isinstance(table, Mapping):
        raise click.UsageError(f'{path}: settings are an object, such as {{"prompt": "…"}}')
    return table


def defaults_from(
    table: Mapping[str, Any],
    path: Path,
    command: click.Command,
    *,
    ignored: Iterable[str] = (),
    folder: Path | None = None,
) -> dict[str, Any]:
    """Return the values of a table by parameter of the command, each checked by click.

    Args:
        table: values by the long names of options, with - or _, and `input`.
        path: of the file, for messages.
        command: whose options they are.
        ignored: names that the command does not have, and that are not wrong.
        folder: paths are relative to it; by default, to the working directory.

    Raises:
        click.UsageError: a name or a value is not valid.
    """
    own = _by_name(command)
    known = {*own, *ignored}
    read: dict[str, Any] = {}
    context = click.Context(command)
    for key, value in table.items():
        name = _dashed(key)
        if name not in known:
            raise click.UsageError(_unknown(path, key, known), context)
        if name not in own or value is None:
            continue
        parameter = own[name]
        if parameter.name in read:
            raise click.UsageError(f"{path}: {key} is there twice, with - and with _", context)
        try:
            words = _words(parameter, value, folder)
            parameter.process_value(context, words)
        except click.UsageError as error:
            raise click.UsageError(f"{path}: {key} = {_shown(value)}: {error.message}", context) from error
        read[str(parameter.name)] = words
    return read


def _by_name(command: click.Command) -> dict[str, click.Parameter]:
    """Return the parameters of a command by their names in a file."""
    named: dict[str, click.Parameter] = {}
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            named["input"] = parameter
        elif parameter.expose_value:
            named |= {name[2:]: parameter for name in parameter.opts if name.startswith("--")}
    return named


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _unknown(path: Path, key: str, known: set[str]) -> str:
    name = _dashed(key).lower()
    if SECRET.search(name):
        return f"{path}: {key} is not read from a file: set keys in the environment, such as OPENAI_API_KEY"
    error = click.NoSuchOption(name, f"{path}: there is no option {key!r}.", possibilities=known)
    return (
        error.format_message()
        if error.possibilities
        else f"{error.message} Options: {', '.join(sorted(known))}"
    )


def _words(parameter: click.Parameter, value: Any, folder: Path | None) -> Any:
    """Convert a value of the file to what the command line would give: text, a list of texts, or the value of a flag."""
    if isinstance(parameter, click.Option) and (parameter.is_flag or parameter.count):
        return value
    if parameter.multiple:
        if isinstance(value, Mapping):
            value = [f"{name}={one}" for name, one in value.items()]
        return [_word(parameter, one, folder) for one in (value if isinstance(value, list) else [value])]
    return _word(parameter, value, folder)


def _word(parameter: click.Parameter, value: Any, folder: Path | None) -> str:
    """Convert one value to text.

    Raises:
        click.BadParameter: it is a list or a table, and the option takes one value; only a schema may be a table.
    """
    if isinstance(value, list) or (isinstance(value, Mapping) and parameter.name != "schema"):
        raise click.BadParameter("must be one value, not a list or a table")
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False, default=str)
    if folder is not None and isinstance(parameter.type, PathOption):
        return str(folder / value)
    if folder is not None and isinstance(parameter.type, TextOrFile) and value.startswith("@"):
        return f"@{folder / value[1:]}"
    return value


def _shown(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return clipped(shown, SHOWN_CHARS)
