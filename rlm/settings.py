"""Settings of a run: frozen dataclasses in which every option of a run has its one definition; limits of cells, too.

Options of jobs over rows are defined in `rlm/bulk/job.py`. An option that is sent with each call also needs a field of
`rlm.values.Call`, and `rlm/clients/chat_format.py` to send it.

An option is a field made by `option(default, help)`: its type, its default, what it means, and the check of its value.
`RLM_REPL(...)`, the command line, the configuration file and the documentation read these fields with `options_of`.

`RunSettings` holds one `SandboxSettings` for the guest and one `SchedulerSettings` for the calls, so that each part of the
program gets only the settings that concern it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from rlm.checks import finite_number, model_name, one_of, or_else, positive_number, whole_number
from rlm.errors import SettingsError

if TYPE_CHECKING:
    from rlm.checks import Check

__all__ = [
    "IsolationTier",
    "Option",
    "RunSettings",
    "SandboxSettings",
    "SchedulerSettings",
    "check_options",
    "described",
    "documented",
    "option",
    "options_of",
]

MiB = 1 << 20
IsolationTier = Literal["process", "confined", "isolated"]
_TIERS = get_args(IsolationTier)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its name as a Python keyword, the type as text, the default, and what it means."""

    name: str
    type: str
    default: Any
    help: str


def option(default: T, help: str, *, check: Check | None = None) -> T:  # noqa: A002 - the word of click and argparse
    """Define an option as a field of a settings dataclass.

    Args:
        default: the value where the user gives none.
        help: one or two sentences that say what it does, with units.
        check: a check of `rlm.checks`, applied by `check_options`.
    """
    made: T = field(default=default, metadata={"help": help, "check": check})
    return made


def options_of(settings: type) -> tuple[Option, ...]:
    """Return the options of a settings dataclass, in the order of their definition."""
    return tuple(
        Option(part.name, str(part.type), part.default, part.metadata["help"])
        for part in fields(settings)
        if "help" in part.metadata
    )


def check_options(settings: Any) -> None:
    """Apply the check of each option to its value; for `__post_init__`.

    Raises:
        SettingsError: a value cannot work; the message names the option and the value.
    """
    for part in fields(settings):
        check = part.metadata.get("check")
        if check is not None:
            check(part.name, getattr(settings, part.name))


def described(made: Option) -> str:
    """Return the line of an option in a docstring: name, help, type and default."""
    return f"    {made.name}: {made.help} ({made.type}, default {made.default!r})"


def documented(settings: type[T]) -> type[T]:
    """Append the options to the docstring of a settings dataclass, so that `help()` shows them."""
    lines = [described(made) for made in options_of(settings)]
    settings.__doc__ = "\n".join([settings.__doc__ or "", "", "Attributes:", *lines])
    return settings


@documented
@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSettings:
    """Limits of one guest."""

    cell_timeout_s: float = option(
        120.0,
        "Seconds of work a cell may take; waiting for host calls does not count.",
        check=finite_number,
    )
    memory_bytes: int = option(
        4096 * MiB,
        "Memory the guest may allocate beyond what the context takes, in bytes.",
        check=whole_number,
    )
    output_chars: int = option(
        200_000,
        "Characters of a cell's stdout, and of its stderr, that are kept: the head and the tail.",
        check=whole_number,
    )
    answer_bytes: int = option(
        64 * MiB,
        "Size of the largest answer that may be sent to the host, encoded, in bytes.",
        check=whole_number,
    )
    scratch_bytes: int = option(
        256 * MiB, "Bytes that the cells may write into their scratch folder.", check=whole_number
    )
    processes: int = option(
        64,
        "Processes and threads that the cells may have, where the platform can count them.",
        check=whole_number,
    )
    start_timeout_s: float = option(30.0, "Seconds a guest may take to start.", check=finite_number)
    minimum_tier: IsolationTier = option(
        "process",
        "Confinement below which a guest refuses to start: process, confined (files, network, programs), or isolated "
        "(also namespaces of its own).",
        check=one_of(*_TIERS),
    )
    highest_tier: IsolationTier = option(
        "isolated", "The highest tier that is tried; what is above it is not used.", check=one_of(*_TIERS)
    )

    def __post_init__(self) -> None:
        check_options(self)
        if _TIERS.index(self.minimum_tier) > _TIERS.index(self.highest_tier):
            raise SettingsError(
                f"minimum_tier={self.minimum_tier!r} is above highest_tier={self.highest_tier!r}: no guest could start"
            )


