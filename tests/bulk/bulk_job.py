"""A job in a process of its own, for tests that kill it: `python bulk_job.py INPUT OUTPUT BASE_URL`."""

from __future__ import annotations

import sys

from rlm.bulk import map_rows

if __name__ == "__main__":
    source, output, base_url = sys.argv[1:]
    report = map_rows(
        source,
        "Label {{text}}",
        schema="label: 'odd'|'even'",
        output=output,
        rows_per_call=5,
        max_concurrent=4,
        base_url=base_url,
        resume=True,
    ).report
    print(report.asked, report.resumed)
