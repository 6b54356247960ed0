"""`rlm chat` on a real terminal."""

from __future__ import annotations

import sys

import pytest
from openai_server import OpenAIServer, reply
from terminal import Terminal, needs_tmux

pytestmark = needs_tmux


@pytest.fixture
def chat(tmp_path):
    (tmp_path / "a.txt").write_text("A tenant who leaves early must pay a fee of three rents.\n" * 50)
    command = [sys.executable, "-m", "rlm", "chat", "a.txt", "--client", "offline"]
    with Terminal(
        command, folder=tmp_path, environment={"XDG_STATE_HOME": str(tmp_path / "state")}
    ) as terminal:
        terminal.wait_for("rlm>")
        yield terminal


def test_questions_code_and_variables_share_one_namespace(chat):
    chat.type("What fee must a tenant pay?", "Enter")
    chat.wait_for("three rents.”")
    chat.type("!marked = len(context) + 1", "Enter", "?marked", "Enter")
    chat.wait_for("marked: int")
    chat.wait_for("2851")
    chat.type("/quit", "Enter")
    chat.wait_for("exit code 0")


def test_unfinished_code_goes_on_and_a_paste_arrives_whole(chat):
    chat.type("!for i in range(3):", "Enter", "print('row', i * 111)", "Enter", "Enter")
    chat.wait_for("row 222")
    chat.paste("!def double(x):\n    y = 2 * x\n\n    return y\n\nprint('pasted', double(4321))\n")
    chat.type("Enter")
    chat.wait_for("pasted 8642")
    chat.type("!'first ' + \\", "M-Enter", "'second line'", "Enter")
    chat.wait_for("first second line")


def test_ctrl_c_stops_what_runs_and_keeps_everything(chat):
    chat.type("!kept = 4321", "Enter", "!import time; time.sleep(60)", "Enter")
    chat.wait_for("running your code")
    chat.type("C-c")
    chat.wait_for("variables and conversation are kept")
    chat.type("!kept + 1", "Enter")
    chat.wait_for("4322")
    chat.type("half a question", "C-c")
    chat.wait_for("Ctrl-D or /quit leaves")
    chat.type("C-d")
    chat.wait_for("exit code 0")


def test_ctrl_c_stops_a_question_and_the_conversation_goes_on(tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    with OpenAIServer(plan=[reply("late", latency_s=60), reply("FINAL(in time)")]) as server:
        command = [sys.executable, "-m", "rlm", "chat", "a.txt", "--base-url", server.base_url]
        with Terminal(command, folder=tmp_path, environment={"XDG_STATE_HOME": str(tmp_path)}) as terminal:
            terminal.wait_for("rlm>")
            terminal.type("First question?", "Enter")
            terminal.wait_for("asking the root model")
            terminal.type("C-c")
            terminal.wait_for("variables and conversation are kept", seconds=3)
            terminal.type("Second question?", "Enter")
            screen = terminal.wait_for("in time")
        assert "── Stopped" in screen
        told = [message["content"] for message in server.bodies[-1]["messages"]]
    assert "First question?" in told[1]
    assert "Second question?" in told[-1]
