"""`map_rows`: the same question about every row of a file or a list, many rows in one call.

    report = map_rows("in.csv", "Label {{text}}", schema="label: 'spam'|'ham', score: float", output="out.csv").report

The output has every row of the input, in order, with the new columns; these are empty for failed rows, which are also
in `out.csv.failed.jsonl` with the reason. Each answer is in `out.csv.journal` before it is used: after an interruption,
`resume=True` goes on from there. `stream_rows` yields the rows as they finish; `amap_rows`, `astream_rows` and
`aretry_rows` are for callers with an event loop.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, Unpack

from rlm._async.portal import lease
from rlm.bulk.group import JobGroup, failed_job
from rlm.bulk.options import EndpointOptions, MapOptions, RetryRowsOptions, refuse_unknown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
    from pathlib import Path

    from rlm.bulk.group import MappedRows
    from rlm.bulk.streaming import FinishedRow, RowStream

__all__ = ["amap_rows", "aretry_rows", "astream_rows", "map_rows", "retry_rows", "stream_rows"]

P = ParamSpec("P")
T = TypeVar("T")


async def amap_rows(rows: Any, prompt: str, **options: Unpack[MapOptions]) -> MappedRows:
    """Ask the same question about every row.

    Args:
        rows: a path (CSV, TSV, JSONL, JSON; Parquet and Excel with the extra `[tables]`), mappings, or a data frame.
            An iterator is read into memory; a file is not.
        prompt: template with `{{field}}`s; without fields, the whole row is asked about. `rlm.bulk.escape` makes any
            text safe as a part of it.
        options: `rlm.bulk.Job` documents the question and the files (`models` is called `model` here: one name or
            several), `rlm.bulk.JobControls` the budget and functions of yours, `rlm.bulk.JobGroup` the endpoint:
            `client`, `base_url`, `api_key`, `prices`, `scheduler`.

    Raises:
        InputError: rows, prompt, schema and output do not fit together; nothing was spent.
        SettingsError: a setting has a value that cannot work.
        TypeError: an option is unknown.
        OutputError: the output exists or cannot be written.
        ConnectionFailed: the endpoint cannot be reached; nothing was spent or begun.
        JobStopped: a limit, or a failure that concerns every row; the answers so far are in the journal.
        JournalError: the journal cannot be used, or the disk is full.
    """
    of_group, of_job = _split(options, MapOptions)
    async with JobGroup(**of_group) as jobs:
        return await jobs.amap_rows(rows, prompt, **of_job)


def stream_rows(rows: Any, prompt: str, **options: Unpack[MapOptions]) -> Iterator[FinishedRow]:
    """Ask the same question about every row, and yield the rows as they finish.

    The job starts when the first row is requested. At most a hundred finished rows wait for the consumer; then the job
    waits, too. Leaving the loop early cancels the job; with a `checkpoint` or an `output`, the answers are in the
    journal, and `resume=True` goes on from there. The options are those of `map_rows`.

        for row in stream_rows("in.csv", "Label {{text}}", schema="label: str", checkpoint="labels.journal"):
            print(row.index, row.reason if row.failed else row.row["label"])

    Raises:
        Exception: as `map_rows`, after the rows that were finished before.
    """
    of_group, of_job = _split(options, MapOptions)
    with JobGroup(**of_group) as jobs:
        yield from jobs.stream_rows(rows, prompt, **of_job)


@asynccontextmanager
async def astream_rows(rows: Any, prompt: str, **options: Unpack[MapOptions]) -> AsyncIterator[RowStream]:
    """Run `stream_rows` for callers with an event loop, as a context manager that ends the tasks of the job.

        async with astream_rows("in.csv", "Label {{text}}", schema="label: str") as finished:
            async for row in finished:
                ...

    An async generator that is left early would leave its tasks behind (PEP 789).

    Raises:
        Exception: as `amap_rows`, in the loop, after the rows that were finished before.
    """
    of_group, of_job = _split(options, MapOptions)
    async with JobGroup(**of_group) as jobs, jobs.astream_rows(rows, prompt, **of_job) as finished:
        yield finished


async def aretry_rows(dead_letters: str | Path, **options: Unpack[RetryRowsOptions]) -> MappedRows:
    """Ask the failed rows of an earlier job again, with the options of that job, and write its output anew.

    Args:
        dead_letters: the file of failed rows, `OUTPUT.failed.jsonl`.
        options: `max_output_tokens` replaces that of the job, for answers that were cut; `rule`, `on_progress` and
            `ask_packs` as for `map_rows`; `budget` and the endpoint as for `JobGroup`.

    Raises:
        InputError: the file does not hold the failed rows of a job over a file.
        JobStopped: as `amap_rows`.
    """
    of_group, of_job = _split(options, RetryRowsOptions)
    job, _ = failed_job(dead_letters)
    async with JobGroup(**of_group, max_concurrent=job.max_concurrent) as jobs:
        return await jobs.aretry_rows(dead_letters, **of_job)


def _split(options: Mapping[str, Any], known: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of the group of one job, and those of the job in it."""
    refuse_unknown(options, known)
    of_both = {"max_concurrent"}
    of_group = {"budget", *of_both, *EndpointOptions.__annotations__}
    return (
        {name: value for name, value in options.items() if name in of_group},
        {name: value for name, value in options.items() if name not in of_group - of_both},
    )


def _blocking(function: Callable[P, Awaitable[T]]) -> Callable[P, T]:
    """Return the twin of an async function that blocks its thread until the function is done."""

    @wraps(function)
    def twin(*arguments: P.args, **options: P.kwargs) -> T:
        with lease() as portal:
            return portal.call(partial(function, *arguments, **options))

    twin.__name__ = twin.__qualname__ = function.__name__.removeprefix("a")
    return twin


map_rows = _blocking(amap_rows)
retry_rows = _blocking(aretry_rows)