@documented
@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """Settings of the calls: limits, retries and cache."""

    max_concurrent: int | Literal["auto"] = option(
        "auto",
        "Calls in flight at once over the whole tree of runs; auto finds out for each model how many its endpoint takes.",
        check=or_else("auto", whole_number),
    )
    call_timeout_s: float = option(600.0, "Seconds one request may take.", check=positive_number)
    requests_per_minute: float | None = option(
        None,
        "Requests a minute to each model; None: what its endpoint says.",
        check=or_else(None, positive_number),
    )
    tokens_per_minute: float | None = option(
        None,
        "Input and output tokens a minute of each model; None: what its endpoint says.",
        check=or_else(None, positive_number),
    )
    max_attempts: int = option(
        9, "Attempts of a call that fails for a temporary reason other than a rate limit.", check=whole_number
    )
    retry_patience_s: float = option(
        300.0,
        "Seconds a call may spend waiting for retries in all, rate limits included.",
        check=positive_number,
    )
    first_backoff_s: float = option(
        0.2,
        "The longest wait before the second attempt, in seconds; it doubles each time.",
        check=positive_number,
    )
    longest_backoff_s: float = option(
        20.0,
        "The longest wait before any attempt, in seconds, unless the provider asks for more.",
        check=positive_number,
    )
    retry_budget: int = option(
        100,
        "Retries that a tree of runs may make at first; each answered call adds one, up to twice this number.",
        check=whole_number,
    )
    breaker_failures: int = option(
        20, "Failures in a row after which a model is asked by one call at a time.", check=whole_number
    )
    breaker_patience_s: float = option(
        60.0,
        "Seconds the other calls then wait for the model to recover before they fail.",
        check=positive_number,
    )
    breaker_pause_s: float = option(
        30.0, "Seconds between two probes of a model that has not recovered.", check=positive_number
    )
    cache: Literal["off", "read", "on"] = option(
        "off",
        "Keep answers on disk and use them again; read: use but add none.",
        check=one_of("off", "read", "on"),
    )
    cache_sampled: bool = option(False, "Use the cache for calls with a temperature above 0, too.")
    cache_folder: str | None = option(None, "Folder of the cache; None: the user's cache folder.")
    cache_bytes: int = option(
        1024 * MiB,
        "Size in bytes above which the cache removes what was not used for the longest time.",
        check=whole_number,
    )
    default_max_output_tokens: int = option(
        16_384, "Output cap of calls that have none, sent when a budget is set.", check=whole_number
    )

    def __post_init__(self) -> None:
        check_options(self)


@documented
@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """Settings of a run: models, depth and limits."""

    model: str = option(
        "gpt-5",
        "The root model, which writes the cells; the environment variable RLM_MODEL overrides the default.",
        check=model_name,
    )
    recursive_model: str = option(
        "gpt-5-nano",
        "The sub-model, which the cells call; the environment variable RLM_RECURSIVE_MODEL overrides the default.",
        check=model_name,
    )
    max_iterations: int = option(20, "Turns of the root model per question.", check=whole_number)
    max_depth: int = option(
        1,
        "Levels of runs: 1: no child runs; 2: child runs; 3: child runs of child runs. At the deepest level `rlm_query` makes a plain call.",
        check=whole_number,
    )
    max_children: int = option(
        64, "Child runs with an open guest at once, at each depth of the tree.", check=whole_number
    )
    child_models: tuple[str, ...] = option(
        (),
        "Root models of child runs, one for each depth from 1; the last also serves deeper runs. Without any, a child run uses "
        "its parent's root model. A cell may name another.",
    )
    child_iterations: int | None = option(
        None, "Turns of a child run; None: as many as the root run.", check=or_else(None, whole_number)
    )
    child_timeout_s: float | None = option(
        None,
        "Wall clock of each child run in seconds; one that takes longer fails alone.",
        check=or_else(None, positive_number),
    )
    timeout_s: float | None = option(
        None,
        "Wall clock of one question in seconds, with the start of its guest and with its child runs; then the best partial "
        "answer is given.",
        check=or_else(None, positive_number),
    )
    on_limit: Literal["partial", "raise"] = option(
        "partial",
        "What a budget or the wall clock does: give a partial answer, or raise `LimitReached` with that answer in `.partial`.",
        check=one_of("partial", "raise"),
    )
    sub_context_chars: int = option(
        400_000,
        "Characters of prompt that a sub-model can take; the prompt of the root model states this number.",
        check=whole_number,
    )
    shown_output_chars: int = option(
        20_000,
        "Characters of a cell's output that the root model sees: the head and the tail.",
        check=whole_number,
    )
    sandbox: SandboxSettings = field(default_factory=SandboxSettings)
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)

    def __post_init__(self) -> None:
        check_options(self)
        models: object = self.child_models  # may be anything at run time
        if not isinstance(models, tuple):
            raise SettingsError(f"child_models={models!r}: must be a tuple, such as ('gpt-5-nano',)")
        for index, model in enumerate(self.child_models):
            model_name(f"child_models[{index}]", model)

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that these settings name and a run may ask, each once."""
        of_children = self.child_models[: self.max_depth - 1]
        return tuple(dict.fromkeys((self.model, self.recursive_model, *of_children)))

    def for_child(self, depth: int, model: str | None = None) -> RunSettings:
        """Return the settings of a child run at this depth, with the root model that its parent's cell named, if any."""
        of_depth = self.child_models[:depth][-1] if self.child_models else self.model
        return replace(
            self, model=model or of_depth, max_iterations=self.child_iterations or self.max_iterations
        )
