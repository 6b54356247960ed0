"""`--journal`: what is in the file, and that the lines of the help do what they say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
from cli.test_commands import rlm
from click.testing import CliRunner
from openai_server import OpenAIServer, failed

from rlm.cli import command
from rlm.journal.log import Journal
from rlm.journal.runs import read_events

BATCH = "```repl\nprint(llm_batch(['part 1', 'part 2']))\n```"


def answers(request):
    if "part 2" in request.prompt and len(request.body["messages"]) == 1:
        return failed(400, "part 2 is too hard")
    if "part" in request.prompt and len(request.body["messages"]) == 1:
        return "ok"
    return "FINAL(three rents)" if len(request.body["messages"]) > 2 else BATCH


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.txt").write_text("A tenant who leaves early must pay a fee of three rents.\n")
    return tmp_path


@pytest.fixture
def run(folder):
    with OpenAIServer(answers) as server:
        yield lambda *arguments, **more: rlm(
            *arguments, "--base-url", server.base_url, "-m", "made-up", folder=folder, **more
        )


def jq_lines(name):
    """The examples of the help that begin with `jq`, as a shell takes them."""
    text = CliRunner().invoke(command, [name, "--help"]).output
    return re.findall(r"^ +(jq [^\0]+? runs\.journal)$", text, re.MULTILINE)


def shell(line, folder):
    return subprocess.run(["sh", "-c", line], cwd=folder, capture_output=True, text=True, check=True).stdout


def test_what_was_asked_is_in_the_journal_run_after_run(run, folder):
    for _ in range(2):
        assert run("ask", "a.txt", "-q", "What fee?", "--journal", "runs.journal").stdout == b"three rents\n"
    names = [type(event).__name__ for event in read_events(folder / "runs.journal")]
    assert names.count("RunStarted") == names.count("AnswerGiven") == 2
    assert names.count("CallFailed") == 2


def test_a_chat_is_in_the_journal(run, folder):
    done = run("chat", "a.txt", "--journal", "runs.journal", stdin=b"What fee?\n!print(7 * 6)\n")
    assert b"three rents\n" in done.stdout
    cells = [event.code for event in read_events(folder / "runs.journal") if hasattr(event, "code")]
    assert cells[-1] == "print(7 * 6)"


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
def test_the_lines_of_the_help_sum_the_cost_and_list_what_failed(run, folder):
    price = ("--price", "made-up=1000000,0")
    summary = json.loads(
        run("ask", "a.txt", "-q", "?", "--journal", "runs.journal", "--json", *price).stdout
    )["cost_summary"]
    failures, costs = jq_lines("ask")
    assert json.loads(shell(costs, folder)) == {
        "depth": 0,
        "calls": summary["calls"] + 1,
        "usd": summary["cost_usd"],
    }
    run("ask", "a.txt", "-q", "?", "--journal", "runs.journal")
    assert json.loads(shell(costs, folder))["usd"] == "unknown"
    failure = json.loads(shell(f"{failures} | head -n 5", folder))
    assert failure["kind"] == "BadRequest"
    assert "part 2 is too hard" in failure["error"]
    (answers_of_chat,) = jq_lines("chat")
    assert shell(answers_of_chat, folder) == "three rents\n" * 2


def test_a_journal_that_cannot_be_used_is_said_before_anything_is_asked(run, folder):
    with Journal.open(folder / "bulk.journal", kind="bulk") as held:
        for name, said in (
            ("bulk.journal", b"is writing to the journal"),
            ("a.txt", b"is no journal"),
            ("none/runs.journal", b"No such file"),
            (".", b"is a directory"),
        ):
            done = run("ask", "a.txt", "-q", "?", "--journal", name)
            assert (done.returncode != 0, done.stdout) == (True, b"")
            assert said in done.stderr
            assert b"Traceback" not in done.stderr
        assert held.size > 0
