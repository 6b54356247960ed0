from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from labelling import SCHEMA, answer, items_in, label, parity, read_csv, write_csv
from openai_server import OpenAIServer

from rlm.bulk import amap_rows, map_rows, retry_rows
from rlm.bulk.io.formats import as_source
from rlm.errors import (
    AuthenticationFailed,
    BudgetExceeded,
    InputError,
    JobStopped,
    JournalError,
    JournalLocked,
    OutputError,
    Refused,
    SchemaError,
    SettingsError,
)
from rlm.metering.prices import Price
from rlm.scheduler.budget import Budget
from rlm.settings import SchedulerSettings
from rlm.testing.scripted import ScriptedClient
from rlm.values import Reply, Usage

PRICES = {"m": Price(input=1.0, output=1.0)}


@pytest.fixture
def rows(tmp_path):
    return write_csv(tmp_path / "in.csv", [f"number {number}" for number in range(100)])


def job(rows, output, client, **options):
    return map_rows(rows, "Label {{text}}", schema=SCHEMA, output=output, client=client, model="m", **options)


def test_every_row_is_written_in_order_with_the_new_columns(rows, tmp_path):
    client = ScriptedClient(label)
    report = job(rows, tmp_path / "out.csv", client, rows_per_call=10, prices=PRICES).report
    written = read_csv(tmp_path / "out.csv")
    assert [row["n"] for row in written] == [str(number) for number in range(100)]
    assert all(row["label"] == ("odd" if int(row["n"]) % 2 else "even") for row in written)
    assert len(client.calls) == 10
    assert (report.answered, report.failed, report.usage.calls) == (100, 0, 10)
    assert report.labels == {"label": {"even": 50, "odd": 50}}
    assert report.cost_usd == pytest.approx(report.usage.total_tokens / 1e6)
    assert "label: even 50 (50.0%)" in str(report)


@pytest.mark.anyio
async def test_a_caller_with_a_loop_gets_rows_back_where_no_output_is_named():
    rows = [{"text": f"number {number}"} for number in range(3)]
    result = await amap_rows(rows, "Label {{text}}", schema=SCHEMA, client=ScriptedClient(label))
    assert list(result) == [
        {"text": "number 0", "label": "even"},
        {"text": "number 1", "label": "odd"},
        {"text": "number 2", "label": "even"},
    ]


def test_equal_rows_are_asked_once(tmp_path):
    client = ScriptedClient(label)
    source = write_csv(tmp_path / "in.csv", [f"number {number % 7}" for number in range(200)])
    job(source, tmp_path / "out.csv", client, rows_per_call=5)
    assert sum(len(items_in(call.messages[0].content)) for call in client.calls) == 7
    assert len(read_csv(tmp_path / "out.csv")) == 200


@pytest.mark.parametrize(
    ("chars", "least", "most"),
    [(20, 20, 30), (80, 20, 30), (120, 10, 15), (300, 10, 15), (480, 10, 15), (520, 5, 10), (3_000, 5, 10)],
)
def test_rows_per_call_follow_from_the_length_of_the_texts(chars, least, most):
    client = ScriptedClient(label)
    rows = [{"text": f"number {n}".rjust(chars)} for n in range(200)]
    map_rows(rows, "Label {{text}}", schema=SCHEMA, client=client)
    *sizes, last = [len(items_in(call.messages[0].content)) for call in client.calls]
    assert all(least <= size <= most for size in sizes)
    assert last <= most


def test_two_rows_need_two_calls_at_most():
    client = ScriptedClient(label)
    assert len(map_rows([{"text": "n 1"}, {"text": "n 2"}], "{{text}}", schema=SCHEMA, client=client)) == 2
    assert len(client.calls) <= 2


def test_a_job_never_has_more_calls_in_flight_than_max_concurrent(tmp_path):
    client = ScriptedClient(label, latency_s=0.02)  # long beside what a call costs on a busy machine
    source = write_csv(tmp_path / "in.csv", [f"number {n}" for n in range(2_000)])
    report = job(source, tmp_path / "out.csv", client, rows_per_call=1, max_concurrent=30).report
    assert report.answered == 2_000
    assert 10 < client.most_in_flight <= 30


@pytest.mark.parametrize("budget", [0, -1, float("nan"), float("inf")])
def test_a_budget_that_is_not_a_number_above_0_is_refused(budget):
    with pytest.raises(SettingsError, match="must be a number above 0"):
        map_rows([{"text": "n 1"}], "{{text}}", client=ScriptedClient([]), budget=budget)


