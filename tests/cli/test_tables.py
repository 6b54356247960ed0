"""`rlm map`, `rlm count` and `rlm split` as processes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from labelling import answer, parity
from openai_server import OpenAIServer

from rlm.bulk import JobProgress
from rlm.display.status_line import job_in_words

RLM = [sys.executable, "-m", "rlm"]
JOB = ("map", "in.csv", "-p", "Label {{text}}", "--schema", "label: 'odd'|'even'", "-o", "out.csv")


@pytest.fixture
def server():
    with OpenAIServer(lambda request: answer(request.prompt, parity)) as server:
        yield server


@pytest.fixture
def folder(tmp_path):
    lines = ["n,text", *(f"{n},number {n}" for n in range(100))]
    (tmp_path / "in.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def environment():
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    return {**kept, "PYTHONUNBUFFERED": "1"}


def rlm(*arguments, folder):
    return subprocess.run(
        [*RLM, *arguments],
        capture_output=True,
        cwd=folder,
        env=environment(),
        timeout=60,
        check=False,
        text=True,
    )


def labels(folder):
    with (folder / "out.csv").open(newline="", encoding="utf-8") as file:
        return [row["label"] for row in csv.DictReader(file)]


def test_a_table_is_mapped_and_the_report_is_on_stderr(folder, server):
    done = rlm(*JOB, "--base-url", server.base_url, "--price", "1,1", folder=folder)
    assert (done.returncode, done.stdout) == (0, "")
    assert "100 rows: 100 answered, 0 failed" in done.stderr
    assert "label: even 50 (50.0%), odd 50 (50.0%)" in done.stderr
    assert labels(folder) == ["odd" if n % 2 else "even" for n in range(100)]


def test_the_report_can_be_json(folder, server):
    done = rlm(*JOB, "--base-url", server.base_url, "--json", folder=folder)
    report = json.loads(done.stdout)
    assert (report["answered"], report["output"]) == (100, "out.csv")


def test_a_budget_ends_the_job_with_its_code_and_resume_goes_on(folder, server):
    options = ("--base-url", server.base_url, "--price", "1000,1000", "--rows-per-call", "10")
    capped = rlm(*JOB, *options, "--max-output-tokens", "200", "--budget", "1.5", folder=folder)
    assert capped.returncode == 3
    assert "resume to go on (--resume)" in capped.stderr
    assert "Traceback" not in capped.stderr
    asked = server.requests
    assert 0 < asked < 10
    done = rlm(*JOB, *options, "--resume", folder=folder)
    assert (done.returncode, server.requests) == (0, 10)
    assert len(labels(folder)) == 100


def test_after_ctrl_c_the_job_can_be_resumed(folder):
    with OpenAIServer(lambda request: answer(request.prompt, parity), latency_s=0.2) as server:
        options = ("--base-url", server.base_url, "--rows-per-call", "5", "--max-concurrent", "2")
        journal = folder / "out.csv.journal"
        process = subprocess.Popen(
            [*RLM, *JOB, *options], cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True
        )
        with process:
            while not journal.exists() or journal.stat().st_size < 1_000:
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            said = process.stderr.read()
        assert process.returncode == 130
        assert "go on with --resume" in said
        server.latency_s = 0
        assert rlm(*JOB, *options, "--resume", folder=folder).returncode == 0
        assert server.requests <= 20 + 2
    assert len(labels(folder)) == 100


def test_failed_rows_are_retried(folder):
    refuse = ["number 13"]

    def reply(request):
        def value(item):
            return {"label": "?"} if any(text in str(item) for text in refuse) else parity(item)

        return answer(request.prompt, value)

    with OpenAIServer(reply) as server:
        done = rlm(*JOB, "--base-url", server.base_url, folder=folder)
        assert "1 failed" in done.stderr
        assert labels(folder)[13] == ""
        refuse.clear()
        done = rlm("map", "--retry", "out.csv.failed.jsonl", "--base-url", server.base_url, folder=folder)
    assert done.returncode == 0
    assert labels(folder)[13] == "odd"


def test_an_endpoint_that_is_down_is_found_out_at_once_and_leaves_nothing_behind(folder):
    started = time.monotonic()
    done = rlm(*JOB, "--base-url", "http://localhost:1/v1", folder=folder)
    assert done.returncode == 5
    assert "is a server running there?" in done.stderr
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - started < 15
    assert [path.name for path in folder.iterdir()] == ["in.csv"]


def test_a_model_may_have_a_temperature_of_its_own(folder, server):
    models = ("-m", "a", "-m", "b", "--temperature", "0.2", "--temperature", "b=0.9")
    done = rlm(*JOB, *models, "--base-url", server.base_url, folder=folder)
    assert done.returncode == 0
    assert {(body["model"], body["temperature"]) for body in server.bodies} == {("a", 0.2), ("b", 0.9)}


def progress(**changes):
    numbers = {"rows": 1_200, "total": 10_000, "settled": 1_200, "failed": 3, "seconds": 4.0}
    return JobProgress(
        **{
            **numbers,
            "tokens": 48_000,
            "max_concurrent": 64,
            "cost_usd": 0.0123,
            "budget_usd": 5.0,
            **changes,
        }
    )


def test_progress_tells_the_speed_the_money_the_failures_and_what_is_left():
    assert job_in_words(progress(), 120) == (
        "1,200 of 10,000 rows · 300 rows/s · 12,000 tokens/s · $0.0123 of $5.00 · 3 failed · 64 at once · 29 s left"
    )
    assert (
        job_in_words(progress(), 79)
        == "1,200 of 10,000 rows · 300 rows/s · $0.0123 of $5.00 · 3 failed · 29 s left"
    )
    assert (
        job_in_words(progress(cost_usd=None, failed=0, rows=10_000), 40)
        == "10,000 of 10,000 rows · 300 rows/s"
    )
    assert len(job_in_words(progress(), 20)) == 20


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("map",), "no INPUT"),
        ((*JOB, "--temperature", "hot"), "neither a number nor"),
        ((*JOB, "--temperature", "a=3"), "not between 0 and 2"),
        ((*JOB, "--temperature", "a=1", "--base-url", "http://localhost:1/v1"), "none of the models"),
        ((*JOB, "--max-concurrent", "0"), "neither a number above 0 nor auto"),
        ((*JOB, "--budget", "0"), "not in the range"),
        (("map", "in.csv", "-o", "out.csv"), "no prompt"),
        (("map", "in.csv", "-p", "x"), "no output"),
        (JOB, "no key and no endpoint"),
        ((*JOB, "--base-url", "http://localhost:1/v1", "--resume", "--overwrite"), "give one of them"),
        (("map", "none.csv", *JOB[2:], "--base-url", "http://localhost:1/v1"), "No such file"),
        (
            (*JOB[:3], "Label {{txt}}", *JOB[4:], "--base-url", "http://localhost:1/v1"),
            "no field of in.csv: the fields are 'n', 'text'",
        ),
        ((*JOB[:5], "label: strr", *JOB[6:], "--base-url", "http://localhost:1/v1"), "the types are"),
        (
            ("map", "--retry", "out.csv", "--base-url", "http://localhost:1/v1"),
            "not named like the failed rows",
        ),
        (("count", "in.csv", "-p", "{{x}}"), "no field 'x'"),
        (("count", "in.csv", "--price", "a"), "is not of the form INPUT,OUTPUT"),
        (("split", "in.csv"), "--rows N or --max-tokens N"),
        (("split", "in.csv", "--max-tokens", "3"), "alone has"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(folder, arguments, words):
    done = rlm(*arguments, folder=folder)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == ["in.csv"]


def test_a_table_is_counted_and_split(folder):
    counted = rlm("count", "in.csv", "-p", "Label {{text}}", "--json", folder=folder)
    assert json.loads(counted.stdout)["rows"] == 100
    done = rlm("split", "in.csv", "--rows", "30", folder=folder)
    assert done.stdout.split() == [f"in.part00{number}.csv" for number in (1, 2, 3, 4)]
    again = rlm("split", "in.csv", "--rows", "50", folder=folder)
    assert (again.returncode, again.stdout) == (2, "")
    assert "in.part001.csv exists" in again.stderr
    done = rlm("split", "in.csv", "--rows", "50", "--overwrite", folder=folder)
    assert sorted(path.name for path in folder.iterdir()) == ["in.csv", *done.stdout.split()]


def test_a_model_may_have_a_price_of_its_own(folder):
    models = ("-m", "a", "-m", "b", "-m", "c", "--price", "1,2", "--price", "b=10,20")
    counted = rlm("count", "in.csv", *models, "--json", folder=folder)
    dollars = json.loads(counted.stdout)["cost_usd"]
    assert dollars["b"] == pytest.approx(10 * dollars["a"])
    assert dollars["c"] == dollars["a"] > 0
