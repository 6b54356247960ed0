from __future__ import annotations

import pytest

from rlm.metering.bounds import bound
from rlm.values import Call, Message


def call(text):
    return Call(model="m", messages=(Message("user", text),))


@pytest.mark.parametrize(("counted", "bounded"), [(300, 400), (0, 0), (100_000, 1_016)])
def test_a_bound_is_a_third_more_than_counted_but_no_more_than_the_bytes(counted, bounded):
    assert bound(lambda _call: counted)(call("x" * 1_000)) == bounded


def test_bytes_are_those_of_utf_8():
    assert bound(lambda _call: 100_000)(call("長" * 1_000)) == 3_016
