"""Each `replies/NAME.md` is a model's reply, and `replies/NAME.json` is what must be read from it."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlm.engine.reply_parser import Code, FinalText, FinalVariable, ParsedReply, Prose, Thinking, parse_reply

REPLIES = sorted((Path(__file__).parent / "replies").glob("*.md"))


def check(text: str, expected: dict) -> None:
    parsed = parse_reply(text)
    assert spelled(parsed) == text
    found = {"code": list(parsed.code), "final": as_json(parsed.final)}
    if "prose" in expected:
        found["prose"] = parsed.prose
    assert found == expected


def as_json(final: FinalText | FinalVariable | None) -> dict | None:
    match final:
        case FinalText(text=text):
            return {"text": text}
        case FinalVariable(name=name):
            return {"variable": name}
        case None:
            return None


def spelled(parsed: ParsedReply) -> str:
    return "".join(segment.source for segment in parsed.segments)


@pytest.mark.parametrize("path", REPLIES, ids=lambda path: path.stem)
def test_a_reply_is_read_as_expected(path):
    check(path.read_bytes().decode(), json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))


def test_the_folder_holds_replies_with_and_without_crlf():
    assert len(REPLIES) >= 60
    assert any(b"\r\n" in path.read_bytes() for path in REPLIES)
    assert any(b"\r\n" not in path.read_bytes() for path in REPLIES)


def test_segments_come_in_order_and_say_what_they_are():
    parsed = parse_reply("<think>a</think>b\n```repl\nc\n```\nFINAL(d)\ne")
    kinds = [type(segment) for segment in parsed.segments]
    assert kinds == [Thinking, Prose, Code, FinalText, Prose]
    assert parsed.prose == "b\n\ne"


PIECES = [
    "```", "````", "~~~", "repl", "python", "json", "text", "\n", "\r\n", "\r", " ", "\t", "    ", "<think>", "</think>",
    "<thinking>", "</thinking>", "FINAL(", "FINAL_VAR(", ")", "(", '"', "'", '"""', "'''", "\\", "`", "**", "#", ">>>",
    "x = 1", "print(x)", "a", "Final answer: ", "…", "\ud800", "\0", "\u2028", "{", "}", "f'", "r'", "1)", ":)", "é",
]  # fmt: skip
replies = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=40).map("".join))


@given(replies)
@example("FINAL(" * 50)
@example("FINAL('\\ud800')")
@example('FINAL("\\U00110000")')
@example("```\n" + "[" * 300 + "\n```")
@example("```\n" + "-" * 100_000 + "1\n```")
@example("```\nx = '\\d' + 1if 1else 0\n```")
@settings(max_examples=1_500, deadline=None)
def test_parsing_never_raises_and_never_loses_text(text):
    parsed = parse_reply(text)
    assert spelled(parsed) == text
    assert all(segment.source for segment in parsed.segments)
    for segment in parsed.segments:
        if isinstance(segment, Code):
            assert segment.code.strip()
            assert "\r\n" not in segment.code


@given(replies)
@settings(max_examples=300, deadline=None)
def test_nothing_inside_thinking_counts(text):
    thought = text.replace("<", "").replace(">", "")
    parsed = parse_reply(f"<think>{thought}</think>\nFINAL(42)")
    assert parsed.code == ()
    assert parsed.final == FinalText("FINAL(42)", "42")


programs = st.lists(
    st.sampled_from(
        [
            "x = 1",
            "print('```')",
            's = """\n```json\n{}\n```\n"""',
            "t = '''\n```\n'''",
            '# it\'s a comment with ``` and """',
            "def f():\n    '''Doc.\n\n    ```\n    '''\n    return 1",
            "p = r'\\d' '\\''",
            "u = 'a\\\n```\\\nb'",
            "y = f'{x}' \"'\"",
        ]
    ),
    min_size=1,
    max_size=8,
).map("\n".join)


@given(
    st.lists(programs, min_size=1, max_size=4),
    st.sampled_from(["```repl", "```python", "~~~py", "````python"]),
)
@settings(max_examples=300, deadline=None)
def test_every_valid_program_comes_out_of_its_fence_as_it_went_in(codes, opening):
    mark = opening[: opening.rindex(opening[0]) + 1]
    parsed = parse_reply("\n".join(f"Then:\n{opening}\n{code}\n{mark}\nSo it's done." for code in codes))
    assert list(parsed.code) == codes
    assert all(ast.parse(code) for code in parsed.code)


@given(st.text().filter(lambda text: text.strip() not in ("", "...", "…")))
@settings(max_examples=300, deadline=None)
def test_any_text_survives_as_a_json_string_in_final(text):
    parsed = parse_reply(f"FINAL({json.dumps(text)})")
    assert parsed.final is not None
    assert parsed.final.text == text


@pytest.mark.parametrize(
    "text",
    [
        "FINAL(" + "(" * 100_000,
        "```repl\nx = 1\n```\n" * 10_000,
        "```repl\n" * 10_000,
        '```repl\nx = """\n```\n' * 10_001,
        '```repl\n\\"""\n```\n' * 10_000,
        "```\nx = '''\n```\n```repl\nx = 1\n" * 5_000,
        "```json\n```repl\n" * 5_000,
        "x ```python\n" * 50_000,
        "<think>" * 50_000,
        "x</think>\n" * 50_000,
        'FINAL(":) x" (\nx</think>\n' * 20_000,
        "FINAL(" + '\\"' * 500_000,
        "`" * 1_000_000 + "x`",
        "```repl\n" + "x = 1  # one\n" * 100_000 + "```",
        'It\'s (a) "long" line. ' * 50_000,
    ],
    ids=lambda text: text[:20].encode("unicode_escape").decode(),
)
def test_hostile_replies_are_read_in_linear_time(text):
    """Anything quadratic would take minutes here."""
    assert spelled(parse_reply(text)) == text
