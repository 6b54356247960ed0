"""Rows in doubt go to a stronger model."""

from __future__ import annotations

import pytest
from labelling import answer, items_in, parity, write_csv

from rlm.bulk import map_rows, retry_rows, stream_rows
from rlm.errors import BadRequest, InputError, JobStopped, Refused, SettingsError, UnknownModel
from rlm.metering.prices import Price
from rlm.testing.scripted import ScriptedClient

SCHEMA = "label: 'odd'|'even', confidence: float"
STREAMED = {"schema": SCHEMA, "model": "weak", "escalate_to": "strong", "escalate_when": "confidence < 0.7"}


def rows_of(number):
    return [{"text": f"number {n}"} for n in range(number)]


class Cascade:
    """`weak` is sure of small numbers only, and says `odd` of all others; `strong` knows; `contrary` says the other."""

    def __init__(self, **failures):
        self.client = ScriptedClient(self.reply)
        self.failures = failures
        self.asked = {"weak": [], "contrary": [], "strong": []}

    def reply(self, call):
        prompt = call.messages[0].content
        items = items_in(prompt)
        self.asked[call.model].extend(item["text"] for item in items.values())
        if call.model in self.failures:
            raise self.failures[call.model]
        return answer(prompt, getattr(self, f"_{call.model}"))

    def _strong(self, item):
        return {**parity(item), "confidence": 1.0}

    def _weak(self, item):
        if int(item["text"].split()[-1]) < 6:
            return {**parity(item), "confidence": 0.9}
        return {"label": "odd", "confidence": 0.5}

    def _contrary(self, item):
        return {"label": "even", "confidence": 0.9}


def job(cascade, rows, **options):
    defaults = {"schema": SCHEMA, "model": "weak", "escalate_to": "strong", "rows_per_call": 4}
    return map_rows(rows, "Label {{text}}", client=cascade.client, **{**defaults, **options})


def test_only_rows_that_the_model_is_not_sure_of_go_to_the_stronger_one():
    cascade = Cascade()
    result = job(cascade, rows_of(10), escalate_when="confidence < 0.7")
    assert [row["label"] for row in result] == ["even", "odd"] * 5
    assert [row["escalated"] for row in result] == [False] * 6 + [True] * 4
    assert sorted(cascade.asked["strong"]) == [f"number {n}" for n in range(6, 10)]
    assert result.report.labels["escalated"] == {"false": 6, "true": 4}
    assert result.report.in_doubt == 0


def test_by_default_it_is_asked_where_opinions_disagree():
    cascade = Cascade()
    result = job(cascade, rows_of(6), model=("weak", "contrary"))
    assert sorted(cascade.asked["strong"]) == ["number 1", "number 3", "number 5"]
    assert [row["label"] for row in result] == ["even", "odd"] * 3
    assert [row["agreement"] for row in result] == [1.0, 0.5] * 3


def test_a_rule_may_ask_for_the_agreement():
    cascade = Cascade()
    options = {"model": ("weak", "contrary"), "escalate_when": "agreement < 0.9 and label == 'even'"}
    job(cascade, rows_of(6), **options)
    assert cascade.asked["strong"] == []


def test_rows_without_an_answer_are_always_in_doubt():
    cascade = Cascade(weak=Refused("not this"))
    result = job(cascade, rows_of(3))
    assert [row["label"] for row in result] == ["even", "odd", "even"]
    assert result.report.failed == 0


def test_a_row_that_the_stronger_model_does_not_answer_keeps_its_answer_and_is_reported():
    cascade = Cascade(strong=BadRequest("no temperature, please"))
    report = job(cascade, rows_of(10), escalate_when="confidence < 0.7").report
    assert (report.answered, report.failed, report.in_doubt) == (10, 0, 4)
    assert "still in doubt, with no answer to the escalation: 4 rows" in str(report)


def test_a_row_that_no_model_answers_fails(tmp_path):
    cascade = Cascade(weak=Refused("not this"), strong=Refused("nor this"))
    source = write_csv(tmp_path / "in.csv", ["number 1", "number 2"])
    report = job(cascade, source, output=tmp_path / "out.csv").report
    assert report.failures == {"Refused": 2}
    cascade.failures.clear()
    report = retry_rows(tmp_path / "out.csv.failed.jsonl", client=cascade.client).report
    assert report.failed == 0


