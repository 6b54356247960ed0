from __future__ import annotations

import pytest

from rlm.bulk.opinions import vote


@pytest.mark.parametrize(
    ("answers", "value", "agreement"),
    [
        (["a"], "a", 1.0),
        (["a", "b", "b"], "b", 2 / 3),
        (["a", "b"], "a", 1 / 2),
        ([True, 1, True], True, 2 / 3),
        ([0.1, 0.9, 0.5], 0.5, 1 / 3),
        ([{"label": "x", "score": 0.1}, {"label": "x", "score": 0.3}], {"label": "x", "score": 0.2}, 1.0),
        ([{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "y"}], {"a": 1, "b": "y"}, 2 / 3),
        ([["a"], ["a"], []], ["a"], 2 / 3),
    ],
)
def test_the_majority_decides_and_the_agreement_is_returned(answers, value, agreement):
    assert vote(answers) == (value, pytest.approx(agreement))


def test_without_answers_there_is_no_vote():
    with pytest.raises(ValueError, match="nothing to vote"):
        vote([])
