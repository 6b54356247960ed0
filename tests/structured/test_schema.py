from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm.errors import SchemaError
from rlm.structured.check import Steps, problems
from rlm.structured.schema import schema_of


@dataclass
class Line:
    text: str
    price: float | None


@dataclass
class Invoice:
    kind: Literal["paid", "open"]
    lines: list[Line]


def test_the_short_form_is_a_closed_object_with_every_property_required():
    schema = schema_of("label: str, score: float, tags: list[str], kind: 'spam'|'ham'")
    assert schema.json == {
        "type": "object",
        "properties": {
            "label": {"type": "string"},
            "score": {"type": "number"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "kind": {"type": "string", "enum": ["spam", "ham"]},
        },
        "required": ["label", "score", "tags", "kind"],
        "additionalProperties": False,
    }
    assert schema.properties == ("label", "score", "tags", "kind")


@pytest.mark.parametrize(
    ("short", "json_schema"),
    [
        ("bool", {"type": "boolean"}),
        ("int|null", {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        ("'a' | 'b'", {"type": "string", "enum": ["a", "b"]}),
        ("1|2|3", {"type": "integer", "enum": [1, 2, 3]}),
        ("'a'|1", {"enum": ["a", 1]}),
        ("list[list[int]]", {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}),
        ("'a'|int", {"anyOf": [{"type": "string", "enum": ["a"]}, {"type": "integer"}]}),
        ("true", {"type": "boolean", "enum": [True]}),
        (r"""'both \' and "' | "a \"b\"" """, {"type": "string", "enum": ["both ' and \"", 'a "b"']}),
        (r"'C:\dir\\' | '\\\''", {"type": "string", "enum": ["C:\\dir\\", "\\'"]}),
    ],
)
def test_a_single_type_is_a_schema_too(short, json_schema):
    assert schema_of(short).json == json_schema


def test_objects_nest_and_a_question_mark_allows_null():
    schema = schema_of("who: {name: str, age?: int}, tags: list[{tag: str}]")
    assert not schema.check({"who": {"name": "x", "age": None}, "tags": [{"tag": "t"}]})
    assert schema.check({"who": {"name": "x", "age": "old"}, "tags": []}).startswith("who.age: ")


def test_a_mapping_of_names_to_types_is_the_short_form():
    assert schema_of({"title": "str", "n": "int|null"}).json == schema_of("title: str, n: int|null").json
    assert schema_of({"my label": "str", "it's": "int"}).properties == ("my label", "it's")


def test_names_in_quotes_may_hold_anything():
    assert schema_of("'my label': str, \"it's\"?: int").properties == ("my label", "it's")


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "label: ",
        "label: strr",
        "label: str,, b: int",
        "a: str, a: int",
        "list",
        "list[",
        "{a: str",
        "a: 'unclosed",
        "a: str b: int",
        "a; b",
        ":",
        "?" * 50,
        "list[" * 100,
        '{"type": "strang"}',
        {"type": "object", "properties": []},
        {"oneOf": [{"type": "string"}]},
        {"type": "array", "items": {"$ref": "#/$defs/none"}},
        {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"enum": []},
        {"minLength": -1},
        {"minimum": "3"},
        {"pattern": "("},
        {"anyOf": ["string"]},
        {"required": ["a"], "properties": {}, "additionalProperties": False},
        {"additionalProperties": {"type": "string"}},
        5,
        dict,
    ],
)
def test_what_cannot_be_checked_is_refused(wrong):
    with pytest.raises(SchemaError):
        schema_of(wrong)


def test_a_cell_may_not_bring_a_pattern_nor_a_huge_schema():
    assert schema_of({"pattern": "a+"}).check("b")
    with pytest.raises(SchemaError, match="pattern"):
        schema_of({"type": "array", "items": {"pattern": "(a+)+$"}}, trusted=False)
    with pytest.raises(SchemaError, match="longer"):
        schema_of({"enum": ["x" * 200_000]}, trusted=False)


@pytest.mark.parametrize(
    ("schema", "value", "problem"),
    [
        ("score: float", {"score": "high"}, 'score: must be a number, not "high"'),
        ("score: float", {"score": True}, "score: must be a number, not true"),
        ("score: float", {}, "score: is missing"),
        ("score: float", {"score": 1, "x": 2}, "x: is no property there; the properties are score"),
        ("score: float", [], "must be an object, not []"),
        ("'a'|'b'", "c", 'must be one of "a", "b", not "c"'),
        ("1|2", True, "must be a whole number, not true"),
        ("int", 1.5, "must be a whole number, not 1.5"),
        ("int", 2.0, ""),
        ("float", float("nan"), "must be a finite number"),
        ("tags: list[str]", {"tags": ["a", 2]}, "tags[1]: must be a string, not 2"),
        ("int|'x'", "y", 'must be one of "x", not "y"; or must be a whole number, not "y"'),
        ({"minimum": 1, "maximum": 2}, 3, "must be at most 2, not 3"),
        ({"minLength": 2}, "a", "must have at least 2 characters, not 1"),
        ({"maxItems": 1}, [1, 2], "must have at most 1 items, not 2"),
        ({"const": {"a": 1}}, {"a": 1.0}, ""),
        ({"enum": [1]}, True, "must be one of 1, not true"),
        ({"type": ["string", "null"]}, 5, "must be a string or null, not 5"),
    ],
)
def test_a_problem_is_a_sentence_that_a_model_can_act_on(schema, value, problem):
    assert schema_of(schema).check(value) == problem


def test_classes_are_schemas():
    schema = schema_of(Invoice)
    assert not schema.check({"kind": "paid", "lines": [{"text": "a", "price": None}]})
    assert schema.check({"kind": "paid", "lines": [{"text": "a"}]}) == "lines[0].price: is missing"


def test_pydantic_models_are_schemas_with_their_references_in_place():
    pydantic = pytest.importorskip("pydantic")

    class Point(pydantic.BaseModel):
        x: int

    class Shape(pydantic.BaseModel):
        points: list[Point]

    schema = schema_of(Shape)
    assert "$ref" not in json.dumps(schema.json)
    assert schema.check({"points": [{"x": "a"}]}).startswith("points[0].x: ")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.text())
