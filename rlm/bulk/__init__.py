"""Whole data sets: rows in, packed calls, rows out.

`map_rows` asks the same question about every row of a file, a list or a data frame; `retry_rows` asks the failed rows
again. Jobs of a `JobGroup` share one concurrency limit, one budget and one cache. `engine.py` runs a job.
"""

from __future__ import annotations

from rlm.bulk.estimate import Count, count_rows
from rlm.bulk.group import JobGroup, MappedRows
from rlm.bulk.io.rows import Row
from rlm.bulk.job import Job
from rlm.bulk.options import JobControls
from rlm.bulk.report import JobEstimate, JobProgress, JobReport, total
from rlm.bulk.rows import amap_rows, aretry_rows, astream_rows, map_rows, retry_rows, stream_rows
from rlm.bulk.split import split_rows
from rlm.bulk.streaming import FinishedRow, RowStream
from rlm.bulk.templates import escape

__all__ = [
    "Count",
    "FinishedRow",
    "Job",
    "JobControls",
    "JobEstimate",
    "JobGroup",
    "JobProgress",
    "JobReport",
    "MappedRows",
    "Row",
    "RowStream",
    "amap_rows",
    "aretry_rows",
    "astream_rows",
    "count_rows",
    "escape",
    "map_rows",
    "retry_rows",
    "split_rows",
    "stream_rows",
    "total",
]
