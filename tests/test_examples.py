"""The examples run without a key."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout


def test_the_long_document_example_reads_sections_in_one_batch_and_answers():
    printed = run("examples/long_document.py")
    assert "sections read in one batch" in printed
    assert "[ok, " in printed


def test_the_long_document_example_takes_a_file_and_a_question(tmp_path):
    path = tmp_path / "contract.txt"
    path.write_text("Rent is due monthly. The tenant may terminate with three months' notice. " * 3)
    assert "three months' notice" in run(
        "examples/long_document.py", str(path), "When may the tenant terminate?"
    )


@pytest.mark.slow
def test_the_batch_example_shows_that_a_batch_is_faster_and_the_same():
    printed = run("examples/batch.py")
    factor = float(re.search(r"([\d.]+) times faster", printed)[1])
    assert factor > 3
    assert "same answers: True" in printed


def test_the_interactive_example_answers_and_runs_the_users_code():
    printed = run("examples/interactive.py")
    assert "Your own cell says:" in printed
    assert "mentions" in printed
    assert re.search(r"^Spent: \d+ calls, 0 tokens, \$0.0000\.$", printed, re.MULTILINE)
