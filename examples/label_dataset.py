"""Label the test part of a data set as the rest teaches: rules, examples, invented rows, models that vote.

    python examples/label_dataset.py                                    # 94 error messages,  no key needed
    python examples/label_dataset.py my_settings.toml --folder job      # all it learns and labels is in `job`

All settings are in one TOML or JSON file (data/label_dataset.toml). With OPENAI_API_KEY set it asks OpenAI.
Interrupted, the same command goes on where it was; nothing is asked or paid for twice.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import tempfile
import tomllib
from pathlib import Path
from typing import Any, TypeAlias

import anyio
from stand_in import WHO_ANSWERS, frequent_words, nearest, renamed, stand_in

from rlm.bulk import MappedRows, amap_rows, map_rows

Rows: TypeAlias = list[dict[str, Any]]

DATA = Path(__file__).parent / "data"
RULE = "These texts have the label {{label}}:\n{{texts}}\n\nWrite one rule by which to know such texts."
INVENT = "Write {{count}} new texts that the label {{label}} fits, in the manner of these:\n{{texts}}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Label the test part of a data set as the rest teaches.")
    parser.add_argument("settings", nargs="?", type=Path, default=DATA / "label_dataset.toml")
    parser.add_argument("--folder", type=Path, help="by default, a temporary one")
    options = parser.parse_args()
    settings = read_settings(options.settings)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="label-"))
    folder.mkdir(exist_ok=True)
    print(f"{WHO_ANSWERS}\nEverything is kept in {folder}.\n")

    train, test = split_rows(settings)
    rules, invented = anyio.run(learn, settings, train, folder)  # async: both questions at once
    print(f"{len(train)} rows to learn from, {len(invented)} invented to balance them. Rules:")
    print("", *rules, "", sep="\n  ")
    result = label(settings, [*train, *invented], test, rules, folder)  # from a script: blocking
    right = [row["predicted"] == row["label"] for row in read_rows(folder / "labelled.csv")]
    print(f"{result.report}\n\n{sum(right)} of {len(right)} right ({sum(right) / len(right):.0%}).")


async def learn(settings: dict[str, Any], train: Rows, folder: Path) -> tuple[list[str], Rows]:
    """A rule for each label, and as many invented rows as make the labels equally frequent; all at once."""
    texts: dict[str, list[str]] = {}
    for row in train:
        texts.setdefault(row["label"], []).append(row["text"])
    most = max(map(len, texts.values()))
    rows = [{"label": label, "texts": "\n".join(of), "count": most - len(of)} for label, of in texts.items()]
    answers: dict[str, MappedRows] = {}

    async def ask(name: str, prompt: str, schema: str, rule: Any) -> None:
        answers[name] = await amap_rows(
            rows,
            prompt,
            schema=schema,
            skip_when="count == 0" if name == "invented" else None,
            model=settings["models"][0],
            rows_per_call=1,
            max_concurrency=settings["workers"],
            checkpoint=folder / f"{name}.journal",
            resume=True,
            client=stand_in(rule, prompt),
        )

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, "rules", RULE, "rule: str", frequent_words)
        tasks.start_soon(ask, "invented", INVENT, "new: list[str]", renamed)
    rules = [f"{row['label']}: {row['rule']}" for row in answers["rules"] if row["rule"]]
    invented = [(text, row["label"]) for row in answers["invented"] for text in row["new"] or ()]
    return rules, [{"text": text, "label": label} for text, label in invented]


def label(settings: dict[str, Any], examples: Rows, test: Rows, rules: list[str], folder: Path) -> MappedRows:
    """Label the test rows; several models vote, and the column `agreement` says how far they agree."""
    labels = "|".join(repr(name) for name in dict.fromkeys(row["label"] for row in examples))
    shown = [f"{row['text']} -> {row['label']}" for row in examples]
    lessons = "\n".join(["Label a text.", *rules, "\nExamples:", *shown])
    lessons = lessons.replace("{{", "{ {").replace("}}", "} }")  # in a prompt, these would be fields
    prompt = f"{lessons}\n\nThe text: {{{{text}}}}"
    return map_rows(
        test,
        prompt,
        schema=f"predicted: {labels}",
        output=folder / "labelled.csv",
        resume=True,
        model=settings["models"],
        temperature=settings["temperature"],
        rows_per_call=settings["rows_per_call"],
        max_concurrency=settings["workers"],
        client=stand_in(nearest(examples), prompt),
    )


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a file, with defaults for what it leaves out.

    `workers` is for all models together, and `save_interval` is not needed: each answer is saved when it comes.
    """
    text = path.read_text(encoding="utf-8")
    settings = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    models = settings.pop("models")
    temperatures = {model.get("temperature") for model in models}
    if len(temperatures) > 1:
        raise SystemExit(f"{path}: the models vote on one question, so they share one temperature")
    prefix = "" if os.environ.get("OPENAI_BASE_URL") else "openai/"  # OpenRouter wants it, OpenAI does not
    return {
        "input": str(DATA / "error_messages.csv"),
        "text_column": "text",
        "label_column": "label",
        "test_share": 0.5,
        "rows_per_call": 10,
        "workers": max(model.get("workers", 5) for model in models),
        "temperature": temperatures.pop(),
        "models": [model["model_name"].removeprefix(prefix) for model in models],
        **settings,
    }


def split_rows(settings: dict[str, Any]) -> tuple[Rows, Rows]:
    """Rows to learn from and rows to label, the same at every start."""
    text, label = settings["text_column"], settings["label_column"]
    rows = [{"text": row[text], "label": row[label]} for row in read_rows(DATA / settings["input"])]
    random.Random(0).shuffle(rows)  # noqa: S311 - no secret
    cut = round(len(rows) * settings["test_share"])
    return rows[cut:], rows[:cut]


def read_rows(path: Path) -> Rows:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
