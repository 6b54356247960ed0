from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from display.happenings import whole_run
from terminal import Terminal, needs_tmux

from rlm.display.live import LiveView

pytestmark = needs_tmux
PLAYER = str(Path(__file__).with_name("player.py"))


def play(kind="plain", *, pause_s=0.0, verbosity=0, columns=80, environment=None):
    command = [sys.executable, PLAYER, str(pause_s), str(verbosity), kind]
    return Terminal(command, columns=columns, environment=environment)


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_a_run_reads_well_afterwards_in_every_width(columns):
    with play(columns=columns) as terminal:
        screen = terminal.wait_for("exit code 0")
    lines = [line.rstrip() for line in screen.splitlines()]
    assert lines[0] == "What is it?"
    for expected in ("I look.", "  print('hello')", "│ hello", "└ ok, 40 calls, 2.0 s", "THE ANSWER"):
        assert lines.count(expected) == 1, screen
    assert screen.index("── Turn 1") < screen.index("── Answered") < screen.index("THE ANSWER")
    assert not set("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏") & set(screen), "the frame is gone"


def test_while_it_runs_the_frame_tells_how_far_it_is():
    with play(pause_s=0.2) as terminal:  # long enough to be seen on a busy machine
        screen = terminal.wait_for(" of 40 calls · 1 failed · 1 in flight")
        assert "turn 1 of 20 · running cell 1" in screen
        assert "│ hello" in screen
        terminal.wait_for("exit code 0")


def test_control_codes_of_a_cell_are_shown_and_do_nothing():
    with play("hostile") as terminal:
        screen = terminal.wait_for("exit code 0")
    assert "What is it?" in screen
    assert "\\x1b[2J\\x1b[31mred\\x07" in screen
    assert "\\u202eevil" in screen


@pytest.mark.parametrize("kind", ["wide", "huge", "many"])
def test_wide_huge_and_many_lines_stay_within_bounds(kind):
    with play(kind, columns=40) as terminal:
        screen = terminal.wait_for("exit code 0")
    assert screen.count("\n") < 120
    assert "THE ANSWER" in screen


def test_resizing_leaves_no_remains_of_old_frames():
    with play(pause_s=0.04, columns=120) as terminal:
        terminal.wait_for("in flight")
        for columns in (70, 45, 100):
            terminal.resize(columns, 30)
            time.sleep(0.3)  # three frames in this width
        screen = terminal.wait_for("exit code 0")
    assert not set("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏━╌") & set(screen), screen
    assert screen.count("THE ANSWER") == 1


def test_no_color_means_none():
    with play(environment={"NO_COLOR": "1"}) as terminal:
        terminal.wait_for("exit code 0")
        colored = terminal._tmux("capture-pane", "-p", "-e")
    assert "\x1b[3" not in colored.replace("\x1b[39m", "")


def test_a_terminal_that_is_gone_or_stopped_never_holds_a_run_up():
    reader, writer = os.openpty()
    terminal = os.fdopen(writer, "w", encoding="utf-8")
    display = LiveView(terminal)
    for _ in range(5):  # nobody reads, and the terminal's buffer is soon full
        for event in whole_run(calls=100, output="line\n" * 100):
            started_at = time.monotonic()
            display(event)
            assert time.monotonic() - started_at < 10
    os.close(reader)
    display.close()
    with suppress(OSError):
        terminal.close()
