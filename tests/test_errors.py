"""Every error survives a copy and the way to another process, with all that it says."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from rlm import errors
from rlm.values import FailedCall, Usage

VALUES = {
    "message": "what happened",
    "feature": "Parquet",
    "extra": "tables",
    "cause": errors.RateLimited("slowly", retry_after=2.5),
    "model": "m",
    "status": 429,
    "usage": Usage(calls=1, input_tokens=7),
    "available": ("a", "b"),
    "text": "so far",
    "retry_after": 3.0,
    "sent": False,
    "name": "dollars",
    "limit": 1.0,
    "spent": 2.0,
    "partial": ["a draft"],
    "log": "its last words",
}


def make(name):
    """The error with every argument it takes, so that nothing it can hold is left out."""
    kind = getattr(errors, name)
    if kind.__init__ in (Exception.__init__, ValueError.__init__):
        return kind("what happened")
    parameters = list(inspect.signature(kind.__init__).parameters)[1:]
    return kind(**{parameter: VALUES[parameter] for parameter in parameters})


def facts(error):
    return {name: repr(value) for name, value in vars(error).items()}


@pytest.mark.parametrize("name", errors.__all__)
@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, *(lambda e, p=p: pickle.loads(pickle.dumps(e, p)) for p in range(6))]
)
def test_an_error_survives(name, again):
    error = make(name)
    error.add_note("a note")
    other = again(error)
    assert type(other) is type(error)
    assert str(other) == str(error) != ""
    assert other.args == error.args
    assert facts(other) == facts(error)


def test_an_error_that_takes_arguments_is_made_with_all_of_them():
    assert facts(make("OutputTruncated")).keys() == {"model", "status", "usage", "text"}


def test_a_failed_slot_of_a_batch_keeps_its_error():
    slot = pickle.loads(pickle.dumps(FailedCall(make("OutputTruncated"))))
    assert not slot
    assert slot.error.text == "so far"
    assert slot == FailedCall(make("OutputTruncated"))