def test_any_text_is_a_schema_or_a_schema_error(text):
    with suppress(SchemaError):
        schema_of(text)


@given(JSON, JSON)
def test_any_value_can_be_checked_against_any_schema(schema, value):
    try:
        read = schema_of({"anyOf": [schema, {"type": "object", "properties": {"a": schema}}]})
    except SchemaError:
        read = schema_of("a: list[str|{b: int}], c: 'x'|null")
    assert isinstance(read.check(value), str)


@given(JSON)
def test_the_quick_check_never_lets_pass_what_the_full_one_refuses(value):
    for text in (
        "a: list[str|{b: int}], c: 'x'|null",
        "a: float, b: int, c: bool",
        "list[float]",
        "'x'|1",
        "null",
    ):
        schema = schema_of(text)
        for tried in (value, {"a": value, "b": value, "c": value}, [value]):
            if schema._meets(tried):
                assert next(problems(tried, schema.json, "", Steps(10_000)), None) is None


def test_the_quick_check_knows_common_schemas():
    assert schema_of("label: 'a'|'b', score: float, tags: list[str]")._meets(
        {"label": "a", "score": 1, "tags": ["x"]}
    )


def test_a_schema_whose_references_multiply_is_refused_at_once():
    definitions = {f"l{level}": {"anyOf": [{"$ref": f"#/$defs/l{level + 1}"}] * 10} for level in range(9)}
    definitions["l9"] = {"type": "string"}
    with pytest.raises(SchemaError, match=r"longer than 100,000 characters when its \$refs"):
        schema_of({"$defs": definitions, "$ref": "#/$defs/l0"}, trusted=False)


def test_the_text_of_a_schema_from_a_cell_is_measured_before_it_is_read():
    with pytest.raises(SchemaError, match="longer than 100,000 characters"):
        schema_of(",".join(f"a{number}:int" for number in range(20_000)), trusted=False)