def test_a_job_that_ends_before_its_first_answer_leaves_no_journal(rows, tmp_path):
    client = ScriptedClient(lambda _call: AuthenticationFailed("wrong key"))
    with pytest.raises(JobStopped, match="no row was answered"):
        job(rows, tmp_path / "out.csv", client)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]
    job(rows, tmp_path / "out.csv", ScriptedClient(label))


def test_a_journal_without_an_answer_is_replaced_without_resume(rows, tmp_path):
    """As it is left by a session that was killed before its first answer."""
    job(rows, tmp_path / "out.csv", ScriptedClient(label), limit=5)
    journal = tmp_path / "out.csv.journal"
    first_lines = [line for line in journal.read_bytes().splitlines(keepends=True) if b'"a"' not in line]
    journal.write_bytes(b"".join(first_lines))
    (tmp_path / "out.csv").unlink()
    assert job(rows, tmp_path / "out.csv", ScriptedClient(label)).report.asked == 100


def test_a_file_that_is_not_a_journal_is_refused_and_kept(rows, tmp_path):
    (tmp_path / "out.csv.journal").write_text("my own notes\n")
    with pytest.raises(JournalError, match="no journal"):
        job(rows, tmp_path / "out.csv", ScriptedClient(label))
    assert (tmp_path / "out.csv.journal").read_text() == "my own notes\n"


def test_a_cut_answer_can_be_retried_with_a_higher_cap(rows, tmp_path):
    def cut(call):
        if "number 7" in call.messages[0].content and call.max_output_tokens == 10:
            return Reply(
                text='{"lab', model="m", finish_reason="length", usage=Usage(calls=1, output_tokens=10)
            )
        return label(call)

    client = ScriptedClient(cut)
    job(rows, tmp_path / "out.csv", client, rows_per_call=1, max_output_tokens=10)
    assert "raise max_output_tokens" in (tmp_path / "out.csv.failed.jsonl").read_text()
    report = retry_rows(tmp_path / "out.csv.failed.jsonl", client=client, max_output_tokens=20).report
    assert (report.failed, report.asked) == (0, 11)


def test_without_a_schema_the_answer_is_text_in_one_column():
    client = ScriptedClient(lambda call: call.messages[0].content.upper())
    result = map_rows([{"a": "x"}], "Say {{a}}", client=client, rows_per_call=1, column="said")
    assert result.rows == [{"a": "x", "said": "SAY X"}]


def fails_for(*texts):
    def reply(call):
        items = items_in(call.messages[0].content)
        asked = [item["text"] for item in items.values()] or [call.messages[0].content]
        if any(text in shown for text in texts for shown in asked):
            return Refused("not this one")
        return label(call)

    return reply


def test_a_failed_row_stays_in_the_output_and_goes_to_the_dead_letters_with_its_reason(rows, tmp_path):
    report = job(rows, tmp_path / "out.csv", ScriptedClient(fails_for("number 42"))).report
    written = read_csv(tmp_path / "out.csv")
    assert [row["n"] for row in written if not row["label"]] == ["42"]
    (letter,) = map(json.loads, (tmp_path / "out.csv.failed.jsonl").read_text().splitlines())
    assert letter == {
        "row": 43,
        "kind": "Refused",
        "reason": "not this one",
        "fields": {"n": "42", "text": "number 42"},
    }
    assert (report.failed, report.failures) == (1, {"Refused": 1})


def test_failed_rows_are_retried_and_the_output_is_written_anew(rows, tmp_path):
    job(rows, tmp_path / "out.csv", ScriptedClient(fails_for("number 42")), limit=90)
    client = ScriptedClient(label)
    report = retry_rows(tmp_path / "out.csv.failed.jsonl", client=client).report
    assert (report.rows, report.failed, report.resumed, report.asked) == (90, 0, 89, 1)
    assert len(client.calls) == 1
    assert read_csv(tmp_path / "out.csv")[42]["label"] == "even"
    assert not (tmp_path / "out.csv.failed.jsonl").exists()


def test_rows_that_a_rule_answers_or_skips_cost_nothing(rows, tmp_path):
    client = ScriptedClient(label)
    report = job(
        rows,
        tmp_path / "out.csv",
        client,
        skip_when="int(n) < 10",
        rule=lambda row: {"label": "odd"} if row["n"].endswith("1") else None,
    ).report
    written = read_csv(tmp_path / "out.csv")
    assert [row["label"] for row in written[:12]] == [""] * 10 + ["even", "odd"]
    assert (report.by_rule, report.answered) == (19, 100)
    assert sum(len(items_in(call.messages[0].content)) for call in client.calls) == 81


