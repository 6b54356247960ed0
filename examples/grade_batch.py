"""Grade answers against a rubric at scale: count, estimate, split, submit, collect, report.

    python examples/grade_batch.py                                   # 36 quiz answers, no key needed
    python examples/grade_batch.py my_answers.csv --folder job --budget 5
    python examples/grade_batch.py my_answers.csv --folder job --batch-api --no-wait     # submit, at half the price
    python examples/grade_batch.py my_answers.csv --folder job --batch-api               # days later: collect

The columns are `question`, `rubric` (points, with `;` between them), `answer`, and `teacher`, the points a person
gave, where one did. With OPENAI_API_KEY set it asks OpenAI. Interrupted, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
from stand_in import HAS_KEY, WHO_ANSWERS, points_made, stand_in

from rlm.bulk import MappedRows, Report, amap_rows, count_rows, split_rows
from rlm.bulk.batch_api import BatchAPI
from rlm.bulk.formats import FileSource
from rlm.errors import JobStopped

ANSWERS = Path(__file__).parent / "data" / "quiz_answers.csv"
PROMPT = """Grade a student's answer: one point for each point of the rubric that it makes in its own words, no other.
Question: {{question}}
Rubric: {{rubric}}
Answer: {{answer}}"""
SCHEMA = {
    "type": "object",
    "properties": {"points": {"type": "integer", "minimum": 0, "maximum": 10}, "reason": {"type": "string"}},
    "required": ["points", "reason"],
    "additionalProperties": False,
}


def main() -> None:
    options = read_options()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="grades-"))
    folder.mkdir(exist_ok=True)
    print(f"{WHO_ANSWERS}\n\n{count_rows(options.input, PROMPT, schema=SCHEMA, models=[options.model])}\n")
    if options.batch_api and not HAS_KEY:
        raise SystemExit("--batch-api needs OPENAI_API_KEY: there is no stand-in for the Batch API")

    # The Batch API cuts a job into files by itself, below the account's enqueued tokens; a job at once goes by parts.
    parts = [options.input] if options.batch_api else split(options, folder)
    graded = [folder / f"{part.stem}.graded.csv" for part in parts]
    try:
        for part, output in zip(parts, graded, strict=True):
            result = anyio.run(grade, part, output, options)
            print(f"{part.name}: {one_line(result.report)}")
    except JobStopped as stopped:
        raise SystemExit(str(stopped)) from None
    print(summary([row for output in graded for row in FileSource(output).rows()]))
    print(f"Grades are in {folder}.")


def split(options: argparse.Namespace, folder: Path) -> list[Path]:
    """The parts of the input, made anew at every start, always the same."""
    for part in folder.glob(f"{options.input.stem}.part*[0-9]{options.input.suffix}"):
        part.unlink()
    return split_rows(
        options.input, folder=folder, max_tokens=options.part_tokens, prompt=PROMPT, schema=SCHEMA
    )


async def grade(part: Path, output: Path, options: argparse.Namespace) -> MappedRows:
    """Grade one part, through the Batch API or at once."""
    async with AsyncExitStack() as stack:
        batch_api = (
            await stack.enter_async_context(BatchAPI(wait=not options.no_wait, first_poll_s=options.poll))
            if options.batch_api
            else None
        )
        return await amap_rows(
            part,
            PROMPT,
            schema=SCHEMA,
            output=output,
            resume=True,
            model=options.model,
            budget=options.budget,
            rule=lambda row: {"points": 0, "reason": "no answer"} if not row["answer"].strip() else None,
            client=stand_in(points_made, PROMPT),
            ask_packs=batch_api,
        )


def one_line(report: Report) -> str:
    cost = "price unknown" if report.cost_usd is None else f"${report.cost_usd:.4f}"
    return (
        f"{report.answered} graded ({report.by_rule} without a model), {report.failed} failed, "
        f"{report.usage.calls} calls, {cost}, {report.resumed} from before"
    )


def summary(rows: list[dict[str, Any]]) -> str:
    """Points per question, and how often the teacher would have given the same."""
    lines, graded = [""], [row for row in rows if row["points"]]
    for question in dict.fromkeys(row["question"] for row in graded):
        points = [int(row["points"]) for row in graded if row["question"] == question]
        lines.append(f"{sum(points) / len(points):5.2f} points of {len(points)} answers: {question}")
    known = [row for row in graded if row.get("teacher")]
    if known:
        same = sum(row["points"] == row["teacher"] for row in known)
        lines.append(
            f"\nThe teacher gave the same points to {same} of {len(known)} ({same / len(known):.0%})."
        )
    return "\n".join(lines)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Grade answers against a rubric at scale.")
    parser.add_argument("input", nargs="?", type=Path, default=ANSWERS)
    parser.add_argument(
        "--folder", type=Path, help="for parts, journals and grades; by default a temporary one"
    )
    parser.add_argument("--model", default="gpt-5-nano")
    parser.add_argument("--part-tokens", type=int, default=500_000, help="tokens of a part at most")
    parser.add_argument("--budget", type=float, help="dollars that no part exceeds")
    parser.add_argument("--batch-api", action="store_true", help="within a day, at half the price")
    parser.add_argument("--no-wait", action="store_true", help="end when the batches are submitted")
    parser.add_argument("--poll", type=float, default=5.0, help="seconds before a batch is looked at first")
    return parser.parse_args()


if __name__ == "__main__":
    main()