def test_one_temperature_is_that_of_the_opinions_and_not_of_the_stronger_model():
    cascade = Cascade()
    job(cascade, rows_of(8), escalate_when="confidence < 0.7", temperature=0.9)
    assert {(call.model, call.temperature) for call in cascade.client.calls} == {
        ("weak", 0.9),
        ("strong", None),
    }
    cascade = Cascade()
    job(cascade, rows_of(8), escalate_when="confidence < 0.7", temperature={"strong": 0.1})
    assert {(call.model, call.temperature) for call in cascade.client.calls} == {
        ("weak", None),
        ("strong", 0.1),
    }


def test_an_interrupted_escalation_is_resumed_and_asks_nothing_twice(tmp_path):
    source = rows_of(30)
    options = {"checkpoint": tmp_path / "journal", "escalate_when": "confidence < 0.7", "max_concurrent": 1}
    broken = Cascade()
    asked = []

    def reply(call):
        asked.append(call.model)
        if asked.count("strong") == 3:
            raise KeyError("the power is cut")
        return Cascade.reply(broken, call)

    broken.client = ScriptedClient(reply)
    with pytest.raises(KeyError):
        job(broken, source, **options)
    again = Cascade()
    result = job(again, source, resume=True, **options)
    assert [row["label"] for row in result] == ["even", "odd"] * 15
    assert again.asked["weak"] == []
    assert not set(again.asked["strong"]) & set(broken.asked["strong"])
    assert len(again.asked["strong"]) + len(broken.asked["strong"]) == 24


def test_another_rule_may_be_used_when_a_job_is_resumed_but_no_other_model(tmp_path):
    options = {"output": tmp_path / "out.csv", "resume": True}
    job(Cascade(), rows_of(10), escalate_when="confidence < 0.2", **options)
    again = Cascade()
    assert [row["label"] for row in job(again, rows_of(10), escalate_when="confidence < 0.7", **options)][
        6:
    ] == [
        "even",
        "odd",
        "even",
        "odd",
    ]
    assert again.asked["weak"] == []
    with pytest.raises(InputError, match="its escalate_to is 'strong'"):
        job(Cascade(), rows_of(10), **{**options, "escalate_to": "other"})


def test_a_pilot_escalates_too_and_progress_ends_at_the_whole():
    reported, estimates = [], []
    options = {
        "escalate_when": "confidence < 0.7",
        "pilot": 8,
        "confirm": lambda estimate: estimates.append(estimate) or True,
        "on_progress": reported.append,
    }
    result = job(Cascade(), rows_of(12), **options)
    assert [row["escalated"] for row in result] == [False] * 6 + [True] * 6
    assert (reported[-1].rows, reported[-1].total) == (
        12 + 4,
        12 + 4,
    )  # the four that were asked after the pilot
    assert len(estimates) == 1


def test_each_streamed_row_comes_once_with_its_final_answer():
    cascade = Cascade()
    rows = list(
        stream_rows([*rows_of(10), *rows_of(10)], "Label {{text}}", client=cascade.client, **STREAMED)
    )
    assert sorted(row.index for row in rows) == list(range(20))
    assert all(row.row["label"] == parity({"text": row.row["text"]})["label"] for row in rows)


