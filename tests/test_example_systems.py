"""The examples that replace whole systems do what they say: without a key, and against a server with one."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from labelling import answer
from openai_batch_server import BatchServer
from openai_server import OpenAIServer

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def environment(server=None):
    own = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    return own if server is None else {**own, "OPENAI_API_KEY": "k", "OPENAI_BASE_URL": server.base_url}


def run(name, *arguments, server=None, fails=False):
    done = subprocess.run(
        [sys.executable, f"examples/{name}.py", *map(str, arguments)],
        cwd=ROOT,
        env=environment(server),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def data(name):
    return rows_of(EXAMPLES / "data" / name)


def contrast(item):
    text = item["text"] if isinstance(item, dict) else item
    return {"contrast": " but " in text, "money": False, "command": False}


def labels_by_contrast(request):
    return answer(request.prompt, contrast)


# Enrich ------------------------------------------------------------------------------------------------------------


def test_enriching_adds_yes_or_no_columns_to_every_row_in_few_calls(tmp_path):
    printed = run("enrich_dataset", "--output", tmp_path / "out.csv")
    rows = rows_of(tmp_path / "out.csv")
    assert [row["text"] for row in rows] == [row["text"] for row in data("proverbs.csv")]
    commands = [row["verse"] for row in rows if row["command"] == "true"]
    assert commands == ["6:6", "22:24", "24:27"]
    assert "34 calls saved" in printed
    assert "\n4 calls, " in printed
    assert "command: false 35 (92.1%), true 3 (7.9%)" in printed
    assert "It is no language model" in printed


def test_enriching_takes_columns_and_labels_of_ones_own_and_asks_openai(tmp_path):
    (tmp_path / "in.csv").write_text("said,topic\nfine but late,post\nfine,post\n")
    with OpenAIServer(
        lambda request: answer(request.prompt, lambda item: {"polite": " but " in item["said"]})
    ) as server:
        output = ["--input", tmp_path / "in.csv", "--output", tmp_path / "out.csv"]
        columns = ["--text-column", "said", "--label-column", "topic", "--labels", "polite"]
        printed = run("enrich_dataset", *output, *columns, server=server)
    assert [row["polite"] for row in rows_of(tmp_path / "out.csv")] == ["true", "false"]
    assert "asking OpenAI" in printed
    assert server.requests == 1


def test_a_row_that_fails_costs_no_other_row_and_may_be_asked_again(tmp_path):
    def refuse_one(item):
        text = item["text"] if isinstance(item, dict) else item
        return {"contrast": "who knows"} if "ant, thou sluggard" in text and not mended else contrast(item)

    mended = False
    failures = tmp_path / "out.csv.failed.jsonl"
    with OpenAIServer(lambda request: answer(request.prompt, refuse_one)) as server:
        printed = run("enrich_dataset", "--output", tmp_path / "out.csv", server=server)
        assert "38 rows: 37 answered, 1 failed" in printed
        assert re.findall("thou sluggard", failures.read_text()) == ["thou sluggard"]

        mended, requests = True, server.requests
        retry = [sys.executable, "-m", "rlm", "map", "--retry", failures, "--quiet"]
        subprocess.run(retry, cwd=ROOT, env=environment(server), timeout=60, check=True)
        assert server.requests == requests + 1
    assert [row["verse"] for row in rows_of(tmp_path / "out.csv") if not row["contrast"]] == []


def test_enriching_goes_on_after_a_kill_and_pays_nothing_twice(tmp_path):
    options = ["--output", str(tmp_path / "out.csv"), "--batch-size", "1", "--max-workers", "3"]
    with OpenAIServer(labels_by_contrast, latency_s=0.05) as server:
        command = [sys.executable, "examples/enrich_dataset.py", *options]
        with subprocess.Popen(
            command, cwd=ROOT, env=environment(server), stdout=subprocess.DEVNULL
        ) as process:
            while server.requests < 12:
                assert process.poll() is None
                time.sleep(0.01)
            process.kill()
        server.latency_s = 0
        printed = run("enrich_dataset", *options, "--resume", server=server)
    assert "38 answered" in printed
    assert not re.search(r"\b0 answers resumed", printed)
    assert server.requests <= 38 + 3  # at most the calls in flight are asked again
    texts = [row["text"] for row in rows_of(tmp_path / "out.csv")]
    assert texts == [row["text"] for row in data("proverbs.csv")]


# Label -------------------------------------------------------------------------------------------------------------


def test_labelling_learns_rules_balances_votes_and_is_better_than_the_largest_label(tmp_path):
    printed = run("label_dataset", "--folder", tmp_path / "job")
    rows = rows_of(tmp_path / "job" / "labelled.csv")
    labels = [row["label"] for row in rows]
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert right > 1.3 * max(map(labels.count, labels))
    assert f"{right} of {len(rows)} right" in printed
    assert {row["agreement"] for row in rows} > {"1.0"}
    assert "NameError: often has" in printed
    learned = int(re.search(r"(\d+) rows to learn from", printed)[1])
    invented = int(re.search(r"(\d+) invented", printed)[1])
    assert (learned + invented) % len(set(labels)) == 0  # each label is as frequent as the others


def test_labelling_takes_texts_with_braces_in_them(tmp_path):
    (tmp_path / "in.csv").write_text("text,label\n" + "{{a}} b,x\n{{c d,y\n" * 6)
    (tmp_path / "s.toml").write_text(f'input = "{tmp_path}/in.csv"\n[[models]]\nmodel_name = "m"\n')
    printed = run("label_dataset", tmp_path / "s.toml", "--folder", tmp_path / "job")
    assert "6 of 6 right" in printed


def test_labelling_again_asks_nothing_again(tmp_path):
    first = run("label_dataset", "--folder", tmp_path)
    again = run("label_dataset", "--folder", tmp_path)
    assert "0 answers resumed" in first
    assert "141 answers resumed" in again  # 47 rows by 3 models
    assert first.splitlines()[-1] == again.splitlines()[-1]


def test_labelling_takes_the_settings_of_the_old_system(tmp_path):
    printed = run("label_dataset", EXAMPLES / "data" / "label_dataset.json", "--folder", tmp_path)
    assert "47 answered" in printed
    assert "agreement" not in printed  # one model has nobody to agree with


def test_models_that_vote_need_one_temperature(tmp_path):
    models = [{"model_name": "a", "temperature": 0.1}, {"model_name": "b", "temperature": 0.9}]
    (tmp_path / "s.json").write_text(json.dumps({"models": models}))
    assert "share one temperature" in run(
        "label_dataset", tmp_path / "s.json", "--folder", tmp_path / "job", fails=True
    )


# Grade -------------------------------------------------------------------------------------------------------------


def points(item):
    return {"points": 1, "reason": "always"}


def test_grading_counts_splits_grades_and_compares_with_the_teacher(tmp_path):
    printed = run("grade_batch", "--folder", tmp_path, "--part-tokens", 3000)
    parts = sorted(tmp_path.glob("quiz_answers.part*.graded.csv"))
    assert len(parts) > 1
    rows = [row for part in parts for row in rows_of(part)]
    assert [row["answer"] for row in rows] == [row["answer"] for row in data("quiz_answers.csv")]
    assert [row["points"] for row in rows if not row["answer"]] == ["0"]
    assert "(1 without a model)" in printed
    assert "36 rows, " in printed
    same = int(re.search(r"same points to (\d+) of 36", printed)[1])
    assert same == sum(row["points"] == row["teacher"] for row in rows) >= 30


def test_grading_submits_a_batch_and_another_process_collects_it(tmp_path):
    options = ["--folder", tmp_path, "--batch-api", "--poll", "0.01"]
    with BatchServer(lambda body: answer(body["messages"][-1]["content"], points)) as server:
        server.hold = True
        submitted = run("grade_batch", *options, "--no-wait", server=server, fails=True)
        assert "submitted and not finished" in submitted
        server.hold = False
        printed = run("grade_batch", *options, server=server)
    assert "36 graded (1 without a model), 0 failed" in printed
    assert len(server.batches) == 1
    assert {row["points"] for row in rows_of(tmp_path / "quiz_answers.graded.csv")} == {"0", "1"}


def test_grading_through_the_batch_api_needs_a_key(tmp_path):
    assert "needs OPENAI_API_KEY" in run("grade_batch", "--folder", tmp_path, "--batch-api", fails=True)


# Harmonize ---------------------------------------------------------------------------------------------------------


def test_harmonizing_finds_the_outliers_and_is_many_times_faster(tmp_path):
    printed = run("harmonize_labels", "-o", tmp_path / "out.csv", "--latency", "0.01")
    rows = rows_of(tmp_path / "out.csv")
    assert [row["word"] for row in rows] == [row["word"] for row in data("shop_labels.csv")]
    outliers = {(row["type"], row["word"]) for row in rows if row["harmonized"] == "outlier"}
    assert {("colour", "size 42"), ("material", "Italy"), ("garment", "USB cable")} <= outliers
    assert len(outliers) == 15
    assert {row["harmonized"] for row in rows if row["word"] in {"Cotton", "cotten"}} == {"cotton"}
    assert float(re.search(r"(\d+) times faster", printed)[1]) > 5
    first, again = printed.split("different ones")[1:]
    assert "; 0 calls, " in again
    assert "; 0 calls, " not in first


def test_harmonizing_asks_only_about_words_that_neighbours_do_not_decide(tmp_path):
    (tmp_path / "in.csv").write_text("type,merchant,word\n" + "colour,a,red\ncolour,b,Red\ncolour,b,n/a\n")
    with OpenAIServer(lambda request: answer(request.prompt, lambda _: "crimson")) as server:
        run("harmonize_labels", tmp_path / "in.csv", "-o", tmp_path / "out.csv", server=server)
    assert server.requests == 1
    assert '"red"' in server.prompts[0]
    assert "n/a" not in server.prompts[0]
    assert [row["harmonized"] for row in rows_of(tmp_path / "out.csv")] == ["crimson", "crimson", "outlier"]


# Depth, and the page about all of them -----------------------------------------------------------------------------


def test_the_sections_of_a_long_document_are_read_by_child_runs():
    printed = run("long_document", "--depth", "2")
    assert "sections read by child runs; 1 of them" in printed
    assert "Temporary breakpoint" in printed
    assert re.search(r"'1': \d\d", printed)  # calls of the child runs


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_each_example_is_on_the_page_about_them(example):
    assert example in (EXAMPLES / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("data/*")), ids=lambda path: path.name)
def test_each_data_set_says_where_it_comes_from(path):
    assert f"`{path.name}`" in (EXAMPLES / "README.md").read_text(encoding="utf-8")
