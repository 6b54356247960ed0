from __future__ import annotations

import pytest

from rlm.cli.chat_inputs import (
    AskModel,
    ChatCommand,
    Nothing,
    RunCode,
    ShowVariable,
    Unknown,
    is_unfinished,
    parse,
)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("Who are the parties?", AskModel("Who are the parties?")),
        ("  two\nlines  ", AskModel("two\nlines")),
        ("!len(context)", RunCode("len(context)")),
        ("! for x in y:\n    print(x)", RunCode("for x in y:\n    print(x)")),
        ("?x", ShowVariable("x")),
        ("?", ChatCommand("vars")),
        ("/vars", ChatCommand("vars")),
        ("/QUIT", ChatCommand("quit")),
        ("/exit", ChatCommand("quit")),
        ("Exit", ChatCommand("quit")),
        ("quit()", ChatCommand("quit")),
        ("help", ChatCommand("help")),
        ("help me understand it", AskModel("help me understand it")),
        ("/what now", Unknown("/what now")),
        ("/", Unknown("/")),
        ("!", Nothing()),
        ("", Nothing()),
    ],
)
def test_the_first_character_says_what_a_line_means(text, meaning):
    assert parse(text) == meaning


@pytest.mark.parametrize(
    "text", ["!f(", "!x = [1,", "!for x in y:", "!for x in y:\n    print(x)", "!@cached", '!"""a', "!if x:\n"]
)
def test_code_that_lacks_its_end_goes_on(text):
    assert is_unfinished(text)


@pytest.mark.parametrize(
    "text",
    [
        "What (about this",
        "!f()",
        "!for x in y:\n    print(x)\n",
        "!for x in y: print(x)",
        "!1 +* 2",
        "!await f()",
        "!",
        "",
    ],
)
def test_whole_code_wrong_code_and_questions_are_sent(text):
    assert not is_unfinished(text)
