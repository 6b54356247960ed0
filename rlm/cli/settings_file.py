"""`--settings FILE`: the options of a command over tables, read from a TOML or JSON file.

The command line wins over the file, the file over the defaults. The file of an `rlm map` does for `rlm count` and
`rlm split`, too: they leave out what only `rlm map` has. Any other name that a command does not have is an error.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

__all__ = ["settings_option", "without_overruled"]

READERS: Final = {".toml": tomllib.loads, ".json": json.loads}
PATHS: Final = frozenset({"folder", "output", "retry", "table"})
"""Parameters that name a file or a folder."""
TEXTS: Final = frozenset({"prompt", "schema"})
"""Parameters that name a file by @."""
SECRET: Final = re.compile(
    r"api-?key|secret|password|credential|authorization|bearer|^(auth-|access-)?token$|^key$"
)


def _apply(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.default_map = _read(context, Path(value))


settings_option = click.option(
    "--settings",
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=_apply,
    help="Read options from a .toml or .json file; those given here win.",
)


def without_overruled(
    context: click.Context, values: Mapping[str, Any], rules: Mapping[str, tuple[str, ...]]
) -> dict[str, Any]:
    """The values of a command, without those of the file that contradict what the command line says.

    Args:
        context: of the command.
        values: by parameter.
        rules: parameter → the parameters that it cannot be together with.
    """
    overruled = {
        name
        for winner, losers in rules.items()
        if context.get_parameter_source(winner) is ParameterSource.COMMANDLINE
        for name in losers
        if context.get_parameter_source(name) is ParameterSource.DEFAULT_MAP
    }
    unsaid = {name: False if isinstance(values[name], bool) else None for name in overruled}
    return {**values, **unsaid}


def _read(context: click.Context, path: Path) -> dict[str, Any]:
    """The options of a file by parameter, each found right."""
    from rlm.cli.map import command as whole_job

    own = _by_name(context.command)
    known = {*own, *_by_name(whole_job)}
    read: dict[str, Any] = {}
    for key, value in _table(context, path).items():
        name = key.replace("_", "-")
        if name not in known:
            raise click.UsageError(_not_an_option(path, key, name, known), context)
        if name not in own or value is None:
            continue
        parameter = own[name]
        if parameter.name in read:
            raise click.UsageError(f"{path}: {key} is there twice, with - and with _", context)
        try:
            said = _as_said(parameter, value, path.parent)
            parameter.process_value(context, said)
        except click.UsageError as error:
            raise click.UsageError(f"{path}: {key} = {_shown(value)}: {error.message}", context) from error
        read[str(parameter.name)] = said
    return read


def _by_name(command: click.Command) -> dict[str, click.Parameter]:
    """The parameters of a command by the names that a file may use."""
    options = [one for one in command.params if isinstance(one, click.Option) and one.expose_value]
    named: dict[str, click.Parameter] = {
        name.removeprefix("--"): one for one in options for name in one.opts if name.startswith("--")
    }
    arguments = [one for one in command.params if isinstance(one, click.Argument)]
    return named | dict(zip(["input"], arguments, strict=True))


def _table(context: click.Context, path: Path) -> Mapping[str, Any]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise click.UsageError(f"{path}: settings are in a file named .toml or .json", context)
    try:
        table = reader(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise click.UsageError(f"{path} cannot be read: {error.strerror or error}", context) from error
    except (ValueError, RecursionError) as error:  # of encodings, TOML and JSON
        raise click.UsageError(f"{path} cannot be read: {error}", context) from error
    if not isinstance(table, Mapping):
        raise click.UsageError(f'{path}: settings are an object, such as {{"prompt": "…"}}', context)
    return table


def _not_an_option(path: Path, key: str, name: str, known: set[str]) -> str:
    if SECRET.search(name.lower()):
        return (
            f"{path}: {key} is not read from a file: keys belong into the environment, such as OPENAI_API_KEY"
        )
    near = get_close_matches(name.lower(), sorted(known), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the options are {', '.join(sorted(known))}"
    return f"{path}: there is no option {key!r}; {hint}"


def _as_said(parameter: click.Parameter, value: Any, folder: Path) -> Any:
    """A value as it would stand on a command line, with its paths beginning at the folder.

    Raises:
        click.BadParameter: it is not of the kind that the parameter takes.
    """
    if isinstance(parameter, click.Option) and parameter.is_flag:
        if not isinstance(value, bool):
            raise click.BadParameter("must be true or false")
        return value
    if parameter.multiple:
        return [_as_word(parameter, one) for one in _each(value)]
    if parameter.name == "schema" and isinstance(value, Mapping):
        return json.dumps(value)
    word = _as_word(parameter, value)
    if isinstance(word, str) and parameter.name in PATHS:
        return str(folder / word)
    if isinstance(word, str) and parameter.name in TEXTS and word.startswith("@"):
        return f"@{folder / word[1:]}"
    return word


def _each(value: Any) -> list[Any]:
    """What an option that is repeated is given: one value, a list, or a table such as `{"gpt-5" = 0.2}`."""
    if isinstance(value, Mapping):
        return [f"{name}={one}" for name, one in value.items()]
    return value if isinstance(value, list) else [value]


def _as_word(parameter: click.Parameter, value: Any) -> Any:
    if isinstance(parameter.type, click.IntRange):
        if not isinstance(value, int) or isinstance(value, bool):
            raise click.BadParameter("must be a whole number")
        return value
    if isinstance(parameter.type, click.FloatRange):
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise click.BadParameter("must be a number")
        return value
    takes_numbers = parameter.callback is not None
    if takes_numbers and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise click.BadParameter("must be a number or text" if takes_numbers else "must be text")
    return value


def _shown(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 60 else f"{shown[:59]}…"  # noqa: PLR2004 - a line of a message
