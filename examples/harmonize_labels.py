"""Harmonize the words that many shops use for the same thing, and find those that belong to nothing.

    python examples/harmonize_labels.py                           # 330 words, no key needed; measures the factor
    python examples/harmonize_labels.py my_words.csv -o harmonized.csv       # columns: type, merchant, word

Label types, merchants and words go at once, on one gate. What near neighbours decide is not asked at all, a word that
several merchants use is asked once, the rest goes ten to a call, and what is in the cache is not asked again. With
OPENAI_API_KEY set it asks OpenAI, and measures nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import anyio
from stand_in import HAS_KEY, WHO_ANSWERS, stand_in

from rlm import AsyncOpenAIClient
from rlm.bulk.formats import FileSource, create
from rlm.mapping import MapSettings, map_items
from rlm.prices import price
from rlm.scheduler import Scheduler, Tree
from rlm.settings import SchedulerSettings

WORDS = Path(__file__).parent / "data" / "shop_labels.csv"
PROMPT = (
    "A shop uses this word for a label of the given type; `near` are similar words in other places, with how often. "
    "Give the most usual word for the same thing, or 'outlier' if it is no label of this type."
)
MANY = 10
"""Near neighbours that make a word a label without asking; one with none is an outlier without asking."""


class Decision(NamedTuple):
    """The common word for a word, or 'outlier', and what decided: 'neighbours', 'model', or the error."""

    word: str
    by: str


async def main() -> None:
    options = read_options()
    print(WHO_ANSWERS)
    rows = list(FileSource(options.input).rows())
    settings = MapSettings(model=options.model, per_call=10, max_concurrent=20)
    client = stand_in(usual_word, PROMPT, latency_s=options.latency) or AsyncOpenAIClient(options.model)
    scheduler = Scheduler(
        client,
        SchedulerSettings(
            max_concurrent=options.max_concurrency,
            cache="on",
            cache_folder=options.cache or tempfile.mkdtemp(),
        ),
        price=price,
    )
    seconds = []
    for _ in ("first", "again"):
        trees = {kind: scheduler.tree(run_id=kind) for kind in dict.fromkeys(row["type"] for row in rows)}
        started = time.perf_counter()
        decisions = await harmonize(trees, rows, settings)
        seconds.append(time.perf_counter() - started)
        report(trees, rows, decisions, seconds[-1])
    if options.output:
        with create(options.output, [*rows[0], "harmonized", "by"]) as writer:
            for row in rows:
                decision = decisions[row["type"], plain(row["word"])]
                writer.write({**row, "harmonized": decision.word, "by": decision.by})
    if not HAS_KEY:
        slow = await one_call_per_word(rows, options)
        print(f"\nOne call per word, one after the other: {len(rows)} calls, {slow:.2f} s.")
        print(f"Measured at {options.latency} s per call: {slow / seconds[0]:.0f} times faster.")
    await scheduler.aclose()


async def harmonize(
    trees: dict[str, Tree], rows: list[dict[str, Any]], settings: MapSettings
) -> dict[tuple[str, str], Decision]:
    """Decide all words: label types at once, their merchants at once, their words at once, all on one gate."""
    decisions: dict[tuple[str, str], Decision] = {}

    async def decide_type(kind: str) -> None:
        known = Counter(plain(row["word"]) for row in rows if row["type"] == kind)
        merchants: dict[str, list[str]] = {}
        first = {plain(row["word"]): row["merchant"] for row in reversed(rows) if row["type"] == kind}
        for word, merchant in first.items():
            merchants.setdefault(merchant, []).append(word)
        async with anyio.create_task_group() as tasks:
            for words in merchants.values():
                tasks.start_soon(decide_words, kind, words, known)

    async def decide_words(kind: str, words: list[str], known: Counter[str]) -> None:
        items = []
        for word in words:
            near = neighbours(word, known)
            if 0 < near.total() < MANY:
                items.append({"type": kind, "word": word, "near": dict(near.most_common())})
            else:
                decisions[kind, word] = Decision(usual_word({"word": word, "near": near}), "neighbours")
        for item, answer in zip(
            items, await map_items(trees[kind], items, PROMPT, settings, schema="str"), strict=True
        ):
            decisions[kind, item["word"]] = Decision(answer.value or "", answer.kind or "model")

    async with anyio.create_task_group() as tasks:
        for kind in trees:
            tasks.start_soon(decide_type, kind)
    return decisions


def neighbours(word: str, known: Counter[str]) -> Counter[str]:
    """Similar words of the same type and how often they come; the word itself counts where it comes again."""
    close = get_close_matches(word, known, n=len(known), cutoff=0.75)
    parts = set(word.split())
    close += [other for other in known if set(other.split()) <= parts or parts <= set(other.split())]
    return +(Counter({other: known[other] for other in close}) - Counter([word]))


def plain(word: str) -> str:
    return " ".join(word.lower().replace("-", " ").replace(",", " ").split())


def report(
    trees: dict[str, Tree],
    rows: list[dict[str, Any]],
    decisions: dict[tuple[str, str], Decision],
    seconds: float,
) -> None:
    print(f"\n{len(rows)} words, {len(decisions)} different ones, {seconds:.2f} s")
    for kind, tree in trees.items():
        own = {word: decision for (of, word), decision in decisions.items() if of == kind}
        by = Counter(decision.by for decision in own.values())
        outliers = sorted(word for word, decision in own.items() if decision.word == "outlier")
        spent = tree.ledger.cost_summary()
        print(
            f"  {kind}: {len(own)} words to {len({decision.word for decision in own.values()})}; by {dict(by)}"
        )
        print(f"    {tree.ledger.usage.calls} calls, {spent['stored_replies']} from the cache, ", end="")
        cost = tree.ledger.cost_usd
        print(f"{'price unknown' if cost is None else f'${cost:.5f}'}; outliers: {', '.join(outliers)}")


async def one_call_per_word(rows: list[dict[str, Any]], options: argparse.Namespace) -> float:
    """Seconds of what this replaces: every word of every merchant is a call, one after the other."""
    client = stand_in(usual_word, PROMPT, latency_s=options.latency)
    items = [
        {"type": row["type"], "merchant": row["merchant"], "word": row["word"], "near": {}} for row in rows
    ]
    one_by_one = MapSettings(model=options.model, per_call=1, max_concurrent=1)
    started = time.perf_counter()
    await map_items(Scheduler(client).tree(run_id="slow"), items, PROMPT, one_by_one, schema="str")
    return time.perf_counter() - started


def usual_word(item: dict[str, Any], _model: str = "") -> str:
    """The most frequent of a word and its neighbours; the rule where there are many, and the stand-in's answer."""
    if not item["near"]:
        return "outlier"
    return str(max({item["word"]: 1, **item["near"]}.items(), key=lambda pair: pair[1])[0])


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Harmonize the words that many shops use for the same thing."
    )
    parser.add_argument("input", nargs="?", type=Path, default=WORDS)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--model", default="gpt-5-nano")
    parser.add_argument("--max-concurrency", type=int, default=20, help="calls at once, over everything")
    parser.add_argument("--cache", help="folder of answers; by default a new one")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds of each call of the stand-in")
    return parser.parse_args()


if __name__ == "__main__":
    anyio.run(main)
