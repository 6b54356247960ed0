"""Add new yes/no columns to a labelled CSV: many rows per call, several calls at once.

    python examples/enrich_dataset.py                                       # 38 proverbs, no key needed
    python examples/enrich_dataset.py --input my.csv --output new.csv --labels urgent polite --batch-size 10

With OPENAI_API_KEY set it asks OpenAI. A failed call costs its own rows only: they stand in OUTPUT.failed.jsonl with
the reason, and `rlm map --retry OUTPUT.failed.jsonl` asks them again. Interrupted, it goes on with --resume.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

from stand_in import has_the_words, stand_in

from rlm.bulk import count_rows, map_rows

PROVERBS = Path(__file__).parent / "data" / "proverbs.csv"


def main() -> None:
    options = read_options()
    prompt = (
        f"Text: {{{{{options.text_column}}}}}\nIts label: {{{{{options.label_column}}}}}\n\n"
        f"Which of these labels fit the text, too? {', '.join(options.labels)}"
    )
    schema = ", ".join(f"{label}: bool" for label in options.labels)

    client = stand_in({prompt: has_the_words}, latency_s=options.latency)
    plan = count_rows(
        options.input, prompt, schema=schema, models=[options.model], rows_per_call=options.batch_size
    )
    print(f"\nPlan: {plan}\n{plan.rows - plan.calls} calls saved against one per row; ", end="")
    print(f"{options.max_workers} at once; new columns: {', '.join(options.labels)}\n")
    result = map_rows(
        options.input,
        prompt,
        schema=schema,
        output=options.output,
        model=options.model,
        rows_per_call=options.batch_size,
        max_concurrent=options.max_workers,
        budget=options.budget,
        resume=options.resume,
        client=client,
    )
    print(result.report)
    for row in islice(result, 3):
        print(row)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Add yes/no columns to a labelled CSV.")
    parser.add_argument("--input", default=PROVERBS, type=Path)
    parser.add_argument("--output", type=Path, help="for all rows; the first of them are shown")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--label-column", default="theme")
    parser.add_argument("--labels", nargs="+", default=["contrast", "money", "command"])
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--max-workers", type=int, default=3)
    parser.add_argument("--model", default="gpt-5-nano")
    parser.add_argument("--budget", type=float, help="dollars that are never exceeded")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds of each call of the stand-in")
    return parser.parse_args()


if __name__ == "__main__":
    main()
