"""Ctrl-C at any moment: quiet, soon, with what was spent, and code 130."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
from cli.test_commands import RLM, clean_environment
from openai_server import OpenAIServer, reply

LONG_REPLY = "".join(f"line {n}\n" for n in range(2_000))
BATCH = "```repl\nllm_batch([f'part {n}' for n in range(200)], max_concurrent=50)\n```"
QUERY = "```repl\nllm_query('part')\n```"
LOOP = "```repl\nllm_query('part')\nwhile True: pass\n```"


@pytest.fixture
def start(tmp_path):
    (tmp_path / "a.txt").write_text("some text\n" * 50)
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [*RLM, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=tmp_path, env=clean_environment(),
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def until(condition, seconds=20.0):
    """Wait for what another process or thread brings about."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.01)  # there is nothing to wait on but the state of another process


def interrupted(process):
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    assert b"Traceback" not in stderr, stderr
    assert (process.returncode, stdout) == (130, b"")
    return stderr


@pytest.mark.parametrize(
    ("first_reply", "in_flight"),
    [
        (reply(LONG_REPLY, trickle_s=0.05), 1),
        (reply(BATCH), 50),
        (reply(QUERY), 1),
    ],
    ids=["while the root model writes", "in a batch", "in a query"],
)
def test_what_is_in_flight_is_cancelled_at_once_and_the_cost_is_told(start, first_reply, in_flight):
    with OpenAIServer(lambda request: reply("late", latency_s=60), plan=[first_reply]) as server:
        process = start("ask", "a.txt", "-q", "?", "--max-concurrent", "50", "--base-url", server.base_url)
        until(lambda: server.requests >= in_flight and server.at_once >= in_flight)
        process.send_signal(signal.SIGINT)
        until(lambda: server.at_once == 0)
        stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout) == (130, b"")
    assert b"interrupted; spent: " in stderr
    assert b"Traceback" not in stderr


def test_the_calls_that_were_stopped_are_told_apart_from_those_that_were_made(start):
    with OpenAIServer(lambda request: reply("late", latency_s=60), plan=[reply(BATCH)]) as server:
        process = start("ask", "a.txt", "-q", "?", "--max-concurrent", "50", "--base-url", server.base_url)
        until(lambda: server.at_once == 50)
        stderr = interrupted(process)
    assert b"cell 1 stopped (variables rolled back), 50 calls\n" in stderr
    assert b"interrupted; spent: 1 call, " in stderr
    assert b"; stopped: 50 more calls\n" in stderr


def test_a_cell_that_never_ends_is_no_obstacle(start):
    with OpenAIServer(lambda request: LOOP) as server:
        process = start("ask", "a.txt", "-q", "?", "-v", "--base-url", server.base_url)
        until(lambda: server.requests == 2 and not server.at_once)
        assert b"interrupted; spent: " in interrupted(process)


def test_calls_that_were_stopped_and_may_be_billed_are_told_where_a_budget_counts_them(start):
    with OpenAIServer(lambda request: reply("late", latency_s=60)) as server:
        limits = ("--budget", "5", "--price", "made-up=1,10")
        process = start("ask", "a.txt", "-q", "?", "-m", "made-up", *limits, "--base-url", server.base_url)
        until(lambda: server.at_once == 1)
        stderr = interrupted(process)
    assert (
        b"spent: 0 calls, 0 tokens, $0.00; stopped: 1 more call; stopped calls may be billed up to $0."
        in stderr
    )


INTERRUPTED_IMPORT = """
import os, signal, sys
sys.argv, module = ["rlm", "demo"], sys.argv[1]

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from rlm.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    "module",
    ["rlm.cli", "click", "rlm.cli.demo", "anyio", "rlm.rlm_repl", "rlm.offline.client", "pydoc_data"],
)
def test_ctrl_c_during_an_import_leaves_no_traceback(tmp_path, module):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT, module],
        capture_output=True, cwd=tmp_path, env=clean_environment(), timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (130, b"")
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


def test_an_interrupt_that_is_ignored_stays_ignored(tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    with OpenAIServer(lambda request: reply("FINAL(done)", latency_s=0.3)) as server:
        line = (
            f"trap '' INT; {sys.executable} -m rlm ask a.txt -q ? --quiet --base-url {server.base_url} & "
            "for n in 1 2 3 4 5 6 7 8; do kill -INT $!; sleep 0.1; done; wait $!"
        )
        done = subprocess.run(
            ["bash", "-c", line], capture_output=True, cwd=tmp_path, env=clean_environment(), timeout=60,
            check=False,
        )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"done\n", b"")
