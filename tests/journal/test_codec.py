from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, get_args
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlm import events
from rlm.errors import JournalError
from rlm.events import AnswerGiven, CallFinished, CallStarted, CellFinished, Event, RunStarted, Warned
from rlm.journal.codec import EVENT_TYPES, event_of, record_of
from rlm.values import Answer, CellResult, Final, Message, RateLimits, Reply, Usage

HERE: dict[str, Any] = {"run_id": "r", "depth": 0, "at": 1.5}

texts = st.text(st.characters(exclude_categories=()) | st.sampled_from('\ud83d\ude00\n\0"\\é'), max_size=10)
floats = st.floats()
keys = st.one_of(texts, st.integers(), st.tuples(st.integers(), texts), st.none(), st.binary(max_size=3))
plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(2**60, 2**70),
    floats,
    st.complex_numbers(),
    texts,
    st.binary(max_size=10),
    st.datetimes(),
    st.datetimes(timezones=st.just(UTC)),
    st.dates(),
    st.timedeltas(),
    st.uuids(),
    st.decimals(),
    st.frozensets(keys, max_size=3),
    st.sets(keys, max_size=3),
)
values = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(keys, inner, max_size=3),
        st.dictionaries(texts | st.just("$wire"), inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
    ),
    max_leaves=6,
)
usages = st.builds(Usage, *[st.integers(0, 10**20)] * 5, estimated=st.booleans())
costs = st.none() | floats
limits = st.builds(RateLimits, **{field.name: costs for field in dataclasses.fields(RateLimits)})
replies = st.builds(
    Reply,
    text=texts,
    usage=usages,
    latency_s=floats,
    cost_usd=costs,
    stored=st.booleans(),
    rate_limits=st.none() | limits,
    warnings=st.lists(texts, max_size=2).map(tuple),
)
results = st.builds(
    CellResult,
    stdout=texts,
    stderr=texts,
    error=texts,
    draft=values,
    execution_time=floats,
    final=st.none() | st.builds(Final, values, st.sampled_from(["FINAL", "FINAL_VAR", "answer"])),
)
answers = st.builds(
    Answer,
    values,
    status=st.sampled_from(["ok", "partial", "budget"]),
    limit=texts,
    usage=usages,
    cost_usd=costs,
    turns=st.integers(),
    seconds=floats,
    run_id=texts,
    warnings=st.lists(texts, max_size=2).map(tuple),
    citations=st.lists(values, max_size=2).map(tuple),
    coverage=values,
)
for kind, strategy in {
    str: texts,
    float: floats,
    Message: st.builds(Message, st.sampled_from(["user", "system"]), texts),
    Usage: usages,
    Reply: replies,
    CellResult: results,
    Answer: answers,
}.items():
    st.register_type_strategy(kind, strategy)


def through_json(event: Event) -> Event:
    return event_of(json.loads(json.dumps(record_of(event), allow_nan=False)))