def test_a_rule_whose_answer_does_not_meet_the_schema_fails_its_row(tmp_path):
    rows = [{"text": "number 1"}, {"text": "number 2"}]
    rule = lambda row: {"label": "blue"} if row["text"].endswith("2") else None  # noqa: E731
    report = job(rows, tmp_path / "out.jsonl", ScriptedClient(label), rule=rule).report
    assert report.failures == {"InputError": 1}


def test_several_models_vote(tmp_path):
    def opinion(call):
        if call.model == "contrary":
            return answer(call.messages[0].content, lambda _item: {"label": "odd"})
        return label(call)

    rows = [{"text": f"number {number}"} for number in range(4)]
    models = ("a", "contrary", "b")
    client = ScriptedClient(opinion)
    result = map_rows(rows, "Label {{text}}", schema=SCHEMA, model=models, client=client)
    assert [row["label"] for row in result] == ["even", "odd", "even", "odd"]
    assert [round(row["agreement"], 2) for row in result] == [0.67, 1.0, 0.67, 1.0]
    assert result.report.agreement == pytest.approx(5 / 6)


def test_a_row_that_lacks_a_field_fails_alone(tmp_path):
    rows = [{"text": "number 1"}, {"other": 1}, {"text": "number 3"}]
    report = job(rows, tmp_path / "out.jsonl", ScriptedClient(label)).report
    assert (report.answered, report.failures) == (2, {"InputError": 1})
    assert "no field 'text'" in (tmp_path / "out.jsonl.failed.jsonl").read_text()


# Pilot, budget, stops ------------------------------------------------------------------------------------------


def test_the_estimate_after_a_pilot_has_the_cost_of_the_rest_and_may_be_declined(rows, tmp_path):
    reported = []
    client = ScriptedClient(label)
    options = {"rows_per_call": 5, "pilot": 10, "prices": PRICES}
    with pytest.raises(JobStopped, match="stopped after the pilot: 10 rows"):
        job(rows, tmp_path / "out.csv", client, confirm=reported.append, **options)
    (estimate,) = reported
    assert len(client.calls) == 2
    assert estimate.rows_left == 90
    assert estimate.usd == pytest.approx(estimate.pilot_usd * 9)
    job(rows, tmp_path / "out.csv", client, confirm=lambda _estimate: True, resume=True, **options)
    assert len(client.calls) == 20
    assert len(read_csv(tmp_path / "out.csv")) == 100


def test_a_limit_can_be_lifted_without_paying_twice(rows, tmp_path):
    client = ScriptedClient(label)
    job(rows, tmp_path / "out.csv", client, limit=10, rows_per_call=10)
    assert len(read_csv(tmp_path / "out.csv")) == 10
    report = job(rows, tmp_path / "out.csv", client, resume=True, rows_per_call=10).report
    assert (report.resumed, report.asked, len(client.calls)) == (10, 90, 10)


def test_a_budget_stops_the_job_and_what_is_paid_for_is_kept(rows, tmp_path):
    client = ScriptedClient(label)
    options = {"rows_per_call": 10, "max_concurrent": 2}
    with pytest.raises(JobStopped, match="resume to go on") as caught:
        job(rows, tmp_path / "out.csv", client, budget=Budget(calls=4), **options)
    assert isinstance(caught.value.cause, BudgetExceeded)
    report = job(rows, tmp_path / "out.csv", client, resume=True, **options).report
    assert (report.resumed, report.asked, len(client.calls)) == (40, 60, 10)


def test_a_wrong_key_stops_the_job_at_once(rows, tmp_path):
    client = ScriptedClient(lambda _call: AuthenticationFailed("wrong key"))
    with pytest.raises(JobStopped, match="wrong key"):
        job(rows, tmp_path / "out.csv", client, max_concurrent=1)
    assert len(client.calls) == 1


def test_a_schema_that_the_model_cannot_meet_stops_the_job(rows, tmp_path):
    client = ScriptedClient(lambda _call: "I cannot do JSON.")
    with pytest.raises(JobStopped, match=r"none of the first 2. rows got an answer.*no JSON"):
        job(rows, tmp_path / "out.csv", client, rows_per_call=1, max_concurrent=1)


def test_a_job_in_which_every_row_failed_can_begin_anew_with_another_prompt(rows, tmp_path):
    with pytest.raises(JobStopped, match="begin anew"):
        job(rows, tmp_path / "out.csv", ScriptedClient(lambda _call: "I cannot do JSON."), rows_per_call=1)
    prompt = "Label {{text}} as odd or even"
    report = map_rows(
        rows, prompt, schema=SCHEMA, output=tmp_path / "out.csv", client=ScriptedClient(label)
    ).report
    assert report.answered == 100


