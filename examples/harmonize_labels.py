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
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
from stand_in import HAS_KEY, WHO_ANSWERS, stand_in

from rlm import AsyncOpenAIClient
from rlm.bulk.formats import FileSource, create
from rlm.mapping import MapSettings, map_items
from rlm.prices import price
from rlm.scheduler import Scheduler, Tree
from rlm.settings import SchedulerSettings

if TYPE_CHECKING:
    from rlm.clients.base import Client

WORDS = Path(__file__).parent / "data" / "shop_labels.csv"
PROMPT = (
    "A shop uses this word for a label of the given type; `near` are similar words in other places, with how often. "
    "Give the most usual word for the same thing, or 'outlier' if it is no label of this type."
)
MANY = 10
"""Near neighbours that make a word a label without asking; one with none is an outlier without asking."""

Decisions: TypeAlias = dict[tuple[str, str], tuple[str, str]]
"""Type and word → the usual word or 'outlier', and what decided: 'neighbours', 'model', or the error."""


async def main() -> None:
    options = read_options()
    print(WHO_ANSWERS)
    rows = list(FileSource(options.input).rows())
    settings = MapSettings(model=options.model, per_call=10, max_concurrent=20)
    client = stand_in(usual_word, PROMPT, latency_s=options.latency) or AsyncOpenAIClient(options.model)
    cache = options.cache or tempfile.mkdtemp(prefix="harmonize-")
    gate = SchedulerSettings(max_concurrent=options.max_concurrency, cache="on", cache_folder=cache)
    scheduler = Scheduler(client, gate, price=price)
    decisions: Decisions = {}
    seconds: list[float] = []
    for _ in ("first", "again, from the cache"):
        trees = {kind: scheduler.tree(run_id=kind) for kind in dict.fromkeys(row["type"] for row in rows)}
        started = time.perf_counter()
        decisions = await harmonize(trees, rows, settings)
        seconds.append(time.perf_counter() - started)
        print(f"\n{len(rows)} words, {len(decisions)} different ones, {seconds[-1]:.2f} s")
        for kind, tree in trees.items():
            print(report(kind, tree, decisions))
    if options.output:
        with create(options.output, [*rows[0], "harmonized", "by"]) as writer:
            for row in rows:
                word, by = decisions[row["type"], plain(row["word"])]
                writer.write({**row, "harmonized": word, "by": by})
    if not HAS_KEY:
        slow = await one_call_per_word(client, rows, options.model)
        print(f"\nOne call per word, one after the other: {len(rows)} calls, {slow:.2f} s.")
        print(f"Measured at {options.latency} s per call: {slow / seconds[0]:.0f} times faster.")
    await scheduler.aclose()


async def harmonize(trees: dict[str, Tree], rows: list[dict[str, Any]], settings: MapSettings) -> Decisions:
    """Decide all words: label types at once, their merchants at once, their words at once, all on one gate."""
    decisions: Decisions = {}

    async def decide_type(kind: str) -> None:
        words = [(plain(row["word"]), row["merchant"]) for row in rows if row["type"] == kind]
        known = Counter(word for word, _ in words)
        first_used_by = dict(reversed(words))
        async with anyio.create_task_group() as merchants:
            for merchant in dict.fromkeys(first_used_by.values()):
                own = [word for word, user in first_used_by.items() if user == merchant]
                merchants.start_soon(decide_words, kind, own, known)

    async def decide_words(kind: str, words: list[str], known: Counter[str]) -> None:
        items: list[dict[str, Any]] = [
            {"type": kind, "word": word, "near": neighbours(word, known)} for word in words
        ]
        unclear = [item for item in items if 0 < sum(item["near"].values()) < MANY]
        decisions.update({(kind, item["word"]): (usual_word(item), "neighbours") for item in items})
        answers = await map_items(trees[kind], unclear, PROMPT, settings, schema="str")
        for item, answer in zip(unclear, answers, strict=True):
            decisions[kind, item["word"]] = answer.value or "", answer.kind or "model"

    async with anyio.create_task_group() as types:
        for kind in trees:
            types.start_soon(decide_type, kind)
    return decisions


def neighbours(word: str, known: Counter[str]) -> dict[str, int]:
    """Similar words of the type, and how often they come; the word itself where it comes again."""
    close = get_close_matches(word, known, n=len(known), cutoff=0.75)
    parts = set(word.split())
    close += [other for other in known if set(other.split()) <= parts or parts <= set(other.split())]
    return dict(Counter({other: known[other] for other in close}) - Counter([word]))


def usual_word(item: dict[str, Any], _model: str = "") -> str:
    """The most frequent of a word and its neighbours: the rule where there are many, and the stand-in's answer."""
    if not item["near"]:
        return "outlier"
    return str(max({item["word"]: 1, **item["near"]}.items(), key=lambda pair: pair[1])[0])


def plain(word: str) -> str:
    return " ".join(word.lower().replace("-", " ").replace(",", " ").split())


def report(kind: str, tree: Tree, decisions: Decisions) -> str:
    own = {word: decision for (of, word), decision in decisions.items() if of == kind}
    kept, spent = {common for common, _ in own.values()}, tree.ledger.cost_summary()
    cost = "price unknown" if tree.ledger.cost_usd is None else f"${tree.ledger.cost_usd:.5f}"
    return (
        f"  {kind}: {len(own)} words to {len(kept)}, decided by {dict(Counter(by for _, by in own.values()))}; "
        f"{tree.ledger.usage.calls} calls, {spent['stored_replies']} from the cache, {cost}\n"
        f"    outliers: {', '.join(word for word, (common, _) in own.items() if common == 'outlier')}"
    )


async def one_call_per_word(client: Client, rows: list[dict[str, Any]], model: str) -> float:
    """Seconds of what this replaces: every word of every merchant is a call, one after the other."""
    items = [{**row, "near": {}} for row in rows]
    tree = Scheduler(client).tree(run_id="slow")
    started = time.perf_counter()
    await map_items(tree, items, PROMPT, MapSettings(model=model, per_call=1, max_concurrent=1), schema="str")
    return time.perf_counter() - started


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
