"""Whole data sets: rows in, packed calls, rows out.

`map_rows` asks the same of every row of a file, a list or a data frame (`rows.py`); `jobs.py` is how. `retry_rows`
asks the rows that failed again. Jobs of a `JobGroup` share one gate, one budget and one cache (`groups.py`).
"""

from __future__ import annotations

from rlm.bulk.estimate import Count, count_rows, split_rows
from rlm.bulk.group import JobGroup, MappedRows
from rlm.bulk.io.formats import Row
from rlm.bulk.report import Estimate, Progress, Report, total
from rlm.bulk.rows import amap_rows, aretry_rows, astream_rows, map_rows, retry_rows, stream_rows
from rlm.bulk.streaming import FinishedRow, RowStream
from rlm.bulk.templates import escape

__all__ = [
    "Count",
    "Estimate",
    "FinishedRow",
    "JobGroup",
    "MappedRows",
    "Progress",
    "Report",
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