def test_rows_of_a_rule_are_never_in_doubt():
    cascade = Cascade()
    rule = lambda row: {"label": "odd", "confidence": 0.1}  # noqa: E731
    result = job(cascade, rows_of(3), escalate_when="confidence < 0.7", rule=rule)
    assert cascade.client.calls == []
    assert [row["escalated"] for row in result] == [False] * 3


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"escalate_to": None, "escalate_when": "confidence < 1"}, SettingsError, "no model to ask then"),
        ({"escalate_to": "weak"}, SettingsError, "is asked first, too"),
        ({"escalate_to": ""}, SettingsError, "must be the name of a model"),
        ({"escalate_to": ["strong"]}, SettingsError, "must be the name of a model"),
        (
            {"escalate_when": "text == 'x'"},
            InputError,
            "which is no field of an answer of this job: the fields are label, confidence",
        ),
        ({"escalate_when": "agreement < 1"}, InputError, "reads 'agreement', which is no field"),
        ({"escalate_when": "confidence <"}, InputError, "cannot be used"),
        ({"schema": "escalated: bool"}, InputError, "property 'escalated'"),
        ({"temperature": {"another": 1.0}}, SettingsError, "none of the models weak, strong"),
    ],
)
def test_options_that_cannot_work_are_refused_before_any_call(options, error, words):
    cascade = Cascade()
    with pytest.raises(error, match=words):
        job(cascade, rows_of(3), **options)
    assert cascade.client.calls == []


def test_a_row_on_which_the_rule_fails_is_escalated_and_the_report_says_why():
    cascade = Cascade()
    report = job(cascade, rows_of(8), escalate_when="confidence < 0.7 and label < 1").report
    assert len(cascade.asked["strong"]) == report.unjudged == 2
    assert "escalated without a decision of the rule: 2 rows, the first because the rule 'confidence" in str(
        report
    )


def test_a_column_of_the_job_itself_is_no_name_for_the_answer():
    for name, options in (("escalated", {}), ("agreement", {"model": ("weak", "contrary")})):
        with pytest.raises(InputError, match=f"property '{name}'"):
            job(Cascade(), rows_of(3), schema=None, column=name, **options)


def test_a_finished_job_may_be_escalated_later(tmp_path):
    options = {"output": tmp_path / "out.csv", "resume": True}
    job(Cascade(), rows_of(10), escalate_to=None, **options)
    again = Cascade()
    result = job(again, rows_of(10), escalate_when="confidence < 0.7", **options)
    assert [row["label"] for row in result] == ["even", "odd"] * 5
    assert (again.asked["weak"], len(again.asked["strong"])) == ([], 4)
    with pytest.raises(InputError, match="its escalate_to is 'strong'"):
        job(Cascade(), rows_of(10), escalate_to=None, **options)


def test_the_estimate_of_a_resumed_pilot_is_that_of_a_new_one(tmp_path):
    estimates = []
    prices = dict.fromkeys(("weak", "strong"), Price(input=1.0, output=1.0))
    options = {"confirm": estimates.append, "escalate_when": "True", "prices": prices, "resume": True}
    for pilot, journal in ((8, "new"), (4, "old"), (8, "old")):
        with pytest.raises(JobStopped):
            job(Cascade(), rows_of(40), pilot=pilot, checkpoint=tmp_path / journal, **options)
    assert estimates[2].usd == pytest.approx(estimates[0].usd, rel=0.02)


def test_rows_that_the_stronger_model_answers_have_not_failed_the_pilot():
    estimates = []
    with pytest.raises(JobStopped):
        job(Cascade(weak=Refused("not this")), rows_of(40), pilot=4, confirm=estimates.append)
    assert estimates[0].pilot_failed == 0


def test_streamed_rows_that_are_not_in_doubt_do_not_wait_for_the_others():
    cascade = Cascade()
    stream = stream_rows(
        rows_of(400), "Label {{text}}", client=cascade.client, rows_per_call=2, max_concurrent=1, **STREAMED
    )
    assert next(stream).index == 0
    assert len(cascade.client.calls) < 150
    stream.close()


def test_a_job_whose_models_all_refuse_is_stopped_early():
    cascade = Cascade(weak=Refused("not this"), strong=Refused("nor this"))
    with pytest.raises(JobStopped, match="none of the first"):
        job(cascade, rows_of(200), max_concurrent=1)
    assert len(cascade.asked["strong"]) < 100


def test_a_name_that_the_stronger_model_does_not_have_stops_the_job_with_its_answers_kept(tmp_path):
    cascade = Cascade(strong=UnknownModel("there is no model strong"))
    with pytest.raises(JobStopped, match="there is no model strong"):
        job(cascade, rows_of(10), escalate_when="confidence < 0.7", output=tmp_path / "out.csv")
    assert (tmp_path / "out.csv.journal").exists()
