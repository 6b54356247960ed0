from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm.display.text import (
    first_lines,
    last_lines,
    money,
    one_line,
    seconds,
    tail_of,
    visible,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("a\x07b\x08", "a\\x07b\\x08"),
        ("\x9b31m", "\\x9b31m"),
        ("abc\u202egpj", "abc\\u202egpj"),
        ("\u2066x\u2069", "\\u2066x\\u2069"),
        ("a\u2028b", "a\\u2028b"),
        ("\udc80", "\\udc80"),
        ("one\r\ntwo", "one\ntwo"),
        ("50 %\r100 %", "50 %\\r100 %"),
        ("a\tb", "a    b"),
        ("租赁 café 👩‍👩‍👧", "租赁 café 👩‍👩‍👧"),
    ],
)
def test_control_codes_are_written_out_and_all_else_stays(text, shown):
    assert visible(text) == shown


@given(st.text(st.characters(codec=None)))
def test_what_is_shown_can_be_sent_and_controls_nothing(text):
    shown = visible(text)
    shown.encode()
    assert not [c for c in shown if unicodedata.category(c) == "Cc" and c != "\n"]
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", shown)


@given(st.text(st.characters(codec=None)), st.integers(1, 20), st.integers(2, 40))
def test_lines_are_never_more_nor_longer_than_asked_and_all_are_counted(text, lines, chars):
    for take in (first_lines, last_lines):
        shown, more = take(text, lines, chars)
        assert len(shown) <= lines
        assert all(len(line) <= chars for line in shown)
        stripped = text.rstrip("\n")
        assert len(shown) + more == (stripped.count("\n") + 1 if stripped else 0)


def test_a_line_of_a_megabyte_is_clipped_with_a_mark():
    assert one_line("x" * 1_000_000, 10) == "x" * 9 + "…"
    assert last_lines("y\n" + "x" * 1_000_000, 1, 10) == (["x" * 9 + "…"], 1)


def test_numbers_are_short():
    assert [seconds(s) for s in (0.04, 9.94, 59.4, 61, 3720)] == [
        "0.0 s",
        "9.9 s",
        "59 s",
        "1 min 01 s",
        "1 h 02 min",
    ]
    assert [money(d) for d in (0.0, 0.00123, 0.12, 0.5, 12.345)] == [
        "$0.00",
        "$0.0012",
        "$0.12",
        "$0.50",
        "$12.35",
    ]


def test_the_tail_of_a_text_is_folded_and_bounded():
    assert tail_of("", 3, 10) == [""]
    assert tail_of("first\nsecond line\n\nlast\n", 3, 6) == [" line", "", "last"]
    assert tail_of("x" * 1_000_000, 2, 5) == ["xxxxx", "xxxxx"]
    assert tail_of("租赁合同", 4, 5) == ["租赁", "合同"]
    assert tail_of("\x1b[2J", 2, 40) == ["\\x1b[2J"]


def width_of(text):
    wide = {c for c in text if unicodedata.east_asian_width(c) in "WF"}
    return sum(0 if unicodedata.combining(c) else 2 if c in wide else 1 for c in text)


@given(st.text(st.characters(codec=None)), st.integers(1, 5), st.integers(4, 20))
def test_a_tail_is_never_wider_or_higher_than_asked(text, lines, columns):
    tail = tail_of(text, lines, columns)
    assert len(tail) <= lines
    assert all(width_of(line) <= columns for line in tail)
    assert not any(unicodedata.category(character) == "Cc" for character in "".join(tail))
