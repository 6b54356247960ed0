"""The options of commands that open a run.

Type, default and help come from the settings dataclasses (`rlm/settings.py`, `rlm/bulk/job.py`). A new option of a run
is listed here in `_OPTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial, wraps
from math import isfinite
from typing import Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

from rlm.cli.command import GroupedOption, PathOption
from rlm.cli.failures import State
from rlm.errors import SettingsError
from rlm.settings import RunSettings, SandboxSettings, SchedulerSettings, options_of

__all__ = [
    "ABOVE_ZERO",
    "COUNT",
    "COUNT_OR_NONE",
    "NumberOrAuto",
    "PriceOf",
    "RunFlags",
    "encoding_option",
    "files_argument",
    "json_option",
    "option_of",
    "run_options",
]

F = TypeVar("F", bound=Callable[..., Any])


class NumberOrAuto(click.ParamType[Any]):
    """A whole number above 0, or `auto`."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or "auto"."""
        text = str(value)
        if text == "auto":
            return text
        if not (text.isascii() and text.isdigit() and int(text) > 0):
            self.fail(f"{text!r} is neither a number above 0 nor auto", param, ctx)
        return int(text)


class _FiniteNumber(click.FloatRange):
    """A finite number above 0."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number; `nan` is in every range, because it compares with nothing."""
        number = super().convert(value, param, ctx)
        if not isfinite(number):
            self.fail(f"{number} is not a number above 0", param, ctx)
        return number


class _WholeNumber(click.IntRange):
    """Integer range of click that messages call a whole number."""

    name = "whole number"


ABOVE_ZERO: Final = _FiniteNumber(min=0, min_open=True)
AMOUNTS: Final[tuple[str, ...]] = ("dollars", "tokens", "calls")
COUNT: Final = _WholeNumber(min=1)
COUNT_OR_NONE: Final = _WholeNumber(min=0)


def option_of(
    settings: type, name: str, *flags: str, group: str, default: str = "", **changes: Any
) -> Callable[[F], F]:
    """Return the click option for an option of a settings dataclass. Without a value, click passes None.

    Args:
        settings: the dataclass.
        name: of its field.
        flags: by default, the name without a unit.
        group: title in the help.
        default: shown instead of the default of the field.
        changes: keywords of click's option.
    """
    made = next(one for one in options_of(settings) if one.name == name)
    keywords = _keywords_of(get_type_hints(settings)[name])
    shown = default or ("" if made.default in (None, (), "", False) else str(made.default).removesuffix(".0"))
    text = made.help.replace("`", "").replace("; None: ", "; by default, ")
    keywords |= {"help": f"{text}  [default: {shown}]" if shown else text, "group": group, **changes}
    long = f"--{name.removesuffix('_s').replace('_', '-')}"
    if keywords.get("multiple"):
        long = long.removesuffix("s")
    return click.option(*(flags or (long,)), name, cls=GroupedOption, **keywords)


def _keywords_of(hint: Any) -> dict[str, Any]:
    """Return the keywords of click's option that read a value of this type."""
    is_union = get_origin(hint) not in (None, Literal, tuple)
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] if is_union else [hint]
    first = kinds[0]
    if first is int:
        return (
            {"type": COUNT, "metavar": "N"}
            if len(kinds) == 1
            else {"type": NumberOrAuto(), "metavar": "N|auto"}
        )
    if first is float:
        return {"type": ABOVE_ZERO, "metavar": "NUMBER"}
    if first is bool:
        return {"is_flag": True, "default": None}
    if get_origin(first) is Literal:
        return {"type": click.Choice(get_args(first))}
    return {"multiple": get_origin(first) is tuple, "metavar": "NAME"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFlags:
    """What a command line says about a run.

    Attributes:
        keywords: those of `RLM_REPL` that were given, but for the budget.
        budget: keywords of `Budget`.
        verbose: number of `-v`.
        quiet: show no progress.
    """

    keywords: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, Any] = field(default_factory=dict)
    verbose: int = 0
    quiet: bool = False


def run_options(*names: str) -> Callable[[F], F]:
    """Return a decorator that adds options of a run to a command, which receives them as one `options: RunFlags`.

    Args:
        names: of the parameters to add; all by default.
    """
    made = {name: option for name, option in _OPTIONS.items() if name in names or not names}

    def decorate(command: F) -> F:
        @wraps(command)
        def collected(*arguments: Any, **values: Any) -> Any:
            given = {name: values.pop(name) for name in made}
            given = {name: value for name, value in given.items() if value not in (None, ())}
            verbose, quiet = given.pop("verbose", 0), given.pop("quiet", False)
            if state := click.get_current_context().find_object(State):
                state.verbose = verbose
            budget = {name: given.pop(name) for name in AMOUNTS if name in given}
            if "prices" in given:
                given["prices"] = dict(given["prices"])
            options = RunFlags(keywords=given, budget=budget, verbose=verbose, quiet=quiet)
            return command(*arguments, options=options, **values)

        decorated: Any = collected
        for option in reversed(made.values()):
            decorated = option(decorated)
        return decorated  # type: ignore[no-any-return] # click's decorators have no type for this

    return decorate


