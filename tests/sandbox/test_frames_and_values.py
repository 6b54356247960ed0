# ruff: noqa: DTZ001, PLR0911, SIM105 - naive times cross too; one case a line; a test says what may be raised
"""What crosses the wire arrives as it was, and whatever else arrives does no harm."""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict, namedtuple
from datetime import date, datetime, timedelta, timezone
from datetime import time as clock
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm.sandbox.guest import decoding, frames, values

LIMITS = {frames.OUTPUT: frames.FRAME_BYTES, frames.CALL: 1000, frames.DONE: 10_000_000, frames.ENDED: 1000}


def flat(parts):
    """The bytes of an encoded value, as they would travel."""
    return b"".join(data[frames.HEADER.size :] for data in frames.message_frames(frames.CALL, 1, parts))


def there_and_back(value):
    return decoding.decode(flat(values.encode(value)))


def same(left, right):
    """Equal, of the same types all the way down, in the same order."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return math.copysign(1, left) == math.copysign(1, right) and (
            left == right or (math.isnan(left) and math.isnan(right))
        )
    if isinstance(left, complex):
        return same((left.real, left.imag), (right.real, right.imag))
    if isinstance(left, (set, frozenset)):
        return left == right or len(left) == len(right)  # a NaN in a set equals nothing
    if isinstance(left, Decimal):
        return str(left) == str(right)
    if isinstance(left, (datetime, clock)):
        return repr(left) == repr(right)
    return left == right


texts = st.text(st.characters(codec=None, exclude_categories=()), max_size=30)
zones = st.none() | st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)))
keys = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.binary(max_size=30)
    | st.dates()
    | st.uuids(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
any_value = st.recursive(
    keys | st.complex_numbers() | st.datetimes(timezones=zones) | st.times(timezones=zones) | st.timedeltas() | zones
    | st.decimals() | st.binary(max_size=9).map(bytearray),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner) | st.dictionaries(keys, inner, max_size=4) | st.sets(keys, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(any_value)
@settings(max_examples=300, deadline=None)
def test_any_value_that_crosses_arrives_as_it_was(value):
    assert same(there_and_back(value), value)


@pytest.mark.parametrize(
    "value",
    [
        10**6000, -(10**6000), 2**63, -(2**63) - 1, "\ud83d\ude00", "\ud800", "a\0b\r\n", "x" * 1_000_000, "é" * 1_000_000,
        "\ude00" * 200_000, b"z" * 1_000_000, bytearray(b"q" * 300_000), ["x" * 70_000, "y" * 70_000], Path("a/../b"),
        datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=None), {(1, (2,)): {3}}, UUID(int=5), date(1, 1, 1), math.nan, -0.0,
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_the_difficult_ones_arrive_as_they_were(value):
    assert same(there_and_back(value), value)


class Text(str):  # noqa: SLOT000 - it only lies
    def encode(self, *args):
        return b"a lie"

    def __len__(self):
        return 10**9

    def __str__(self):
        return "a lie"


class Number(IntEnum):
    ONE = 1


class Color(str, Enum):  # noqa: UP042 - the older way is in many programs
    RED = "red"


Point = namedtuple("Point", "x y")  # noqa: PYI024 - the untyped one is common


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        (Text("true"), "true"),
        (Number.ONE, 1),
        (Color.RED, "red"),
        (Point(1, 2), (1, 2)),
        (Counter("aab"), {"a": 2, "b": 1}),
        (type("F", (float,), {"__float__": lambda self: 9.0})(1.5), 1.5),
        (type("B", (bytes,), {"__bytes__": lambda self: b"lie"})(b"b"), b"b"),
        (type("L", (list,), {"__iter__": lambda self: iter("lie")})([1]), [1]),
    ],
)
def test_a_subclass_arrives_as_its_base_and_cannot_lie(value, arrives):
    assert same(there_and_back(value), arrives)


def test_an_ordered_dict_keeps_its_own_order():
    value = OrderedDict(a=1, b=2)
    value.move_to_end("a")
    assert list(there_and_back(value)) == ["b", "a"]


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        (object(), "", "object"),
        ([0, {"when": range(3)}], "[1]['when']", "range"),
        ({"k": (1, print)}, "['k'][1]", "builtin_function_or_method"),
        ({print: 1}, "[builtin_function_or_method]", "builtin_function_or_method"),
        ({1, Ellipsis}, "{…}", "ellipsis"),
        (datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC")), "", "use a fixed offset"),
    ],
)
def test_what_cannot_cross_is_named_with_its_place(value, path, reason):
    with pytest.raises(values.Uncrossable, match=reason) as caught:
        values.encode(value)
    assert caught.value.path == path


def test_a_value_that_contains_itself_is_refused():
    value = []
    value.append(value)
    with pytest.raises(values.Uncrossable, match="contains itself"):
        values.encode(value)


@pytest.mark.parametrize(
    "value", ["x" * 2000, b"x" * 2000, "x" * 200_000, [1] * 2000, {"a": [b"x" * 200_000]}]
)
def test_a_limit_of_bytes_is_kept(value):
    with pytest.raises(values.TooLarge, match="larger than 1,000 bytes"):
        values.encode(value, limit=1000)


# --- the reader and its enemies ------------------------------------------------------------------------------


@given(st.binary(max_size=400))
@settings(max_examples=500, deadline=None)
def test_any_bytes_decode_to_a_value_or_a_wire_error(data):
    try:
        decoding.decode(data, max_values=1000)
    except values.WireError:
        pass


@given(any_value, st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_value_is_a_value_or_a_wire_error(value, data):
    encoded = bytearray(flat(values.encode(value)))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoding.decode(encoded[: data.draw(st.integers(0, len(encoded)))], max_values=1000)
    except values.WireError:
        pass


messages = st.tuples(
    st.sampled_from([frames.CALL, frames.DONE, frames.OUTPUT, 99]), st.integers(0, 3), st.binary(max_size=300)
)


@given(
    st.lists(st.binary(max_size=100) | messages.map(lambda m: frames.frame(*m)), max_size=8),
    st.integers(1, 50),
)
@settings(max_examples=300, deadline=None)
def test_any_stream_gives_messages_or_a_wire_error_and_holds_no_more_than_it_was_fed(pieces, size):
    stream = b"".join(pieces)
    assembler = frames.MessageReader(LIMITS)
    given_out = 0
    try:
        for start in range(0, len(stream), size):
            for kind, _, payload in assembler.feed(stream[start : start + size]):
                assert kind in LIMITS
                given_out += len(payload)
    except values.WireError:
        pass
    assert given_out <= len(stream)


@given(st.lists(messages.filter(lambda m: m[0] != 99), max_size=5), st.integers(1, 50))
@settings(max_examples=200, deadline=None)
def test_messages_arrive_whole_however_the_stream_is_cut(sent, size):
    stream = b"".join(frames.frame(kind, number, payload) for kind, number, payload in sent)
    assembler = frames.MessageReader(LIMITS)
    came = [
        message
        for start in range(0, len(stream), size)
        for message in assembler.feed(stream[start : start + size])
    ]
    assert [(kind, number, bytes(payload)) for kind, number, payload in came] == sent


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (frames.HEADER.pack(frames.CALL, 0, 1, 0xFFFFFFFF), "header"),
        (frames.HEADER.pack(frames.CALL, 7, 1, 0), "header"),
        (frames.frame(frames.RUN), "not for us"),
        (
            frames.frame(frames.CALL, 1, b"x", more=True) + frames.frame(frames.CALL, 2, b"x"),
            "before the one before it was complete",
        ),
        (
            frames.frame(frames.CALL, 1, b"x" * 600, more=True) + frames.frame(frames.CALL, 1, b"x" * 600),
            "more than 1,000",
        ),
    ],
)
def test_what_breaks_the_frames_is_refused(stream, reason):
    with pytest.raises(values.WireError, match=reason):
        frames.MessageReader(LIMITS).feed(stream)


def test_the_last_word_drops_a_message_under_way_and_output_passes_between():
    assembler = frames.MessageReader(LIMITS)
    stream = (
        frames.frame(frames.CALL, 1, b"half", more=True)
        + frames.frame(frames.OUTPUT, 1, b"out")
        + frames.frame(frames.ENDED)
    )
    assert [message[0] for message in assembler.feed(stream)] == [frames.OUTPUT, frames.ENDED]
    assert [message[0] for message in assembler.feed(frames.frame(frames.CALL, 2))] == [frames.CALL]


@pytest.mark.parametrize(
    "data",
    [
        b"l\xff\xff\xff\xff",
        b"t" + b"\0\0\0\1t" * 1000 + b"N",
        b"l\0\0\0\1" * 300 + b"N",
        b"s\xff\xff\xff\xff",
        b"b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"d\0\0\0\1l\0\0\0\0N",
        b"e\0\0\0\1l\0\0\0\0",
        b"x\0\0\0\3abc",
        b"D" + b"\xff" * 20,
        b"NN",
        b"",
    ],
)
def test_a_promise_without_bytes_is_refused_at_once(data):
    with pytest.raises(values.WireError):
        decoding.decode(data)


def test_more_values_than_allowed_are_refused():
    with pytest.raises(values.WireError, match="too many values"):
        decoding.decode(flat(values.encode([None] * 100)), max_values=50)


def test_keys_that_collide_are_refused_before_they_cost_time():
    modulus = (1 << 61) - 1
    data = flat(values.encode({key * modulus: None for key in range(1, 1200)}))
    began = time.perf_counter()
    with pytest.raises(values.WireError, match="collide"):
        decoding.decode(data)
    assert time.perf_counter() - began < 5
