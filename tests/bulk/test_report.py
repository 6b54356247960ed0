from __future__ import annotations

import pytest
from labelling import answer, parity

from rlm.bulk import JobReport, map_rows, total
from rlm.errors import InputError
from rlm.testing.scripted import ScriptedClient
from rlm.values import Usage

ROWS = [{"n": n, "text": f"number {n}"} for n in range(30)]
ASK = {"prompt": "Label {{text}}", "schema": "label: 'odd'|'even'"}


def client():
    return ScriptedClient(lambda call: answer(call.messages[0].content, parity))


def report(**changes):
    numbers = {"rows": 2, "answered": 2, "by_rule": 0, "failed": 0, "failures": {}, "asked": 2, "resumed": 0}
    plain = {
        "stored": 0,
        "usage": Usage(calls=1, input_tokens=9, output_tokens=1),
        "cost_usd": 0.5,
        "seconds": 1.0,
    }
    return JobReport(**{**numbers, **plain, **changes})


def test_reports_are_summed():
    first = report(labels={"label": {"a": 2}, "note": {"x": 2}}, agreement=1.0, failures={"Refused": 1})
    second = report(
        labels={"label": {"b": 3, "a": 1}}, answered=6, agreement=0.5, failures={"Refused": 2, "X": 4}
    )
    both = total([first, second])
    assert (both.rows, both.answered, both.cost_usd, both.seconds) == (4, 8, 1.0, 2.0)
    assert both.usage == Usage(calls=2, input_tokens=18, output_tokens=2)
    assert both.failures == {"X": 4, "Refused": 3}
    assert both.labels == {"label": {"a": 3, "b": 3}}
    assert both.agreement == pytest.approx((2 * 1.0 + 6 * 0.5) / 8)


def test_a_total_has_no_cost_where_one_is_not_known_and_no_column_of_too_many_values():
    many = [report(cost_usd=None, labels={"label": {f"{n} {k}": 1 for k in range(30)}}) for n in range(2)]
    assert (total(many).cost_usd, total(many).labels) == (None, {})
    assert total([]).cost_usd == 0
    assert str(total([])).startswith("0 rows: 0 answered")


def test_a_report_counts_one_thing_without_a_plural():
    said = str(report(rows=1, resumed=1, stored=1, usage=Usage(calls=1, input_tokens=1)))
    assert said.startswith("1 row: ")
    assert "\n1 call, 1 token, $0.5000, 1.0 s; 1 answer resumed, 1 reply from the cache" in said


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.json"])
def test_the_rows_of_a_job_are_read_from_its_output_again_and_again(tmp_path, name):
    done = map_rows(ROWS, **ASK, client=client(), output=tmp_path / name)
    assert len(done) == 30
    assert done.rows == []
    for _ in range(2):
        assert [row["label"] for row in done] == ["odd" if n % 2 else "even" for n in range(30)]


def test_rows_whose_output_is_gone_are_an_error_that_names_it(tmp_path):
    done = map_rows(ROWS, **ASK, client=client(), output=tmp_path / "out.csv")
    (tmp_path / "out.csv").unlink()
    with pytest.raises(InputError, match=r"out\.csv cannot be read"):
        list(done)
