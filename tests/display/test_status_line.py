from __future__ import annotations

import sys

from rlm.cli import inputs
from rlm.display import status_line
from rlm.display.status_line import StatusLine, reading_in_words


def test_reading_says_how_far_it_is_also_without_a_known_size():
    assert reading_in_words("book.txt", 105_000_000, 476_000_000, 80) == "reading book.txt: 105 of 476 MB"
    assert reading_in_words("standard input", 105_000_000, 0, 80) == "reading standard input: 105 MB"
    assert len(reading_in_words("x" * 200, 1, 10**9, 60)) <= 60


def test_a_large_file_shows_that_it_is_read_and_a_small_one_does_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(status_line, "NEWS_S", 0.0)
    file = tmp_path / "book.txt"
    file.write_text("A line of the book.\n" * 100_000)
    inputs.read_context((str(file),), None)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(inputs, "LARGE_BYTES", 1_000_000)
    inputs.read_context((str(file),), None, quiet=True)
    assert capsys.readouterr().err == ""
    inputs.read_context((str(file),), None)
    assert "book.txt: 2 of 2 MB" in capsys.readouterr().err


def test_on_a_terminal_the_line_is_overwritten_and_then_removed(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    line = StatusLine()
    for number in (1, 2):
        line.show(lambda columns, number=number: f"{number} of {columns}"[:1])
    line.clear()
    line.end()
    assert capsys.readouterr().err == "\r\x1b[K1\r\x1b[K2\r\x1b[K"
