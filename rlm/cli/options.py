"""The options that commands share, as one frozen value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, TypeVar

import click

from rlm.cli.failures import State

__all__ = ["RunOptions", "encoding_option", "files_argument", "run_options"]

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
    timeout: float | None = None
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
        "--max-concurrent", type=_POSITIVE, metavar="N", help="Calls in flight at once.  [default: adaptive]"
    ),
    click.option(
        "--max-depth", type=_POSITIVE, metavar="N", help="Levels of child runs.  [default: 1, none]"
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="Wall clock of a question; then the best partial answer is given.",
    ),
    click.option("-v", "--verbose", count=True, help="Show whole cells and retries; -vv every call."),
    click.option("--quiet", is_flag=True, help="Show no progress."),
)
