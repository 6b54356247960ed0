"""The settings of a run, frozen, with defaults that a newcomer can leave alone.

`RunSettings` is what `RLM_REPL(...)` collects from its keywords. It holds one `SandboxSettings` for the guest and
one `SchedulerSettings` for the calls, so that a room is handed only what concerns it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from rlm.errors import SettingsError

__all__ = ["IsolationTier", "RunSettings", "SandboxSettings", "SchedulerSettings"]

MiB = 1 << 20
IsolationTier = Literal["process", "confined", "isolated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSettings:
    """Limits of one guest.

    Attributes:
        cell_timeout_s: seconds of work a cell may take; time spent waiting for host calls does not count.
        memory_bytes: what the guest may allocate over what the context takes.
        output_chars: how much of a cell's stdout, and of its stderr, is kept: head and tail.
        answer_bytes: the largest answer that may cross to the host, encoded.
        scratch_bytes: how much the cells may write to their scratch folder.
        processes: how many processes and threads the cells may have, where the platform can count them.
        start_timeout_s: seconds a guest may take to get ready.
        minimum_tier: what must confine the guest, or it does not start: `process`, `confined` (files, network,
            programs), `isolated` (namespaces of its own too).
        highest_tier: what is tried; below it, nothing is.
    """

    cell_timeout_s: float = 120.0
    memory_bytes: int = 4096 * MiB
    output_chars: int = 200_000
    answer_bytes: int = 64 * MiB
    scratch_bytes: int = 256 * MiB
    processes: int = 64
    start_timeout_s: float = 30.0
    minimum_tier: IsolationTier = "process"
    highest_tier: IsolationTier = "isolated"

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "output_chars", "answer_bytes", "scratch_bytes", "processes"):
            _require_count(name, getattr(self, name))
        for name in ("cell_timeout_s", "start_timeout_s"):
            _require_positive(name, getattr(self, name))
            if getattr(self, name) == math.inf:
                raise SettingsError(
                    f"{name}={math.inf}: must end some time, such as after a day: {name}=86_400"
                )
        for name in ("minimum_tier", "highest_tier"):
            if getattr(self, name) not in get_args(IsolationTier):
                raise SettingsError(
                    f"{name}={getattr(self, name)!r}: must be one of {', '.join(get_args(IsolationTier))}"
                )
        tiers = get_args(IsolationTier)
        if tiers.index(self.minimum_tier) > tiers.index(self.highest_tier):
            raise SettingsError(
                f"minimum_tier={self.minimum_tier!r} is above highest_tier={self.highest_tier!r}: no guest could start"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """How calls are made.

    Attributes:
        max_concurrent: calls in flight at once over the whole tree of runs; "auto" finds out for each model how
            many its endpoint takes.
        call_timeout_s: seconds one request may take.
        requests_per_minute: requests to each model, or None for what its endpoint says.
        tokens_per_minute: input and output tokens of each model, or None for what its endpoint says.
        max_attempts: how often a call is asked where it fails for a passing reason other than a rate limit.
        retry_patience_s: seconds a call may wait in all to be asked again, rate limits included.
        first_backoff_s: the longest wait before the second attempt; it doubles with each further one.
        longest_backoff_s: the longest wait before any attempt, where the provider does not ask for more.
        spare_retries: retries a tree of runs has in hand; each answer adds one, up to twice as many.
        breaker_failures: failures in a row after which a model is asked by one call at a time.
        breaker_patience_s: seconds the other calls then wait for it to recover before they fail.
        breaker_pause_s: seconds between two probes of a model that has not recovered.
        cache: keep finished answers on disk: "off", "read" (use but do not add) or "on".
        cache_sampled: use the cache for calls with a temperature above 0, too.
        cache_folder: where the cache lives, or None for the user's cache folder.
        cache_bytes: size above which the cache forgets what was not used for the longest time.
        default_max_output_tokens: output cap of calls that have none, sent along when a budget is set.
    """

    max_concurrent: int | Literal["auto"] = "auto"
    call_timeout_s: float = 600.0
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_attempts: int = 9
    retry_patience_s: float = 300.0
    first_backoff_s: float = 0.2
    longest_backoff_s: float = 20.0
    spare_retries: int = 100
    breaker_failures: int = 20
    breaker_patience_s: float = 60.0
    breaker_pause_s: float = 30.0
    cache: Literal["off", "read", "on"] = "off"
    cache_sampled: bool = False
    cache_folder: str | None = None
    cache_bytes: int = 1024 * MiB
    default_max_output_tokens: int = 16_384

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if name in {"cache", "cache_sampled", "cache_folder"} or value == _MAY_BE.get(name, ...):
                continue
            if name in _WHOLE:
                _require_count(name, value)
            else:
                _require_positive(name, value)
        if self.cache not in {"off", "read", "on"}:
            raise SettingsError(f"cache={self.cache!r}: must be 'off', 'read' or 'on'")


_MAY_BE: dict[str, object] = {
    "max_concurrent": "auto",
    "requests_per_minute": None,
    "tokens_per_minute": None,
}
_WHOLE = {
    "max_concurrent",
    "max_attempts",
    "spare_retries",
    "breaker_failures",
    "cache_bytes",
    "default_max_output_tokens",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How a run goes.

    Attributes:
        model: the root model, which writes the cells.
        recursive_model: the sub-model, which the cells call.
        max_iterations: turns, that is, how often the root model may be asked.
        max_children: child runs with an open guest at once, at each depth of the tree.
        child_models: root models of child runs, by depth: the first of those that the root run starts, the last
            of all below it, too. Without any, a child run has the root model of its parent. A cell may name another.
        child_iterations: turns of a child run, or None for as many as the root run has.
        child_timeout_s: wall clock of each child run in seconds, or None. One that takes longer fails alone; its
            own children are within its time.
        max_depth: levels of runs below which `rlm_query` is a plain call; 1 means that the root run has
            sub-calls but no child runs.
        timeout_s: wall clock of the whole run in seconds, or None.
        on_limit: what a budget or the wall clock ends the root run with: a "partial" answer, or "raise" the
            `LimitReached` with that answer in `.partial`.
        sub_context_chars: how many characters of prompt a sub-model can take; told to the root model.
        shown_output_chars: how much of a cell's output the root model is shown: head and tail.
    """

    model: str = "gpt-5"
    recursive_model: str = "gpt-5-nano"
    max_iterations: int = 20
    max_depth: int = 1
    max_children: int = 64
    child_models: tuple[str, ...] = ()
    child_iterations: int | None = None
    child_timeout_s: float | None = None
    timeout_s: float | None = None
    on_limit: Literal["partial", "raise"] = "partial"
    sub_context_chars: int = 400_000
    shown_output_chars: int = 20_000
    sandbox: SandboxSettings = field(default_factory=SandboxSettings)
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)

    def __post_init__(self) -> None:
        for name in (
            "max_iterations",
            "max_depth",
            "max_children",
            "sub_context_chars",
            "shown_output_chars",
        ):
            _require_count(name, getattr(self, name))
        for name in ("timeout_s", "child_timeout_s"):
            if getattr(self, name) is not None:
                _require_positive(name, getattr(self, name))
        if self.child_iterations is not None:
            _require_count("child_iterations", self.child_iterations)
        if self.on_limit not in {"partial", "raise"}:
            raise SettingsError(f"on_limit={self.on_limit!r}: must be 'partial' or 'raise'")
        for name in ("model", "recursive_model"):
            _require_model(name, getattr(self, name))
        models: object = self.child_models  # whatever the annotation says
        if not isinstance(models, tuple):
            raise SettingsError(f"child_models={models!r}: must be a tuple, such as ('gpt-5-nano',)")
        for index, model in enumerate(self.child_models):
            _require_model(f"child_models[{index}]", model)

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that these settings name and a run may ask, each once."""
        of_children = self.child_models[: self.max_depth - 1]
        return tuple(dict.fromkeys((self.model, self.recursive_model, *of_children)))

    def for_child(self, depth: int, model: str | None = None) -> RunSettings:
        """The settings of a child run at this depth, with the root model that its parent's cell named, if any."""
        of_depth = self.child_models[:depth][-1] if self.child_models else self.model
        return replace(
            self, model=model or of_depth, max_iterations=self.child_iterations or self.max_iterations
        )


def _require_model(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise SettingsError(f"{name} is a {type(value).__name__}: name a model, such as {name}='gpt-5-nano'")
    if not value:
        raise SettingsError(f"{name} is empty: name a model, such as {name}='gpt-5-nano'")


def _require_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise SettingsError(f"{name}={value!r}: must be a number above 0")


def _require_count(name: str, value: object) -> None:
    _require_positive(name, value)
    if not isinstance(value, int):
        raise SettingsError(f"{name}={value!r}: must be a whole number")
