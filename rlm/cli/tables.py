"""What the commands over tables share: their options, and what they are read into."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rlm.metering.prices import Price

__all__ = [
    "Prices",
    "Temperatures",
    "encoding_option",
    "models_option",
    "number_or_auto",
    "price_option",
    "prices_of",
    "prompt_option",
    "require_endpoint",
    "rows_per_call_option",
    "schema_of_option",
    "schema_option",
    "temperatures_of",
    "text_of_option",
]

DEFAULT_MODEL = "gpt-5-nano"
MOST_TEMPERATURE = 2


def number_or_auto(_context: click.Context, _parameter: click.Parameter, value: str) -> int | Literal["auto"]:
    """A number above 0, or `auto`."""
    if value == "auto":
        return "auto"
    if not (value.isascii() and value.isdigit() and int(value) > 0):
        raise click.BadParameter(f"{value!r} is neither a number above 0 nor auto")
    return int(value)


@dataclass(frozen=True, slots=True)
class Temperatures:
    """Temperatures as a command line gives them: one for all models, and of some models by name."""

    of_all: float | None
    by_name: Mapping[str, float]

    def of(self, models: Sequence[str]) -> float | dict[str, float] | None:
        """The temperature of all of these models, or one for each that has one."""
        if not self.by_name:
            return self.of_all
        others = {} if self.of_all is None else dict.fromkeys(models, self.of_all)
        return {**others, **self.by_name}


def temperatures_of(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> Temperatures:
    """Read temperatures such as `0.2` and `gpt-5=0.1`; the last one for a name counts."""
    of_all, by_name = None, {}
    for value in values:
        name, _, number = value.rpartition("=")
        try:
            temperature = float(number)
        except ValueError as error:
            raise click.BadParameter(f"{value!r} is neither a number nor of the form NAME=NUMBER") from error
        if not 0 <= temperature <= MOST_TEMPERATURE:
            raise click.BadParameter(f"{value!r} is not between 0 and {MOST_TEMPERATURE}")
        if name:
            by_name[name] = temperature
        else:
            of_all = temperature
    return Temperatures(of_all, by_name)


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices as a command line gives them: one for all models, and of some models by name."""

    of_all: Price | None
    by_name: Mapping[str, Price]

    def of(self, models: Sequence[str]) -> dict[str, Price]:
        """The price of each of these models that has one."""
        others = {} if self.of_all is None else dict.fromkeys(models, self.of_all)
        return {**others, **self.by_name}


def prices_of(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> Prices:
    """Read prices such as `0.05,0.4` and `gpt-5=1.25,10`; the last one for a name counts."""
    if not values:
        return Prices(None, {})
    from rlm.errors import SettingsError
    from rlm.metering.prices import Price

    of_all, by_name = None, {}
    for value in values:
        name, _, numbers = value.rpartition("=")
        try:
            sent, received = map(float, numbers.split(","))
            price = Price(input=sent, output=received)
        except (ValueError, SettingsError) as error:
            raise click.BadParameter(
                f"{value!r}: write two numbers, such as 0.05,0.4 or gpt-5=1.25,10"
            ) from error
        if name.strip():
            by_name[name.strip()] = price
        else:
            of_all = price
    return Prices(of_all, by_name)


prompt_option = click.option(
    "-p",
    "--prompt",
    metavar="TEXT",
    help="What to ask of each row, such as 'Label {{text}}'; @FILE reads a file. "
    'Braces in quotes stand for themselves: {{"{{"}} is {{.',
)
schema_option = click.option(
    "--schema",
    metavar="TEXT",
    help="What an answer looks like: \"label: 'spam'|'ham', score: float\", or JSON Schema; @FILE reads a file.",
)
models_option = click.option(
    "-m", "--model", "models", multiple=True, metavar="NAME", help=f"The model.  [default: {DEFAULT_MODEL}]"
)
rows_per_call_option = click.option(
    "--rows-per-call",
    callback=number_or_auto,
    default="auto",
    metavar="N|auto",
    help="Rows in one call.  [default: by their length]",
)
price_option = click.option(
    "--price",
    "prices",
    callback=prices_of,
    multiple=True,
    metavar="IN,OUT|NAME=IN,OUT",
    help="Dollars per million tokens, of the models or of one of them; repeatable.",
)
encoding_option = click.option(
    "--encoding", default="utf-8-sig", metavar="NAME", help="Encoding of the input.  [default: UTF-8]"
)


def text_of_option(value: str | None) -> str:
    """The text of an option, or of the file that it names with @.

    Raises:
        click.UsageError: the file cannot be read.
    """
    if value is None or not value.startswith("@"):
        return value or ""
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{value[1:]}: cannot be read: {error}") from error


def schema_of_option(value: str | None) -> str | Mapping[str, Any] | None:
    """The schema that was asked for, as JSON Schema where it is written as one.

    Raises:
        click.UsageError: the file it names cannot be read.
    """
    text = text_of_option(value).strip()
    if not text:
        return None
    try:
        read = json.loads(text)
    except ValueError:
        return text
    return read if isinstance(read, dict) else text


def require_endpoint(base_url: str | None) -> None:
    """Read `.env`, and make sure that there is somebody to ask.

    Raises:
        click.UsageError: there is neither a key nor an endpoint.
    """
    from rlm.cli.running import load_env_file

    load_env_file(Path.cwd())
    if not (base_url or os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL")):
        raise click.UsageError(
            "no key and no endpoint: set OPENAI_API_KEY, or name an endpoint with --base-url"
        )
