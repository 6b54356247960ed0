"""Label the test part of a data set as the rest teaches: rules, examples, invented rows, models that vote.

    python examples/label_dataset.py                     # 94 error messages, no key needed
    python examples/label_dataset.py my_settings.toml    # or .json, also that of the system this replaces

All settings are in one file (data/label_dataset.toml). With OPENAI_API_KEY set it asks OpenAI. Interrupted, the same
command goes on where it was, in the `folder` of the settings; nothing is asked or paid for twice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import anyio
from stand_in import nearest, rows_of, stand_in, words_and_new_names

from rlm.bulk import JobGroup, Row, escape

DATA = Path(__file__).parent / "data"
DEFAULTS: dict[str, Any] = {
    "input": DATA / "error_messages.csv", "text_column": "text", "label_column": "label",
    "test_share": 0.5, "most_train_rows": 200, "escalate_to": None,
}  # fmt: skip
LEARN = (
    "Write one rule by which to know texts with the label {{label}}, and {{count}} new texts like {{texts}}"
)
STAND_IN: dict[str, Any] = {LEARN: words_and_new_names}


def main() -> None:
    parser = argparse.ArgumentParser(description="Label the test part of a data set as the rest teaches.")
    parser.add_argument("settings", nargs="?", type=Path, default=DATA / "label_dataset.toml")
    path: Path = parser.parse_args().settings
    read = tomllib.loads if path.suffix == ".toml" else json.loads
    settings = DEFAULTS | read(path.read_text(encoding="utf-8"))
    folder = Path(settings.get("folder") or tempfile.mkdtemp(prefix="label-"))
    folder.mkdir(exist_ok=True)
    prefix = "" if os.environ.get("OPENAI_BASE_URL") else "openai/"  # OpenRouter wants it, OpenAI does not
    models = {one["model_name"].removeprefix(prefix): one.get("temperature") for one in settings["models"]}
    workers = max(model.get("workers", 5) for model in settings["models"])

    text, label = settings["text_column"], settings["label_column"]
    known = rows_of(path.parent / settings["input"], text, label)
    rows = [{"text": row[text], "label": row[label]} for row in known]
    random.Random(0).shuffle(rows)  # noqa: S311 - the same at every start, and no secret
    cut = round(len(rows) * settings["test_share"])
    test, train = rows[:cut], rows[cut : cut + settings["most_train_rows"]]

    with JobGroup(client=stand_in(STAND_IN), max_concurrent=workers) as jobs:
        rules, new = anyio.run(learn, jobs, train, next(iter(models)), folder / "learned.journal")  # async
        print(f"\n{len(train)} rows teach, {len(new)} new ones balance them. Rules:", *rules, sep="\n")
        examples = [f"{row['text']} -> {row['label']}" for row in train + new]
        prompt = escape("\n".join(["Label a text.", *rules, "", *examples])) + "\n\nThe text: {{text}}"
        STAND_IN[prompt] = nearest(train + new)
        schema = {"type": "string", "enum": sorted({row["label"] for row in train})}
        output = folder / "labelled.csv"
        labelled = jobs.map_rows(  # blocking
            test, prompt, schema=schema, model=list(models), temperature=models, output=output, resume=True,
            escalate_to=settings["escalate_to"],
        )  # fmt: skip
    right = [row["answer"] == row["label"] for row in labelled]
    print(f"\n{labelled.report}\n\n{sum(right)} of {len(right)} right ({sum(right) / len(right):.0%}).")


async def learn(jobs: JobGroup, train: list[Row], model: str, journal: Path) -> tuple[list[str], list[Row]]:
    """A rule for each label, and new rows that make each as frequent as the largest; all labels at once."""
    names = sorted({row["label"] for row in train})
    texts = {name: [row["text"] for row in train if row["label"] == name] for name in names}
    most = max(map(len, texts.values()))
    rows = [{"label": name, "texts": of, "count": most - len(of)} for name, of in texts.items()]
    schema = "rule: str, new: list[str]"
    learned = await jobs.amap_rows(
        rows, LEARN, schema=schema, model=model, rows_per_call=1, checkpoint=journal, resume=True
    )
    answered = [row for row in learned if row["rule"]]
    new = [{"text": text, "label": row["label"]} for row in answered for text in row["new"]]
    return [f"{row['label']}: {row['rule']}" for row in answered], new


if __name__ == "__main__":
    main()