def test_progress_is_reported(rows, tmp_path):
    reported = []
    job(
        rows,
        tmp_path / "out.csv",
        ScriptedClient(label),
        on_progress=reported.append,
        skip_when="int(n) < 50",
    )
    assert (reported[-1].rows, reported[-1].total, reported[-1].settled) == (100, 100, 50)


# Interruption --------------------------------------------------------------------------------------------------


def test_a_killed_job_resumes_and_loses_repeats_and_pays_twice_for_no_row(tmp_path):
    texts = [f"number {number}" for number in range(200)]
    source, output = write_csv(tmp_path / "in.csv", texts), tmp_path / "out.csv"
    journal = Path(f"{output}.journal")
    command = [sys.executable, str(Path(__file__).with_name("bulk_job.py")), str(source), str(output)]
    with OpenAIServer(lambda request: answer(request.prompt, parity), latency_s=0.05) as server:
        kills = 0
        while kills < 2:
            with subprocess.Popen([*command, server.base_url], stdout=subprocess.PIPE) as process:
                before = journal.stat().st_size if journal.exists() else 0
                while not journal.exists() or journal.stat().st_size < before + 1_500:
                    assert process.poll() is None
                    time.sleep(0.005)
                process.kill()
            kills += 1
        answered = {key for line in journal.read_bytes().splitlines() if b'"a"' in line and line.endswith(b"}")
                    for key in json.loads(line)["a"]}  # fmt: skip
        asked_before = [item["text"] for prompt in server.prompts for item in items_in(prompt).values()]
        done = subprocess.run([*command, server.base_url], capture_output=True, text=True, check=True)
        asked_after = [item["text"] for prompt in server.prompts for item in items_in(prompt).values()]
    assert done.stdout.split() == [str(200 - len(answered)), str(len(answered))]
    assert 0 < len(answered) < 200
    assert len(asked_after) - len(asked_before) == 200 - len(answered)
    assert len(asked_before) <= len(answered) + 2 * 4 * 5
    assert [row["text"] for row in read_csv(output)] == texts
    assert all(row["label"] == parity(row)["label"] for row in read_csv(output))


def test_two_processes_on_one_checkpoint_are_refused(rows, tmp_path):
    from rlm.journal.log import Journal

    with Journal.open(tmp_path / "out.csv.journal", kind="bulk"), pytest.raises(JournalLocked):
        job(rows, tmp_path / "out.csv", ScriptedClient(label), resume=True)


def test_a_finished_job_can_be_resumed_for_nothing(rows, tmp_path):
    job(rows, tmp_path / "out.csv", ScriptedClient(label))
    client = ScriptedClient(label)
    report = job(rows, tmp_path / "out.csv", client, resume=True).report
    assert (report.resumed, client.calls) == (100, [])


def test_another_task_does_not_resume_from_this_journal(rows, tmp_path):
    job(rows, tmp_path / "out.csv", ScriptedClient(label))
    with pytest.raises(InputError, match="answers of another job: its prompt"):
        map_rows(
            rows, "Judge {{text}}", schema=SCHEMA, output=tmp_path / "out.csv", model="m",
            client=ScriptedClient(label), resume=True,
        )  # fmt: skip


def test_a_full_disk_is_a_clear_error_and_nothing_paid_for_is_lost(rows, tmp_path):
    script = (
        "import resource, signal, sys; sys.path[:0] = ['tests/support', 'tests/bulk']\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))\n"
        "from test_engine import *\n"
        f"job({str(rows)!r}, {str(tmp_path / 'out.csv')!r}, ScriptedClient(label), rows_per_call=5, max_concurrent=1)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "JournalError" in done.stderr
    assert "cannot be written: File too large" in done.stderr
    client = ScriptedClient(label)
    report = job(rows, tmp_path / "out.csv", client, resume=True).report
    assert report.resumed > 10
    assert len(read_csv(tmp_path / "out.csv")) == 100


def test_a_disk_that_is_too_full_for_the_output_costs_no_answer(tmp_path):
    source = write_csv(tmp_path / "in.csv", [f"{'long ' * 60}number {number}" for number in range(100)])
    script = (
        "import resource, signal, sys; sys.path[:0] = ['tests/support', 'tests/bulk']\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "from test_engine import *\n"
        f"job({str(source)!r}, {str(tmp_path / 'out.csv')!r}, ScriptedClient(label), rows_per_call=5, max_concurrent=1)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "OutputError" in done.stderr.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.csv.journal"]
    client = ScriptedClient(label)
    report = job(source, tmp_path / "out.csv", client, resume=True).report
    assert report.resumed > 10
    assert len(read_csv(tmp_path / "out.csv")) == 100


# Bad input, before anything is spent ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("text\n", "has no rows"),
        ("txt\na\n", r"asks for \{\{text\}\}"),
        ("text,text\na,b\n", "two columns"),
        ("text\na\n" * 1 + 'b,"c\n', "line 3"),
        ("text,label\na,b\n", "already has a column 'label'"),
    ],
)
def test_bad_input_is_found_before_anything_is_spent(tmp_path, content, message):
    source = tmp_path / "in.csv"
    source.write_text(content)
    client = ScriptedClient(label)
    with pytest.raises(InputError, match=message):
        job(source, tmp_path / "out.csv", client)
    assert client.calls == []
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_an_output_that_exists_is_not_overwritten_unasked(rows, tmp_path):
    (tmp_path / "out.csv").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        job(rows, tmp_path / "out.csv", ScriptedClient(label))
    assert (tmp_path / "out.csv").read_text() == "mine"
    job(rows, tmp_path / "out.csv", ScriptedClient(label), overwrite=True)
    assert len(read_csv(tmp_path / "out.csv")) == 100


