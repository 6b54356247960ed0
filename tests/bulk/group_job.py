"""Two jobs of one group in a process of their own, for tests that kill it: `python group_job.py FOLDER BASE_URL`."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rlm.bulk import JobGroup

if __name__ == "__main__":
    folder, base_url = sys.argv[1:]
    with JobGroup(base_url=base_url, max_concurrent=4) as jobs, ThreadPoolExecutor() as threads:

        def label(number):
            return jobs.map_rows(
                Path(folder) / f"in{number}.csv",
                "Label {{text}}",
                schema="label: 'odd'|'even'",
                output=Path(folder) / f"out{number}.csv",
                rows_per_call=5,
                resume=True,
            ).report

        reports = list(threads.map(label, range(2)))
    print(sum(report.asked for report in reports), sum(report.resumed for report in reports))
