"""Options that the commands over tables share."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from rlm.bulk.job import Job
from rlm.cli.command import GroupedOption, TextOrFile
from rlm.cli.options import PriceOf, option_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "DEFAULT_MODEL",
    "by_model",
    "encoding_option",
    "job_option",
    "models_option",
    "price_option",
    "prompt_option",
    "rows_per_call_option",
    "schema_option",
]

F = TypeVar("F", bound="Callable[..., Any]")

DEFAULT_MODEL: Final = "gpt-5-nano"


def job_option(name: str, *flags: str, group: str, default: str = "", **changes: Any) -> Callable[[F], F]:
    """Return the click option for an option of `Job`; see `option_of`."""
    return option_of(Job, name, *flags, group=group, default=default, **changes)


class _SchemaSource(TextOrFile):
    """Schema as JSON or in the short form, or with `@FILE` the text of a file."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the object of JSON Schema, the text of the short form, or None for an empty text."""
        text = str(super().convert(value, param, ctx)).strip()
        try:
            read = json.loads(text)
        except ValueError:
            return text or None
        return read if isinstance(read, dict) else text


prompt_option = job_option("prompt", "-p", "--prompt", group="Job", type=TextOrFile(), metavar="TEXT|@FILE")
schema_option = job_option("schema", group="Job", type=_SchemaSource(), metavar="TEXT|@FILE")
models_option = job_option("models", "-m", "--model", group="Models", default=DEFAULT_MODEL)
rows_per_call_option = job_option("rows_per_call", group="Job")
price_option = click.option(
    "--price",
    "prices",
    cls=GroupedOption,
    group="Models",
    type=PriceOf(is_for_all=True),
    multiple=True,
    metavar="IN,OUT|NAME=IN,OUT",
    help="Dollars per million tokens, of all models or of one; repeatable.",
)
encoding_option = click.option(
    "--encoding",
    cls=GroupedOption,
    group="Job",
    default="utf-8-sig",
    metavar="NAME",
    help="Encoding of the input.  [default: UTF-8]",
)


def by_model(pairs: Sequence[tuple[str, Any]], models: Sequence[str]) -> dict[str, Any]:
    """Return the value of each model: its own one, or else the one with the name '', which is for all of them."""
    given: Mapping[str, Any] = dict(pairs)
    of_all = {} if "" not in given else dict.fromkeys(models, given[""])
    return of_all | {name: value for name, value in given.items() if name}
