"""`rlm ask` on a real terminal: rules only where a person sees it, Markdown, and no control codes."""

from __future__ import annotations

import sys

import pytest
from openai_server import OpenAIServer
from terminal import Terminal, needs_tmux

pytestmark = needs_tmux

ANSWER = """**Two** clauses let the tenant leave early, and both of them need a notice in writing to the landlord.
1. Clause 4
2. Clause 9, in <b>bold</b>
last line"""


@pytest.fixture
def ask(tmp_path):
    (tmp_path / "a.txt").write_text("A tenant who leaves early must pay a fee of three rents.\n" * 50)

    def ask(*arguments, columns=60):
        command = [
            sys.executable,
            "-m",
            "rlm",
            "ask",
            "a.txt",
            "-q",
            "What fee must a tenant pay?",
            *arguments,
        ]
        keyless = {"OPENAI_API_KEY": "", "OPENAI_BASE_URL": "", "COLUMNS": str(columns)}
        with Terminal(command, folder=tmp_path, columns=columns, environment=keyless) as terminal:
            screen = terminal.wait_for("exit code 0")
        return screen, [line.rstrip() for line in screen.splitlines()]

    return ask


def test_a_person_without_a_key_is_answered_by_rules_and_warned(ask):
    screen, lines = ask()
    assert lines[0] == "rlm: NO LANGUAGE MODEL: no key and no endpoint. Rules"
    assert "three rents" in screen


def test_an_answer_is_markdown_wrapped_at_words_that_loses_no_text(ask):
    with OpenAIServer(lambda request: f'FINAL("""{ANSWER}""")') as server:
        screen, lines = ask("--quiet", "--base-url", server.base_url)
    assert lines[0] == "Two clauses let the tenant leave early, and both of them"
    assert lines[1] == "need a notice in writing to the landlord."
    assert [" ".join(line.split()) for line in lines if "Clause" in line] == [
        "1 Clause 4",
        "2 Clause 9, in <b>bold</b>",
    ]
    assert "last line" in screen
