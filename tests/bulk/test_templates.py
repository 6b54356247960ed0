from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm.bulk.templates import escape, read_template
from rlm.errors import InputError


def test_fields_are_filled_in():
    template = read_template("Label {{text}} for {{ the tone }}, {{text}}!")
    assert template.fields == ("text", "the tone")
    content = template.content({"text": "hi", "the tone": ["dry"], "other": 1})
    assert template.render(content) == 'Label hi for ["dry"], hi!'


def test_what_a_row_holds_is_not_read_as_a_template():
    template = read_template("{{a}} {{b}}")
    assert template.render({"a": "{{b}}", "b": r"\1 \g<0>"}) == r"{{b}} \1 \g<0>"


def test_a_template_without_fields_asks_about_the_whole_row():
    template = read_template("Which department?")
    assert (
        template.render(template.content({"a": 1, "b": None})) == 'Which department?\n\n{"a": 1, "b": null}'
    )


def test_null_is_nothing():
    assert read_template("[{{a}}]").render({"a": None}) == "[]"


@pytest.mark.parametrize("wrong", ["", "  ", "{{}}", "{{a", "a}}", "{{a{b}}}"])
def test_a_template_that_is_none_is_refused(wrong):
    with pytest.raises(InputError):
        read_template(wrong)


def test_a_missing_field_is_named():
    template = read_template("{{text}}")
    with pytest.raises(InputError, match="no field 'text'"):
        template.content({"txt": 1})
    with pytest.raises(
        InputError, match=r"asks for \{\{text\}\}, which is no field of in.csv: the fields are 'txt'"
    ):
        template.check(["txt"], "in.csv")


BRACES = st.text(alphabet='{}" ab', max_size=12)


@given(before=BRACES, after=BRACES, value=BRACES)
def test_an_escaped_text_stands_for_itself_wherever_it_stands(before, after, value):
    template = read_template(f"{escape(before)}{escape(after)}{{{{a}}}}{escape(before)}{{{escape(after)}}}.")
    assert template.fields == ("a",)
    assert template.render({"a": value}) == f"{before}{after}{value}{before}{{{after}}}."


@given(st.text())
def test_any_text_can_be_escaped(text):
    assert read_template(f"{escape(text)}:{{{{a}}}}").render({"a": 1}) == f"{text}:1"


def test_braces_in_quotes_are_braces_and_the_model_is_told_which_are_fields():
    template = read_template('Fill {{"{{"}}name{{"}}"}} into {{letter}}')
    assert template.render({"letter": "x"}) == "Fill {{name}} into x"
    assert template.instruction.startswith("Fill {{name}} into {{letter}}\n\n{{letter}} stands for")
    assert read_template(escape('{"a": {"b": 1}}')).fields == ()


def test_who_forgets_to_escape_is_told_how():
    with pytest.raises(InputError, match=r'for braces as such \{\{"\{\{"\}\}'):
        read_template("Fill {{name} into {{letter}}")
