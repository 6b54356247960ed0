"""The settings of a run, frozen, with defaults that a newcomer can leave alone.

`RunSettings` is what `RLM_REPL(...)` collects from its keywords. It holds one `SandboxSettings` for the guest and
one `SchedulerSettings` for the calls, so that a room is handed only what concerns it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlm.errors import SettingsError

__all__ = ["RunSettings", "SandboxSettings", "SchedulerSettings"]

MiB = 1 << 20


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
    """

    cell_timeout_s: float = 120.0
    memory_bytes: int = 4096 * MiB
    output_chars: int = 200_000
    answer_bytes: int = 64 * MiB
    scratch_bytes: int = 256 * MiB
    processes: int = 64
    start_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            _require_positive(name, getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """How calls are made.

    Attributes:
        max_concurrent: calls in flight at once over the whole tree of runs.
        call_timeout_s: seconds one request may take.
    """

    max_concurrent: int | Literal["auto"] = "auto"
    call_timeout_s: float = 600.0

    def __post_init__(self) -> None:
        if self.max_concurrent != "auto":
            _require_positive("max_concurrent", self.max_concurrent)
        _require_positive("call_timeout_s", self.call_timeout_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How a run goes.

    Attributes:
        model: the root model, which writes the cells.
        recursive_model: the sub-model, which the cells call.
        max_iterations: turns, that is, how often the root model may be asked.
        max_depth: levels of runs below which `rlm_query` is a plain call; 1 means that the root run has
            sub-calls but no child runs.
        timeout_s: wall clock of the whole run in seconds, or None.
        sub_context_chars: how many characters of prompt a sub-model can take; told to the root model.
        shown_output_chars: how much of a cell's output the root model is shown: head and tail.
    """

    model: str = "gpt-5"
    recursive_model: str = "gpt-5-nano"
    max_iterations: int = 20
    max_depth: int = 1
    timeout_s: float | None = None
    sub_context_chars: int = 400_000
    shown_output_chars: int = 20_000
    sandbox: SandboxSettings = field(default_factory=SandboxSettings)
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)

    def __post_init__(self) -> None:
        for name in ("max_iterations", "max_depth", "sub_context_chars", "shown_output_chars"):
            _require_positive(name, getattr(self, name))
        if self.timeout_s is not None:
            _require_positive("timeout_s", self.timeout_s)
        for name in ("model", "recursive_model"):
            if not getattr(self, name):
                raise SettingsError(f"{name} is empty: name a model, such as {name}='gpt-5-nano'")


def _require_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise SettingsError(f"{name}={value!r}: must be a number above 0")
