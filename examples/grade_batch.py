"""Grade answers against a rubric at scale: count, estimate, split, submit, collect, report.

    python examples/grade_batch.py                                                  # 36 quiz answers, no key needed
    python examples/grade_batch.py my.csv --folder job --until count                # or split: asks no model
    python examples/grade_batch.py my.csv --folder job --batch-api --until submit   # half the price, within a day
    python examples/grade_batch.py my.csv --folder job --batch-api                  # days later: collect, report

Columns: `question`, `rubric` (points, with `;` between them), `answer`, and `teacher`, the points a person gave,
where one did. With OPENAI_API_KEY set it asks OpenAI. Interrupted, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import anyio
from stand_in import points_made, stand_in

from rlm.bulk import JobGroup, Row, count_rows, escape, split_rows
from rlm.bulk.batch_api.passes import BatchAPI
from rlm.errors import RLMError

ANSWERS = Path(__file__).parent / "data" / "quiz_answers.csv"
PROMPT = """Grade a student's answer: one point for each point of the rubric that it makes in its own words, no other.
Question: {{question}}
Rubric: {{rubric}}
Answer: {{answer}}"""
SCHEMA = "points: 0|1|2|3|4|5|6|7|8|9|10, reason: str"


def main() -> None:
    parser = argparse.ArgumentParser(description="Grade answers against a rubric at scale.")
    parser.add_argument("input", nargs="?", type=Path, default=ANSWERS)
    parser.add_argument("--until", choices=["count", "split", "submit", "report"], default="report")
    parser.add_argument("--folder", type=Path, help="for parts and grades; by default, a temporary one")
    parser.add_argument("--examples", type=Path, help="graded answers as text, to be shown to the model")
    parser.add_argument("--part-tokens", type=int, default=500_000, help="tokens of a part at most")
    parser.add_argument("--budget", type=float, help="dollars that are never exceeded")
    parser.add_argument("--batch-api", action="store_true", help="the whole input, at half the price")
    options = parser.parse_args()
    if options.until == "submit" and not options.batch_api:
        parser.error("--until submit ends after a batch is submitted: add --batch-api")
    if options.batch_api and not options.folder:
        parser.error("--batch-api needs a --folder, where a later start finds what was submitted")
    try:
        anyio.run(grade, options)
    except RLMError as error:
        raise SystemExit(str(error)) from None


async def grade(options: argparse.Namespace) -> None:
    prompt = PROMPT if not options.examples else escape(options.examples.read_text("utf-8")) + "\n" + PROMPT
    client = stand_in({prompt: points_made})
    ask: dict[str, Any] = {"prompt": prompt, "schema": SCHEMA}
    print(f"\n{count_rows(options.input, **ask)}\n")
    if options.until == "count":
        return
    folder = options.folder or Path(tempfile.mkdtemp(prefix="grades-"))
    place, most = folder / "parts", options.part_tokens
    parts = split_rows(options.input, folder=place, max_tokens=most, overwrite=True, **ask)
    print(f"Parts: {len(parts)}; they and their grades are in {folder}.")
    if options.until == "split":
        return
    rows: list[Row] = []
    batch_api = BatchAPI(wait=options.until == "report") if options.batch_api else nullcontext()
    async with batch_api as api, JobGroup(client=client, budget=options.budget) as jobs:
        for part in [options.input] if api else parts:
            output = folder / f"{part.stem}.graded.csv"
            done = await jobs.amap_rows(part, rule=silence, output=output, resume=True, ask_packs=api, **ask)
            print(f"\n{part.name}: {done.report}")
            rows += done
    known = [row for row in rows if row["points"] and row.get("teacher")]
    same = sum(row["points"] == row["teacher"] for row in known)
    print(f"\nThe teacher gave the same points to {same} of {len(known)}.")


def silence(row: Row) -> Row | None:
    return None if row["answer"].strip() else {"points": 0, "reason": "no answer"}


if __name__ == "__main__":
    main()