def test_bad_input_does_not_cost_the_answers_that_overwriting_would_forget(rows, tmp_path):
    job(rows, tmp_path / "out.csv", ScriptedClient(label))
    empty = tmp_path / "empty.csv"
    empty.write_text("text\n")
    with pytest.raises(InputError):
        job(empty, tmp_path / "out.csv", ScriptedClient(label), overwrite=True)
    report = job(rows, tmp_path / "out.csv", ScriptedClient([]), resume=True).report
    assert report.resumed == 100


def test_overwriting_never_removes_a_file_that_is_not_a_journal(rows, tmp_path):
    (tmp_path / "out.csv.journal").write_text("my own notes\n")
    with pytest.raises(JournalError, match="no journal"):
        job(rows, tmp_path / "out.csv", ScriptedClient(label), overwrite=True)
    assert (tmp_path / "out.csv.journal").read_text() == "my own notes\n"


def test_samples_are_never_served_from_the_cache():
    with pytest.raises(SettingsError, match="first sample"):
        map_rows(
            [{"a": 1}], "{{a}}", samples=2, client=ScriptedClient([]), scheduler=SchedulerSettings(cache="on")
        )


def test_the_input_is_never_the_output(rows):
    with pytest.raises(OutputError, match="is the input"):
        job(rows, rows, ScriptedClient(label), overwrite=True)


def test_a_journal_of_an_unfinished_job_is_not_thrown_away_unasked(rows, tmp_path):
    with pytest.raises(JobStopped):
        job(rows, tmp_path / "out.csv", ScriptedClient(label), budget=Budget(calls=1), max_concurrent=1)
    with pytest.raises(InputError, match="resume that one"):
        job(rows, tmp_path / "out.csv", ScriptedClient(label))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"schema": "label: strr"}, SchemaError),
        ({"skip_when": "__import__('os')"}, InputError),
        ({"skip_when": "lang != 'en'"}, InputError),
        ({"skip_when": "len(row['no such']) < 3"}, InputError),
        ({"samples": 0}, SettingsError),
        ({"rows_per_call": 0}, SettingsError),
        ({"model": ()}, SettingsError),
        ({"output": "no/such/folder/out.csv"}, OutputError),
        ({"output": "out.docx"}, InputError),
        ({"checkpoint": "/proc/none"}, JournalError),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_spent(options, error):
    client = ScriptedClient(label)
    with pytest.raises(error):
        map_rows([{"text": "number 1"}], "Label {{text}}", client=client, **options)
    assert client.calls == []


def test_a_key_is_never_written(rows, tmp_path):
    secret = "sk-verysecretkey1234567890"
    with OpenAIServer(lambda request: answer(request.prompt, parity)) as server:
        map_rows(
            rows, "Label {{text}}", schema=SCHEMA, output=tmp_path / "out.csv", api_key=secret,
            base_url=server.base_url,
        )  # fmt: skip
        assert f"Bearer {secret}" in server.keys
    assert all(secret not in path.read_text() for path in tmp_path.iterdir())


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out.xlsx", "out.tsv", "out.json"])
def test_any_format_can_be_written_from_any_other(rows, tmp_path, name):
    job(rows, tmp_path / name, ScriptedClient(label), limit=5)
    (labels,) = {tuple(row["label"] for row in as_source(tmp_path / name).rows())}
    assert labels == ("even", "odd", "even", "odd", "even")