class PriceOf(click.ParamType[Any]):
    """`NAME=INPUT,OUTPUT`: the price of a model; where `is_for_all`, also `INPUT,OUTPUT` with the name ''."""

    name = "price"

    def __init__(self, *, is_for_all: bool = False) -> None:
        self._is_for_all = is_for_all

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        """Return the name and the price. A name may hold an equals sign, a price does not."""
        from rlm.metering.prices import Price

        model, _, numbers = str(value).rpartition("=")
        try:
            dollars_in, dollars_out = map(float, numbers.split(","))
            price = Price(input=dollars_in, output=dollars_out)
        except (ValueError, SettingsError):
            model, price = "", None
        if price is None or not (model.strip() or self._is_for_all):
            form = "INPUT,OUTPUT or NAME=INPUT,OUTPUT" if self._is_for_all else "NAME=INPUT,OUTPUT"
            self.fail(f"{value!r} is not of the form {form}, such as gpt-5=1.25,10", param, ctx)
        return model.strip(), price


files_argument = click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path())
encoding_option = click.option(
    "--encoding",
    cls=GroupedOption,
    group="Input",
    metavar="NAME",
    help="Encoding of the files, if not UTF-8 or marked, such as latin-1.",
)
json_option = click.option(
    "--json",
    "as_json",
    cls=GroupedOption,
    group="Output",
    is_flag=True,
    help="Print one JSON object: answer, value, status, usage, costs by model and depth. A failure is one, too.",
)

_run = partial(option_of, RunSettings)
_OPTIONS: Final[dict[str, Any]] = {
    "model": _run("model", "-m", "--model", group="Model", envvar="RLM_MODEL", show_envvar=True),
    "recursive_model": _run(
        "recursive_model",
        "-M",
        "--recursive-model",
        group="Model",
        default="gpt-5-nano; with --base-url, the root model",
        envvar="RLM_RECURSIVE_MODEL",
        show_envvar=True,
    ),
    "base_url": click.option(
        "--base-url",
        cls=GroupedOption,
        group="Model",
        metavar="URL",
        help="Any OpenAI-compatible endpoint, such as http://localhost:11434/v1.",
    ),
    "client": click.option(
        "--client",
        cls=GroupedOption,
        group="Model",
        type=click.Choice(["offline", "openai"]),
        help="offline: rules that find and quote, no language model.  [default: openai]",
    ),
    "max_depth": _run("max_depth", group="Model"),
    "child_models": _run("child_models", group="Model", default="the root model"),
    "prices": click.option(
        "--price",
        "prices",
        cls=GroupedOption,
        group="Model",
        type=PriceOf(),
        multiple=True,
        metavar="NAME=INPUT,OUTPUT",
        help="Price of a model in dollars per million tokens; repeatable.",
    ),
    "max_iterations": _run("max_iterations", group="Limits"),
    "timeout_s": _run("timeout_s", group="Limits", metavar="SECONDS"),
    "dollars": click.option(
        "--budget",
        "dollars",
        cls=GroupedOption,
        group="Limits",
        type=ABOVE_ZERO,
        metavar="DOLLARS",
        help="What a question may cost at most; then the best partial answer is given.",
    ),
    "tokens": click.option(
        "--budget-tokens",
        "tokens",
        cls=GroupedOption,
        group="Limits",
        type=COUNT,
        metavar="N",
        help="How many tokens a question may take at most, input and output.",
    ),
    "calls": click.option(
        "--budget-calls",
        "calls",
        cls=GroupedOption,
        group="Limits",
        type=COUNT,
        metavar="N",
        help="How many calls a question may make at most.",
    ),
    "max_concurrent": option_of(SchedulerSettings, "max_concurrent", group="Limits"),
    "cache": option_of(SchedulerSettings, "cache", group="Limits"),
    "sandbox": click.option(
        "--sandbox",
        cls=GroupedOption,
        group="Sandbox",
        type=click.Choice(["auto", "strict"]),
        help="strict: refuse to run cells that are not confined in files, network and processes.  [default: auto]",
    ),
    "cell_timeout_s": option_of(SandboxSettings, "cell_timeout_s", group="Sandbox", metavar="SECONDS"),
    "journal": click.option(
        "--journal",
        cls=GroupedOption,
        group="Output",
        type=PathOption(dir_okay=False),
        metavar="FILE",
        help="Append every event to this file as it happens, one JSON object a line; it survives a crash.",
    ),
    "verbose": click.option(
        "-v",
        "--verbose",
        cls=GroupedOption,
        group="Output",
        count=True,
        help="Show whole cells and retries; -vv every call.",
    ),
    "quiet": click.option(
        "--quiet", cls=GroupedOption, group="Output", is_flag=True, help="Show no progress, only warnings."
    ),
}
"""Options by the keyword of `RLM_REPL` or `Budget` that they set."""
