"""The options that commands share, as one frozen value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from math import isfinite
from typing import Any, Literal, TypeVar

import click

from rlm.cli.failures import State
from rlm.errors import SettingsError
from rlm.metering.prices import Price

__all__ = [
    "RunOptions",
    "budget_calls_option",
    "cell_timeout_option",
    "encoding_option",
    "files_argument",
    "run_options",
    "sandbox_option",
]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What the user said about models, limits and how much to show; None where nothing was said."""

    model: str | None = None
    recursive_model: str | None = None
    base_url: str | None = None
    client: str | None = None
    max_iterations: int | None = None
    max_concurrent: int | None = None
    max_depth: int | None = None
    child_model: tuple[str, ...] = ()
    timeout: float | None = None
    budget: float | None = None
    budget_tokens: int | None = None
    budget_calls: int | None = None
    price: tuple[tuple[str, Price], ...] = ()
    cache: Literal["on", "read", "off"] = "off"
    sandbox: Literal["auto", "strict"] = "auto"
    cell_timeout: float | None = None
    journal: str | None = None
    verbose: int = 0
    quiet: bool = False


def run_options(command: F) -> F:
    """Give a command all run options; it receives them as one `options: RunOptions`."""

    @wraps(command)
    def collected(*arguments: Any, **values: Any) -> Any:
        options = RunOptions(**{field.name: values.pop(field.name) for field in fields(RunOptions)})
        state = click.get_current_context().find_object(State)
        if state is not None:
            state.verbose = options.verbose
        return command(*arguments, options=options, **values)

    decorated: Any = collected
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    result: F = decorated
    return result


files_argument = click.argument("files", nargs=-1, metavar="[FILE]...")
encoding_option = click.option(
    "--encoding", metavar="NAME", help="Encoding of the files, if not UTF-8 or marked, such as latin-1."
)

_POSITIVE = click.IntRange(min=1)
_ABOVE_ZERO = click.FloatRange(min=0, min_open=True)


def _finite(_ctx: click.Context, _parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not isfinite(value):  # `nan` is in every range, because it compares with nothing
        raise click.BadParameter(f"{value} is not a number above 0")
    return value


def _priced(
    _ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, Price], ...]:
    return tuple(_price_of(value) for value in values)


def _price_of(value: str) -> tuple[str, Price]:
    """`NAME=INPUT,OUTPUT`; a name may hold an equals sign, a price does not."""
    model, _, numbers = value.rpartition("=")
    try:
        dollars_in, dollars_out = map(float, numbers.split(","))
        price = Price(input=dollars_in, output=dollars_out)
    except (ValueError, SettingsError) as error:
        raise _no_price(value) from error
    if not model.strip():
        raise _no_price(value)
    return model.strip(), price


def _no_price(value: str) -> click.BadParameter:
    return click.BadParameter(f"{value!r} is not of the form NAME=INPUT,OUTPUT, such as gpt-5=1.25,10")


budget_calls_option = click.option(
    "--budget-calls", type=_POSITIVE, metavar="N", help="How many calls a question may make at most."
)
sandbox_option = click.option(
    "--sandbox",
    type=click.Choice(["auto", "strict"]),
    default="auto",
    help="strict: refuse to run cells that files, network and processes are not kept from.  [default: auto]",
)
cell_timeout_option = click.option(
    "--cell-timeout",
    type=_ABOVE_ZERO,
    callback=_finite,
    metavar="SECONDS",
    help="Seconds of work a cell may take; waiting for models does not count.  [default: 120]",
)
_OPTIONS = (
    click.option(
        "-m", "--model", metavar="NAME", help="The root model, which writes the cells.  [default: gpt-5]"
    ),
    click.option(
        "-M",
        "--recursive-model",
        metavar="NAME",
        help="The sub-model, which reads the parts.  [default: gpt-5-nano; with --base-url, the root model]",
    ),
    click.option(
        "--base-url", metavar="URL", help="Any OpenAI-compatible endpoint, such as http://localhost:11434/v1."
    ),
    click.option(
        "--client",
        type=click.Choice(["offline", "openai"]),
        help="offline: quotes only, no language model.  [default: openai where there is a key or endpoint]",
    ),
    click.option(
        "--max-iterations", type=_POSITIVE, metavar="N", help="Turns of the root model.  [default: 20]"
    ),
    click.option(
        "--max-concurrent",
        "--max-concurrency",
        "max_concurrent",
        type=_POSITIVE,
        metavar="N",
        help="Calls in flight at once.  [default: adaptive]",
    ),
    click.option(
        "--max-depth",
        type=_POSITIVE,
        metavar="N",
        help="Levels of runs: 2 allows child runs, 3 children of theirs.  [default: 1]",
    ),
    click.option(
        "--child-model",
        multiple=True,
        metavar="NAME",
        help="The root model of child runs, with --max-depth 2 or more; repeated, of those one level further down.  "
        "[default: the root model]",
    ),
    click.option(
        "--timeout",
        type=_ABOVE_ZERO,
        callback=_finite,
        metavar="SECONDS",
        help="Wall clock of a question; then the best partial answer is given.",
    ),
    click.option(
        "--budget",
        type=_ABOVE_ZERO,
        callback=_finite,
        metavar="DOLLARS",
        help="What a question may cost at most; then the best partial answer is given.",
    ),
    click.option(
        "--budget-tokens",
        type=_POSITIVE,
        metavar="N",
        help="How many tokens a question may take at most, input and output.",
    ),
    budget_calls_option,
    click.option(
        "--price",
        callback=_priced,
        multiple=True,
        metavar="NAME=INPUT,OUTPUT",
        help="Price of a model in dollars per million tokens; repeatable.",
    ),
    click.option(
        "--cache",
        type=click.Choice(["on", "read", "off"]),
        default="off",
        help="Keep answers on disk and use them again; read: add none.  [default: off]",
    ),
    sandbox_option,
    cell_timeout_option,
    click.option(
        "--journal",
        type=click.Path(dir_okay=False),
        metavar="FILE",
        help="Append all that happens to this file as it happens, one JSON object a line; it survives a crash.",
    ),
    click.option("-v", "--verbose", count=True, help="Show whole cells and retries; -vv every call."),
    click.option("--quiet", is_flag=True, help="Show no progress, only warnings."),
)