def same(one: Any, other: Any) -> bool:
    """Equal, of the same types all the way down, with NaN equal to itself and an answer by all it holds."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Answer):
        return str.__eq__(one, other) and same(vars(one), vars(other))
    if dataclasses.is_dataclass(one):
        return same(_fields(one), _fields(other))
    if isinstance(one, dict):
        return same([*one], [*other]) and same([*one.values()], [*other.values()])
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return _shown(one) == _shown(other)


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _shown(value: Any) -> object:
    return sorted(map(repr, value)) if isinstance(value, (set, frozenset)) else repr(value)


@pytest.mark.parametrize("kind", get_args(Event), ids=lambda kind: kind.__name__)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_event_comes_back_as_it_was(kind, data):
    event = data.draw(st.from_type(kind))
    record = record_of(event)
    assert record["type"] == kind.__name__
    assert same(through_json(event), event)


def test_every_class_of_an_event_has_a_record():
    happenings = {
        kind.__name__ for kind in vars(events).values() if isinstance(kind, type) and _is_event(kind)
    }
    assert happenings == set(EVENT_TYPES)


def _is_event(kind: type) -> bool:
    return issubclass(kind, events._RunEvent) and kind is not events._RunEvent


VALUES = [
    (1, ("b", None)),
    b"\xff\0",
    bytearray(b"x"),
    {1: "int key", (2, 3): b"", None: 0},
    {"when": datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC), "day": date(2026, 1, 2), "at": time(1, 2)},
    {1, 2, "three"},
    frozenset({(1, 2)}),
    [math.nan, math.inf, -0.0],
    "half \ud800 and both halves \ud83d\ude00 and one character \U0001f600",
    {"$wire": "not ours"},
    {"a": {"$wire": 1}},
    2**64,
    -(2**4096),
    Decimal("1.50"),
    UUID(int=5),
    timedelta(days=-1),
    3 - 4j,
    True,
    None,
    "",
    [],
    {},
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_an_answer_keeps_its_value_and_its_text(value):
    event = AnswerGiven(**HERE, answer=Answer(value, status="partial", warnings=("w",), citations=((1, 2),)))
    assert same(through_json(event), event)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_draft_and_a_final_value_come_back(value):
    event = CellFinished(**HERE, turn=1, cell=1, result=CellResult(draft=value, final=Final(value, "FINAL")))
    assert same(through_json(event), event)


@pytest.mark.parametrize("number", [2**64, -(2**64), 10**5_000], ids=["above", "below", "very large"])
def test_a_number_that_readers_of_json_refuse_is_not_left_to_them(number):
    event = AnswerGiven(**HERE, answer=Answer(number))
    assert set(record_of(event)["answer"]["value"]) == {"$wire"}
    assert through_json(event).answer.value == number


def test_an_answer_reads_as_it_did_in_another_process():
    """A set of str prints in another order there."""
    event = AnswerGiven(**HERE, answer=Answer({"one", "two", "three", "four"}))
    script = (
        "import sys, json; from rlm.journal.codec import event_of\n"
        "answer = event_of(json.load(sys.stdin)).answer; print(answer, answer.value == {'one', 'two', 'three', 'four'})"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(record_of(event)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout == f"{event.answer} True\n"


def test_what_json_can_say_stands_there_as_it_is():
    value = {"names": ["Ann", "Zoë", "\ud800"], "n": 1, "share": 0.5, "none": None, "yes": True}
    reply = Reply(text="é\n", usage=Usage(1, 2, 3, 4), cost_usd=0.25, warnings=("cut",))
    answered = record_of(AnswerGiven(**HERE, answer=Answer(value)))["answer"]
    assert answered["value"] == value
    assert answered["usage"]["input_tokens"] == 0
    finished = record_of(CallFinished(**HERE, call=7, reply=reply))
    assert finished["call"] == 7
    assert finished["reply"]["text"] == "é\n"
    assert finished["reply"]["usage"]["output_tokens"] == 4
    assert "$wire" not in json.dumps([answered, finished])
    messages = (Message("user", "hi"),)
    started = record_of(CallStarted(**HERE, call=7, role="sub", model="m", messages=messages))
    assert started["messages"] == [{"role": "user", "content": "hi"}]


def test_a_text_is_not_written_twice():
    assert "value" not in record_of(AnswerGiven(**HERE, answer=Answer("the answer")))["answer"]


def test_a_question_that_is_an_answer_is_text():
    record = record_of(
        RunStarted(
            **HERE,
            question=Answer("why?", turns=3),
            context_summary="",
            model="m",
            recursive_model="m",
            max_iterations=1,
        )
    )
    assert type(record["question"]) is str


def holding_itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value", [object(), [{"a": len}], holding_itself()], ids=["object", "function", "cycle"]
)
def test_a_value_without_a_form_is_named(value):
    with pytest.raises(JournalError, match="AnswerGiven cannot be written down"):
        record_of(AnswerGiven(**HERE, answer=Answer("x", coverage=value)))


def test_fields_of_a_later_version_are_left_out_and_those_of_an_earlier_one_have_their_defaults():
    record = record_of(CallFinished(**HERE, call=1, reply=Reply(text="x", stored=True)))
    record["colour"] = "blue"
    record["reply"]["mood"] = {"$wire": "later"}
    del record["reply"]["stored"]
    assert event_of(record) == CallFinished(**HERE, call=1, reply=Reply(text="x"))


@pytest.mark.parametrize("name", ["Danced", None, 5, ["Warned"], "Reply"])
def test_a_record_of_an_unknown_type_is_refused(name):
    with pytest.raises(JournalError, match="belongs to no known event"):
        event_of({**record_of(Warned(**HERE, message="m")), "type": name})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"depth": "deep"}, "str instead of int"),
        ({"depth": True}, "bool instead of int"),
        ({"call": {"$wire": "***"}}, "cannot be decoded"),
        ({"call": {"$wire": "TQ=="}}, "cannot be decoded"),
        ({"call": {"$wire": 5}}, "cannot be decoded"),
        ({"reply": "yes"}, "instead of the fields of a Reply"),
        ({"reply": {}}, "a Reply without text"),
        ({"reply": {"text": "x", "usage": {"calls": [1]}}}, "list instead of int"),
        ({"reply": {"text": "x", "warnings": "abc"}}, "instead of an array"),
    ],
)
def test_a_record_that_was_tampered_with_is_a_clear_error(damage, message):
    record = record_of(CallFinished(**HERE, call=1, reply=Reply(text="x")))
    with pytest.raises(JournalError, match=message):
        event_of({**record, **damage})


def test_a_field_that_is_missing_is_named():
    with pytest.raises(JournalError, match="a Warned without message"):
        event_of({"type": "Warned", **HERE})
