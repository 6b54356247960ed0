from __future__ import annotations

import pytest

from rlm.bulk.templates import read_template
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
    with pytest.raises(InputError, match=r"asks for \{\{text\}\}, and in.csv has the fields 'txt'"):
        template.check(["txt"], "in.csv")
