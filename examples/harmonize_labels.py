"""Harmonize the words that many shops use for the same thing, and find those that belong to nothing.

    python examples/harmonize_labels.py                        # 352 words, no key needed; measures the factor
    python examples/harmonize_labels.py my.csv -o out.csv      # columns: type, merchant, word

Label types, their merchants and their words go at once, on one gate. What similar words decide is not asked at all,
the rest goes ten to a call, and what is in the cache is not asked again. With OPENAI_API_KEY set it asks OpenAI.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from difflib import get_close_matches
from operator import itemgetter
from pathlib import Path

import anyio
from stand_in import compared_with_a_loop, most_frequent, rows_of, stand_in

from rlm.bulk import JobGroup, JobReport, Row, total
from rlm.bulk.io.formats import create
from rlm.settings import SchedulerSettings

WORDS = Path(__file__).parent / "data" / "shop_labels.csv"
ASK = "What is the usual word for {{word}}, a {{type}}, or is it an 'outlier'? Similar words, how often: {{near}}"
SIGNS = str.maketrans("-,", "  ")


async def main() -> None:
    parser = argparse.ArgumentParser(description="Harmonize the words that shops use for the same thing.")
    parser.add_argument("input", nargs="?", type=Path, default=WORDS)
    parser.add_argument("-o", "--output", type=Path, default=Path(tempfile.mkdtemp(), "harmonized.csv"))
    parser.add_argument("--latency", type=float, default=0.02, help="seconds of each call of the stand-in")
    options = parser.parse_args()
    client = stand_in({ASK: most_frequent}, latency_s=options.latency)
    calls = SchedulerSettings(max_concurrent=20, cache="on", cache_folder=f"{options.output}.cache")
    read = rows_of(options.input, "type", "merchant", "word")
    rows = [row | {"plain": row["word"].lower().translate(SIGNS)} for row in read]
    usual: dict[tuple[str, str], str] = {}
    async with JobGroup(client=client, scheduler=calls) as jobs:
        started = anyio.current_time()
        async with anyio.create_task_group() as types:
            for kind in dict.fromkeys(row["type"] for row in rows):
                types.start_soon(harmonize, jobs, [row for row in rows if row["type"] == kind], usual)
        print(await compared_with_a_loop(rows, anyio.current_time() - started, options.latency))
    with create(options.output, [*rows[0], "usual"]) as writer:
        for row in rows:
            writer.write({**row, "usual": usual[row["type"], row["plain"]]})
    print(f"written: {options.output}")


async def harmonize(jobs: JobGroup, rows: list[Row], usual: dict[tuple[str, str], str]) -> None:
    """Decide the words of a label type: all merchants at once, each word with the first that uses it."""
    kind, known = rows[0]["type"], Counter(row["plain"] for row in rows)
    merchant_of = {row["plain"]: row["merchant"] for row in reversed(rows)}
    reports: list[JobReport] = []

    async def decide(words: list[str]) -> None:
        items = [question(kind, word, known) for word in words]
        done = await jobs.amap_rows(items, ASK, schema="str", rule=itemgetter("clear"), rows_per_call=10)
        usual.update({(kind, row["word"]): row["answer"] for row in done})
        reports.append(done.report)

    async with anyio.create_task_group() as merchants:
        for merchant in dict.fromkeys(merchant_of.values()):
            merchants.start_soon(decide, [word for word in known if merchant_of[word] == merchant])
    job = total(reports)
    cost = "price unknown" if job.cost_usd is None else f"${job.cost_usd:.5f}"
    done = f"{job.rows} words, {job.by_rule} by rule; {job.usage.calls} calls, {cost}"
    left = ", ".join(word for word in known if usual[kind, word] in {"outlier", None})
    print(f"{kind}: {done}; outliers or failed: {left}")


def question(kind: str, word: str, known: Counter[str]) -> Row:
    """A word, the similar ones with how often they come, and the answer where there are none, or ten."""
    parts, similar = {*word.split()}, {*get_close_matches(word, known, n=len(known), cutoff=0.75)}
    similar |= {other for other in known if parts <= {*other.split()} or parts >= {*other.split()}}
    near = Counter({other: known[other] for other in sorted(similar)}) - Counter([word])
    clear = None if 0 < near.total() < 10 else max(near, key=near.__getitem__, default="outlier")
    return {"type": kind, "word": word, "near": dict(near), "clear": clear}


if __name__ == "__main__":
    anyio.run(main)
