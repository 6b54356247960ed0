"""`--settings FILE` of `rlm map`, `rlm count` and `rlm split`, as processes."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import pytest
from labelling import answer, parity
from openai_server import OpenAIServer

JOB = """
input = "in.csv"
output = "out.csv"
prompt = "Label {{text}}"
schema = "label: 'odd'|'even'"
rows-per-call = 10
"""


@pytest.fixture
def server():
    with OpenAIServer(lambda request: answer(request.prompt, parity)) as server:
        yield server


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "jobs").mkdir()
    write_table(tmp_path / "jobs" / "in.csv")
    return tmp_path


def write_table(path, rows=100):
    path.write_text("\n".join(["n,text", *(f"{n},number {n}" for n in range(rows))]) + "\n")


def rlm(*arguments, folder):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    return subprocess.run(
        [sys.executable, "-m", "rlm", *arguments],
        capture_output=True,
        cwd=folder,
        env=kept,
        timeout=60,
        check=False,
        text=True,
    )


def settings(folder, text, name="job.toml"):
    (folder / "jobs" / name).write_text(text, encoding="utf-8")
    return ("--settings", f"jobs/{name}")


def test_a_job_can_be_in_a_file_and_paths_are_relative_to_its_folder(folder, server):
    given = settings(folder, JOB + f'base_url = "{server.base_url}"\nprice = "1,1"\nlimit = 100\n')
    done = rlm("map", *given, folder=folder)
    assert done.returncode == 0, done.stderr
    assert "100 rows: 100 answered" in done.stderr
    assert server.requests == 10
    assert (folder / "jobs" / "out.csv").exists()


def test_settings_can_be_json_with_tables_and_lists_for_repeated_options(folder, server):
    (folder / "jobs" / "prompt.txt").write_text("Label {{text}}")
    job = {
        "input": str(folder / "jobs" / "in.csv"),
        "output": str(folder / "whole.csv"),
        "prompt": "@prompt.txt",
        "schema": {"label": "'odd'|'even'"},
        "model": ["a", "b"],
        "temperature": {"b": 0.9},
        "rows_per_call": "auto",
        "max-concurrent": 4,
        "skip-when": "n == '3'",
        "budget": None,
        "quiet": False,
        "base-url": server.base_url,
    }
    done = rlm("map", *settings(folder, json.dumps(job), "job.json"), folder=folder)
    assert done.returncode == 0, done.stderr
    assert {(body["model"], body.get("temperature")) for body in server.bodies} == {("a", None), ("b", 0.9)}
    with (folder / "whole.csv").open(newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)][:5] == ["even", "odd", "even", "", "even"]


def test_the_command_line_wins_over_the_file(folder, server):
    write_table(folder / "here.csv", 7)
    given = settings(folder, JOB + f'model = ["a", "b"]\nbase-url = "{server.base_url}"\nresume = true\n')
    said = ("here.csv", "-o", "here-out.csv", "-m", "c", "--rows-per-call", "3", "--overwrite")
    done = rlm("map", *said, *given, folder=folder)
    assert done.returncode == 0, done.stderr
    assert [body["model"] for body in server.bodies] == ["c"] * 3
    assert (folder / "here-out.csv").exists()
    assert not (folder / "jobs" / "out.csv").exists()


def test_failed_rows_are_retried_with_the_endpoint_of_the_file(folder):
    bad = ["number 13"]

    def reply(request):
        return answer(
            request.prompt, lambda item: {"label": "?"} if bad and bad[0] in str(item) else parity(item)
        )

    with OpenAIServer(reply) as server:
        given = settings(folder, JOB + f'base-url = "{server.base_url}"\n')
        assert "1 failed" in rlm("map", *given, folder=folder).stderr
        bad.clear()
        done = rlm("map", *given, "--retry", "jobs/out.csv.failed.jsonl", folder=folder)
    assert done.returncode == 0, done.stderr
    assert "0 failed" in done.stderr


def test_count_and_split_read_the_file_of_a_job(folder):
    given = settings(folder, JOB + 'model = ["own", "gpt-5"]\nprice = {own = "1,2"}\nbudget = 1\n')
    counted = rlm("count", *given, "--json", folder=folder)
    assert counted.returncode == 0, counted.stderr
    assert json.loads(counted.stdout)["calls"] == 10
    assert json.loads(counted.stdout)["cost_usd"]["own"] > 0
    assert rlm("split", *given, "--rows", "60", folder=folder).stdout.split() == [
        "jobs/in.part001.csv",
        "jobs/in.part002.csv",
    ]
    own = settings(folder, JOB + 'rows = 100\nfolder = "parts"\n')
    assert rlm("split", *own, folder=folder).stdout.split() == ["jobs/parts/in.part001.csv"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('promt = "x"', "there is no option 'promt'. (Did you mean one of: "),
        ("zzzz = 1", "there is no option 'zzzz'. Options: base-url, batch-api, budget,"),
        ("models = 1", "Did you mean 'model'?"),
        ("max_tokens = 1", "'max-output-tokens'"),
        ("rows = 1", "there is no option 'rows'"),
        ("limit = 2.5", "limit = 2.5: '2.5' is not a valid whole number."),
        ('limit = "three"', 'limit = "three": '),
        ("limit = 0", "limit = 0: 0 is not in the range x>=1"),
        ("budget = true", "budget = true: 'true' is not a valid number."),
        ('resume = "perhaps"', "resume = \"perhaps\": 'perhaps' is not a valid boolean"),
        ("rows-per-call = 0", "rows-per-call = 0: '0' is neither a number above 0 nor auto"),
        ("rows-per-call = 1\nrows_per_call = 1", "rows_per_call is there twice"),
        ("temperature = {a = 3}", "'a=3' is not between 0 and 2"),
        ('price = "1"', "is not of the form INPUT,OUTPUT or NAME=INPUT,OUTPUT"),
        ('column = ["a"]', 'column = ["a"]: must be one value, not a list or a table'),
        ('prompt = {a = "b"}', "must be one value, not a list or a table"),
        ('prompt = "x', "cannot be read: "),
    ],
)
def test_a_wrong_line_is_named_with_file_and_key(folder, text, words):
    done = rlm("map", *settings(folder, text), folder=folder)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("rlm: jobs/job.toml")
    assert words in done.stderr


@pytest.mark.parametrize("key", ["api_key", "api-key", "OPENAI_API_KEY", "apikey", "token", "client_secret"])
def test_a_key_is_refused_and_never_shown(folder, key):
    done = rlm("map", *settings(folder, f'{key} = "sk-very-private"'), folder=folder)
    assert done.returncode == 2
    assert f"{key} is not read from a file: set keys in the environment" in done.stderr
    assert "private" not in done.stderr


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("job.yaml", "limit: 3", "a file named .toml or .json"),
        ("job.json", "[1]", "settings are an object"),
        ("job.json", "{", "cannot be read: "),
    ],
)
def test_a_file_that_is_no_settings_file_is_refused(folder, name, text, words):
    done = rlm("map", *settings(folder, text, name), folder=folder)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"jobs/{name}" in done.stderr
    assert words in done.stderr


def test_a_missing_settings_file_is_named(folder):
    done = rlm("count", "--settings", "none.toml", folder=folder)
    assert done.returncode == 2
    assert "none.toml cannot be read: No such file" in done.stderr
