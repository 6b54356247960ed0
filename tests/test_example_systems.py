"""The examples that replace whole systems do what they say: without a key, and against a server with one."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import time
from functools import partial
from hashlib import md5
from pathlib import Path

import anyio
import pytest
from labelling import answer
from openai_batch_server import BatchServer
from openai_server import OpenAIServer

from rlm import ScriptedClient
from rlm.bulk import JobGroup

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
    assert "asking the endpoint of OPENAI_BASE_URL" in printed
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


def label(tmp_path, settings, *, server=None):
    """Run the example with these settings, and keep what it learns and labels in `tmp_path / "job"`."""
    models = [{"model_name": "gpt-5-nano"}, {"model_name": "gpt-4.1-nano"}, {"model_name": "gpt-4o-mini"}]
    settings = {"models": models, "folder": str(tmp_path / "job"), **settings}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    return run("label_dataset", tmp_path / "settings.json", server=server)


def learned(request):
    """A model that learns a rule and invents as many texts as it is asked for, and labels all the same."""
    if "Write one rule" not in request.prompt:
        return answer(request.prompt, lambda _: "TypeError")
    count = int(re.search(r"and (\d+) new texts", request.prompt)[1])
    return answer(request.prompt, lambda _: {"rule": "{{short}}", "new": [f"new {n}" for n in range(count)]})


def test_labelling_learns_rules_balances_votes_and_is_better_than_the_largest_label(tmp_path):
    printed = label(tmp_path, {})
    rows = rows_of(tmp_path / "job" / "labelled.csv")
    labels = [row["label"] for row in rows]
    right = sum(row["label"] == row["answer"] for row in rows)
    assert right > 1.3 * max(map(labels.count, labels))
    assert f"{right} of {len(rows)} right" in printed
    assert {row["agreement"] for row in rows} > {"1.0"}
    assert "NameError: often has" in printed
    taught, invented = map(int, re.search(r"(\d+) rows teach, (\d+) new ones balance", printed).groups())
    assert (taught + invented) % len(set(labels)) == 0  # each label is as frequent as the others
    assert taught + len(rows) == len(data("error_messages.csv"))


def test_labelling_runs_with_the_settings_beside_its_data():
    assert "47 rows teach" in run("label_dataset")
    assert "agreement of the opinions" in run("label_dataset", EXAMPLES / "data" / "label_dataset.toml")


def test_labelling_takes_texts_with_braces_and_labels_with_quotes_in_them(tmp_path):
    (tmp_path / "in.csv").write_text("said,kind\n" + "{{a}} b,x\n{{c d,'y' or \\z\n" * 6)
    columns = {"text_column": "said", "label_column": "kind"}
    assert "6 of 6 right" in label(tmp_path, {"input": "in.csv", **columns})


def test_labelling_again_asks_nothing_again(tmp_path):
    first = label(tmp_path, {})
    again = label(tmp_path, {})
    assert "0 answers resumed" in first
    assert "141 answers resumed" in again  # 47 rows by 3 models
    assert first.splitlines()[-1] == again.splitlines()[-1]


def test_labelling_goes_on_after_a_kill_and_pays_nothing_twice(tmp_path):
    settings = {"models": [{"model_name": "a", "workers": 2}], "folder": str(tmp_path / "job")}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    command = [sys.executable, "examples/label_dataset.py", str(tmp_path / "settings.json")]
    with OpenAIServer(learned, latency_s=0.1) as server:
        with subprocess.Popen(
            command, cwd=ROOT, env=environment(server), stdout=subprocess.DEVNULL
        ) as process:
            while server.requests < 5:
                assert process.poll() is None
                time.sleep(0.01)
            process.kill()
        server.latency_s = 0
        printed = run("label_dataset", tmp_path / "settings.json", server=server)
    assert "47 answered" in printed
    assert len(server.prompts) - len(set(server.prompts)) <= 2  # at most the calls in flight are asked again


def test_labelling_asks_all_labels_at_once_but_never_more_than_the_workers(tmp_path):
    with OpenAIServer(learned, latency_s=0.2) as server:
        label(tmp_path, {"models": [{"model_name": "a", "workers": 4}]}, server=server)
    assert 2 <= server.most_at_once <= 4


def test_labelling_shows_the_model_rules_examples_and_only_so_many_rows(tmp_path):
    with OpenAIServer(learned) as server:
        label(tmp_path, {"models": [{"model_name": "a"}], "most_train_rows": 10}, server=server)
    lesson = server.prompts[-1].partition("The text:")[0]
    assert "TypeError: {{short}}" in lesson
    assert lesson.count(" -> ") - lesson.count("new ") == 10
    assert lesson.count(" -> ") % lesson.count("{{short}}") == 0  # as many for each label


def test_labelling_takes_the_settings_of_the_old_system(tmp_path):
    old = json.loads((EXAMPLES / "data" / "label_dataset.json").read_text())
    assert {"model_name", "temperature", "save_interval", "workers"} == old["models"][0].keys()
    printed = label(tmp_path, old)
    assert "47 answered" in printed
    assert "agreement" not in printed  # one model has nobody to agree with


def test_models_that_vote_have_temperatures_of_their_own(tmp_path):
    models = [
        {"model_name": "a", "temperature": 0.1},
        {"model_name": "b", "temperature": 0.9},
        {"model_name": "c"},
    ]
    with OpenAIServer(learned) as server:
        label(tmp_path, {"models": models}, server=server)
    asked = {(body["model"], body.get("temperature")) for body in server.bodies}
    assert asked == {("a", None), ("a", 0.1), ("b", 0.9), ("c", None)}  # what is invented has no temperature


# Grade -------------------------------------------------------------------------------------------------------------


def points(item):
    return {"points": 1, "reason": "always"}


def batch_server():
    return BatchServer(lambda body: answer(body["messages"][-1]["content"], points))


def test_grading_counts_splits_grades_and_compares_with_the_teacher(tmp_path):
    printed = run("grade_batch", "--folder", tmp_path, "--part-tokens", 3000)
    parts = sorted(tmp_path.glob("quiz_answers.part*.graded.csv"))
    assert len(parts) > 1
    rows = [row for part in parts for row in rows_of(part)]
    assert [row["answer"] for row in rows] == [row["answer"] for row in data("quiz_answers.csv")]
    assert [row["points"] for row in rows if not row["answer"]] == ["0"]
    assert "1 without a model" in printed
    assert "36 rows, " in printed
    same = int(re.search(r"same points to (\d+) of 36", printed)[1])
    assert same == sum(row["points"] == row["teacher"] for row in rows) >= 30


@pytest.mark.parametrize(("last", "parts"), [("count", 0), ("split", 3)])
def test_grading_ends_where_it_is_told_to(tmp_path, last, parts):
    printed = run("grade_batch", "--folder", tmp_path, "--part-tokens", 3000, "--until", last)
    assert "about $" in printed
    assert len(list(tmp_path.glob("parts/*.csv"))) == parts
    assert not list(tmp_path.glob("*.graded.csv"))


@pytest.mark.parametrize(
    ("flags", "said"), [(("--until", "submit"), "add --batch-api"), (("--batch-api",), "needs a --folder")]
)
def test_grading_refuses_flags_that_would_not_do_what_they_say(flags, said):
    assert said in run("grade_batch", *flags, fails=True)


def test_grading_again_grades_nothing_again_even_in_other_parts(tmp_path):
    run("grade_batch", "--folder", tmp_path, "--part-tokens", 3000)
    again = run("grade_batch", "--folder", tmp_path, "--part-tokens", 3000)
    parts = [int(number) for number in re.findall(r"(\d+) answers resumed", again)]
    assert (len(parts) > 1, sum(parts)) == (True, 35)
    assert "same points to 34 of 36" in run("grade_batch", "--folder", tmp_path)


def test_grading_shows_the_model_graded_answers(tmp_path):
    examples = EXAMPLES / "data" / "quiz_examples.txt"
    with OpenAIServer(lambda request: answer(request.prompt, points)) as server:
        run("grade_batch", "--folder", tmp_path, "--examples", examples, server=server)
    assert all(prompt.startswith(examples.read_text()) for prompt in server.prompts)


def test_grading_asks_nothing_that_the_budget_might_not_cover(tmp_path):
    with OpenAIServer(lambda request: answer(request.prompt, points)) as server:
        options = ["--folder", tmp_path, "--budget", 0.0002]
        assert "stopped: " in run("grade_batch", *options, server=server, fails=True)
    assert server.prompts == []


def test_grading_submits_a_batch_and_another_process_collects_it(tmp_path):
    with batch_server() as server:
        server.hold = True
        submitted = run(
            "grade_batch", "--folder", tmp_path, "--batch-api", "--until", "submit", server=server, fails=True
        )
        assert "submitted and not finished" in submitted
        server.hold = False
        printed = run("grade_batch", "--folder", tmp_path, "--batch-api", server=server)
    assert "36 answered, 0 failed, 1 without a model" in printed
    assert len(server.batches) == 1
    assert {row["points"] for row in rows_of(tmp_path / "quiz_answers.graded.csv")} == {"0", "1"}


def test_grading_through_the_batch_api_needs_a_key(tmp_path):
    assert "there is no API key" in run("grade_batch", "--folder", tmp_path, "--batch-api", fails=True)


# Harmonize ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_harmonizing_finds_the_outliers_and_is_many_times_faster(tmp_path):
    printed = run("harmonize_labels", "-o", tmp_path / "out.csv", "--latency", "0.01")
    rows = rows_of(tmp_path / "out.csv")
    assert [row["word"] for row in rows] == [row["word"] for row in data("shop_labels.csv")]
    outliers = {(row["type"], row["word"]) for row in rows if row["usual"] == "outlier"}
    assert {("colour", "size 42"), ("material", "Italy"), ("garment", "USB cable")} <= outliers
    assert len(outliers) == 15
    assert {row["usual"] for row in rows if row["word"] in {"Cotton", "cotten"}} == {"cotton"}
    assert float(re.search(r"(\d+) times faster", printed)[1]) > 5
    assert "; 0 calls, " not in printed
    assert re.search(r"material: .*calls, \$0\.000\d*[1-9]", printed)  # what each label type costs
    again = run("harmonize_labels", "-o", tmp_path / "out.csv", "--latency", "0")
    assert again.count("; 0 calls, ") == 3
    assert rows_of(tmp_path / "out.csv") == rows


def test_harmonizing_asks_only_about_words_that_neighbours_do_not_decide(tmp_path):
    (tmp_path / "in.csv").write_text("type,merchant,word\n" + "colour,a,red\ncolour,b,Red\ncolour,b,n/a\n")
    with OpenAIServer(lambda request: answer(request.prompt, lambda _: "crimson")) as server:
        run("harmonize_labels", tmp_path / "in.csv", "-o", tmp_path / "out.csv", server=server)
    assert len(server.prompts) == 1
    assert "for red, a colour" in server.prompts[0]
    assert "n/a" not in server.prompts[0]
    assert [row["usual"] for row in rows_of(tmp_path / "out.csv")] == ["crimson", "crimson", "outlier"]


def test_a_word_without_an_answer_is_told(tmp_path):
    (tmp_path / "in.csv").write_text("type,merchant,word\ncolour,a,red\ncolour,b,redd\n")
    with OpenAIServer(lambda request: answer(request.prompt, lambda _: 7)) as server:
        printed = run("harmonize_labels", tmp_path / "in.csv", "-o", tmp_path / "out.csv", server=server)
    assert "outliers or failed: red, redd" in printed
    assert [row["usual"] for row in rows_of(tmp_path / "out.csv")] == ["", ""]


@pytest.mark.slow
def test_harmonizing_has_many_calls_at_once_but_never_more_than_its_gate_allows(tmp_path):
    words = [
        (kind, shop, f"{md5(f'{kind} {shop}'.encode()).hexdigest()}{n}")
        for kind in "abcde"
        for shop in range(10)
        for n in range(3)
    ]
    table = "\n".join(",".join(map(str, word)) for word in [("type", "merchant", "word"), *words])
    (tmp_path / "in.csv").write_text(table + "\n")
    with OpenAIServer(lambda request: answer(request.prompt, lambda _: "a"), latency_s=0.3) as server:
        run("harmonize_labels", tmp_path / "in.csv", "-o", tmp_path / "out.csv", server=server)
    assert 10 <= server.most_at_once <= 20


def test_520_words_of_one_and_a_half_seconds_each_take_three_waves_and_not_13_minutes(virtual_time):
    """Five label types of four merchants with 26 words each, ten to a call and 20 calls at once, in time that passes by itself."""

    async def seconds(groups, **options):
        client = ScriptedClient(lambda call: answer(call.messages[0].content, lambda _: "a"), latency_s=1.5)
        async with JobGroup(client=client, max_concurrent=20) as jobs, anyio.create_task_group() as tasks:
            started = anyio.current_time()
            for group in groups:
                rows = [{"word": f"{group} {n}"} for n in range(520 // len(groups))]
                tasks.start_soon(partial(jobs.amap_rows, rows, "Harmonize {{word}}", **options))
        return anyio.current_time() - started

    nested = anyio.run(partial(seconds, range(20), rows_per_call=10), **virtual_time)
    loop = anyio.run(partial(seconds, [0], rows_per_call=1, max_concurrent=1), **virtual_time)
    assert nested == 4.5
    assert loop == 780
    assert loop / nested > 173


# Depth, and the page about all of them -----------------------------------------------------------------------------


def test_the_sections_of_a_long_document_are_read_by_child_runs():
    printed = run("long_document", "--depth", "2")
    assert "sections read by child runs; those that have something: [1]" in printed
    assert "Temporary breakpoint" in printed
    assert re.search(r"'1': \d\d", printed)  # calls of the child runs


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_each_example_is_on_the_page_about_them(example):
    assert example in (EXAMPLES / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("data/*")), ids=lambda path: path.name)
def test_each_data_set_says_where_it_comes_from(path):
    assert f"`{path.name}`" in (EXAMPLES / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("example", "table", "words"),
    [
        (
            "harmonize_labels",
            "type,shop,word\na,b,c\n",
            "has no column 'merchant': it has 'type', 'shop', 'word'",
        ),
        ("label_dataset", "text,theme\na,b\n", "has no column 'label': it has 'text', 'theme'"),
        ("grade_batch", "question,points\na,b\n", "'question', 'points'"),
        ("harmonize_labels", "type,merchant,word\n", "in.csv has no rows"),
    ],
)
def test_a_table_without_a_column_ends_an_example_in_a_sentence_that_names_those_it_has(
    tmp_path, example, table, words
):
    (tmp_path / "in.csv").write_text(table)
    (tmp_path / "job.toml").write_text('input = "in.csv"\nmodels = [{model_name = "m"}]\n')
    given = "job.toml" if example == "label_dataset" else "in.csv"
    said = run(example, tmp_path / given, fails=True)
    assert words in said
    assert said.count("\n") == 1
