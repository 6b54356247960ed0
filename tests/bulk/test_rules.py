from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm.bulk.rules import fields_of, read_expression
from rlm.errors import InputError

ROW = {"text": "Hello", "n": 3, "price": "2.5", "odd name": "x", "none": None, "tags": ["a"]}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("len(text) < 3", False),
        ("len(text) < 3 or n == 3", True),
        ("text.lower().startswith('he') and not n > 5", True),
        ("row['odd name'] == 'x'", True),
        ("float(price) * 2 + 1 >= 6", True),
        ("none is None", True),
        ("text in ['Hello', 'Bye']", True),
        ("'z' not in text", True),
        ("1 < n < 5", True),
        ("'yes' if n else 'no'", "yes"),
        ("-n % 2", 1),
        ("'a' in tags", True),
        ("tags == ['a']", True),
        ("text.startswith(('X', 'H'))", True),
        ("n in (1, 2)", False),
    ],
)
def test_a_rule_is_evaluated_for_a_row(text, value):
    assert read_expression(text)(ROW) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "n ==",
        "__import__('os').system('true')",
        "text.__class__",
        "text.format(n)",
        "(lambda: 1)()",
        "[x for x in text]",
        "open('/etc/passwd')",
        "n ** n ** n",
        "f'{text}'",
        "text[0]",
        "n := 5",
        "len(*tags)",
        "str(object=text)",
        "(" * 3_000,
    ],
)
def test_what_is_no_rule_is_refused(text):
    with pytest.raises(InputError):
        read_expression(text)({"n": 1, "text": "a", "tags": []})


@pytest.mark.parametrize(
    "text", ["missing == 1", "text < 5", "n.lower()", "text * 1000", "1 / 0", "int(text)"]
)
def test_a_rule_that_does_not_fit_the_row_is_an_input_error(text):
    with pytest.raises(InputError, match="the rule"):
        read_expression(text)(ROW)


def test_the_fields_that_a_rule_asks_for_are_known():
    text = "len(text) < 3 and (lang != 'en' or row['odd name'] in tags) and text.lower() == min(n, 4)"
    assert fields_of(text) == ("text", "lang", "odd name", "tags", "n")


@given(st.text(alphabet="ntex.()'[]=<>+-* andornot0123\"", max_size=40))
def test_any_text_is_a_rule_or_an_input_error(text):
    with suppress(InputError):
        read_expression(text)({"n": 1, "text": "a", "e": 2})
