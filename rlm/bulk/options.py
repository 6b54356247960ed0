"""Options of jobs over rows: the keywords of `map_rows` and its relatives.

`Job` defines what is asked, `JobControls` how one session of a job is run; each option has its default, help and check
there. The typed dicts give editors and type checkers the same names and types; a test holds both equal.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from rlm.bulk.job import Job
from rlm.settings import documented, option

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from rlm.bulk.asking import AskPacks
    from rlm.bulk.io.rows import Row
    from rlm.bulk.report import JobEstimate, JobProgress
    from rlm.clients.base import Client
    from rlm.clients.function import ClientFunction
    from rlm.metering.prices import Price
    from rlm.scheduler.budget import Budget
    from rlm.settings import SchedulerSettings
    from rlm.structured.schema import Schema

__all__ = [
    "EndpointOptions",
    "JobControls",
    "JobOptions",
    "MapOptions",
    "RetryOptions",
    "RetryRowsOptions",
    "controls_of",
    "job_of",
    "refuse_unknown",
]


@documented
@dataclass(frozen=True, slots=True, kw_only=True)
class JobControls:
    """Budget and functions of the caller for one session of a job."""

    rule: Callable[[Row], Any] | None = option(
        None,
        "Function that answers obvious rows without a model: it returns the answer, or None for a row that a model is "
        "asked about. It must return the same for the same row. A row for which it raises fails alone.",
    )
    budget: Budget | float | None = option(None, "Dollars, or a `Budget`; never exceeded.")
    confirm: Callable[[JobEstimate], bool] | None = option(
        None,
        "Function that decides after the pilot, called in a thread; False ends the job with `JobStopped`.",
    )
    on_progress: Callable[[JobProgress], None] | None = option(
        None, "Function that receives the progress, at most ten times a second."
    )
    ask_packs: AskPacks | None = option(None, "Another way to ask than calls at once, such as `BatchAPI`.")
    encoding: str = option("utf-8-sig", "Encoding of text files.")


class RetryOptions(TypedDict, total=False):
    """Options of `JobGroup.retry_rows`; see `JobControls` and `Job`."""

    rule: Callable[[Row], Any] | None
    budget: Budget | float | None
    max_output_tokens: int | None
    on_progress: Callable[[JobProgress], None] | None
    ask_packs: AskPacks | None


class JobOptions(RetryOptions, total=False):
    """Options of `JobGroup.map_rows` and `JobGroup.stream_rows`; see `Job` and `JobControls`."""

    schema: str | Mapping[str, Any] | type | Schema | None
    output: str | Path | None
    model: str | Sequence[str]
    samples: int
    escalate_to: str | None
    escalate_when: str | None
    rows_per_call: int | Literal["auto"]
    max_concurrent: int | Literal["auto"]
    temperature: float | Mapping[str, float] | None
    window_chars: int
    column: str
    limit: int | None
    pilot: int
    confirm: Callable[[JobEstimate], bool] | None
    skip_when: str | None
    checkpoint: str | Path | None
    resume: bool
    overwrite: bool
    encoding: str


class EndpointOptions(TypedDict, total=False):
    """Options of `JobGroup` that a single job has, too."""

    client: Client | ClientFunction | None
    base_url: str | None
    api_key: str | None
    prices: Mapping[str, Price] | None
    scheduler: SchedulerSettings | None


class MapOptions(JobOptions, EndpointOptions, total=False):
    """Options of `map_rows` and `stream_rows`; see `Job`, `JobControls` and `JobGroup`."""


class RetryRowsOptions(RetryOptions, EndpointOptions, total=False):
    """Options of `retry_rows`; see `Job`, `JobControls` and `JobGroup`."""


def job_of(prompt: str, options: JobOptions) -> Job:
    """Return the job that the options describe.

    Raises:
        SettingsError: an option has a value that cannot work.
        SchemaError: the schema is not understood.
    """
    controls = {part.name for part in fields(JobControls)}
    own: dict[str, Any] = {name: value for name, value in options.items() if name not in controls}
    model = own.pop("model", None)
    if model is not None:
        own["models"] = (model,) if isinstance(model, str) else tuple(model)
    return Job(prompt=prompt, **own)


def controls_of(options: RetryOptions) -> JobControls:
    """Return the controls among the options of a job."""
    names = {part.name for part in fields(JobControls)}
    given: dict[str, Any] = {name: value for name, value in options.items() if name in names}
    return JobControls(**given)


def refuse_unknown(options: Mapping[str, Any], known: type) -> None:
    """Require that all keywords are those of a typed dict.

    Raises:
        TypeError: one is not; the message proposes similar names.
    """
    names = sorted(known.__annotations__)
    for name in options.keys() - set(names):
        near = get_close_matches(name, names)
        hint = f"did you mean {' or '.join(near)}?" if near else f"the options are {', '.join(names)}"
        raise TypeError(f"there is no option {name!r}; {hint}")
