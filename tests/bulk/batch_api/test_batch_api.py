from __future__ import annotations

import json

import pytest
from labelling import answer, items_in
from openai_batch_server import BatchServer, refusing_schemas

from rlm.bulk import amap_rows
from rlm.bulk.batch_api.passes import BatchAPI
from rlm.errors import AuthenticationFailed, BadRequest, BudgetExceeded, JobStopped, SettingsError
from rlm.metering.prices import Price
from rlm.scheduler.budget import Budget
from rlm.testing.scripted import ScriptedClient

pytestmark = pytest.mark.anyio

PRICES = {"m": Price(input=1.0, output=1.0), "strong": Price(input=2.0, output=2.0)}
NEVER = ScriptedClient([])


def parity(item):
    text = item["text"] if isinstance(item, dict) else item.split("\n")[0]
    return {"label": "odd" if int(text.split()[-1]) % 2 else "even"}


def label(body):
    return answer(body["messages"][-1]["content"], parity)


def rows(number):
    return [{"text": f"number {n}"} for n in range(number)]


async def job(
    server,
    tmp_path,
    number=40,
    *,
    resume=False,
    budget=None,
    schema="label: 'odd'|'even'",
    escalate_to=None,
    **options,
):
    async with BatchAPI(
        api_key="k",
        base_url=server.base_url,
        prices=PRICES,
        first_poll_s=0.001,
        longest_poll_s=0.01,
        **options,
    ) as api:
        return await amap_rows(
            rows(number),
            "Label {{text}}",
            schema=schema,
            escalate_to=escalate_to,
            checkpoint=tmp_path / "journal",
            model="m",
            rows_per_call=5,
            client=NEVER,
            prices=PRICES,
            budget=budget,
            resume=resume,
            max_output_tokens=100,
            ask_packs=api,
        )


def assert_right(result, number=40):
    assert [row["label"] for row in result] == ["odd" if n % 2 else "even" for n in range(number)]


async def test_rows_are_asked_in_a_file_and_cost_half(tmp_path):
    with BatchServer(label, polls=3, output_in_reverse=True) as server:
        result = await job(server, tmp_path)
    assert_right(result)
    assert len(server.batches) == 1
    assert server.requests == result.report.usage.calls == 8
    assert result.report.cost_usd == pytest.approx(result.report.usage.total_tokens / 1e6 / 2)


async def test_files_keep_to_the_limits_of_the_api(tmp_path):
    with BatchServer(label, enqueued_tokens=700) as server:
        result = await job(server, tmp_path, 100, max_requests=3, enqueued_tokens=800)
    assert_right(result, 100)
    sizes = [len(server.files[batch["input_file_id"]].splitlines()) for batch in server.batches.values()]
    assert sum(sizes) == 20
    assert max(sizes) <= 3
    assert all(batch["status"] == "completed" for batch in server.batches.values())


async def test_a_file_is_cut_at_its_bytes(tmp_path):
    with BatchServer(label) as server:
        assert_right(await job(server, tmp_path, max_bytes=3_000))
    assert len(server.batches) > 2
    assert all(len(server.files[batch["input_file_id"]]) <= 3_000 for batch in server.batches.values())


async def test_what_expired_is_asked_again_and_what_was_answered_is_not(tmp_path):
    with BatchServer(label, expire=[3, 0, 2]) as server:
        result = await job(server, tmp_path)
    assert_right(result)
    assert server.requests == 8
    assert [batch["status"] for batch in server.batches.values()] == ["expired"] * 3 + ["completed"]


async def test_batches_that_always_expire_end_the_job(tmp_path):
    with BatchServer(label, expire=[0] * 10) as server, pytest.raises(JobStopped, match="3 times in a row"):
        await job(server, tmp_path)


async def test_answers_that_cannot_be_used_are_asked_again_in_smaller_packs(tmp_path):
    def picky(body):
        items = items_in(body["messages"][-1]["content"])
        if len(items) > 1 and any(item["text"].endswith("7") for item in items.values()):
            return "I would rather not."
        return label(body)

    with BatchServer(picky) as server:
        assert_right(await job(server, tmp_path))


async def test_a_row_that_never_gets_a_valid_answer_fails_alone(tmp_path):
    def stubborn(body):
        return answer(
            body["messages"][-1]["content"],
            lambda item: "?" if "number 13" in str(item) else parity(item),
        )

    with BatchServer(stubborn) as server:
        result = await job(server, tmp_path)
    assert result.report.failures == {"InvalidAnswer": 1}
    assert [row["text"] for row in result if row["label"] is None] == ["number 13"]


async def test_a_request_that_is_refused_costs_only_its_row(tmp_path):
    def refuse(body):
        if "number 13" in body["messages"][-1]["content"]:
            return 400, {"error": {"message": "no", "code": "content_filter"}}
        return label(body)

    with BatchServer(refuse) as server:
        result = await job(server, tmp_path)
    assert result.report.failures == {"Refused": 1}
    assert result.report.answered == 39


async def test_an_endpoint_that_takes_no_schema_is_done_without(tmp_path):
    with BatchServer(refusing_schemas(label)) as server:
        assert_right(await job(server, tmp_path))
    assert len(server.batches) == 2


async def test_a_job_that_only_submits_is_collected_later_by_another_session(tmp_path):
    with BatchServer(label) as server:
        server.hold = True
        for resume in (False, True):
            with pytest.raises(JobStopped, match="1 batch is submitted"):
                await job(server, tmp_path, wait=False, resume=resume)
        server.hold = False
        result = await job(server, tmp_path, resume=True)
    assert_right(result)
    assert (len(server.batches), server.requests, result.report.usage.calls) == (1, 8, 8)


async def test_what_one_model_cannot_answer_is_handed_on_in_a_batch_of_its_own(tmp_path):
    def reply(body):
        if body["model"] == "strong":
            return label(body)
        return answer(body["messages"][-1]["content"], lambda item: parity(item) if "1" in str(item) else {})

    with BatchServer(reply) as server:
        result = await job(server, tmp_path, 20, escalate_to="strong")
    assert_right(result, 20)
    assert [row["escalated"] for row in result] == ["1" not in str(n) for n in range(20)]


async def test_a_session_that_died_before_it_knew_its_batch_finds_it_by_its_tag(tmp_path):
    with BatchServer(label) as server:
        server.hold = True
        with pytest.raises(JobStopped):
            await job(server, tmp_path, wait=False)
        lines = (tmp_path / "journal").read_bytes().splitlines(keepends=True)
        assert b"batch started" in lines[-1]
        (tmp_path / "journal").write_bytes(b"".join(lines[:-1]))
        server.hold = False
        assert_right(await job(server, tmp_path, resume=True))
    assert (len(server.batches), server.requests) == (1, 8)


async def test_a_session_that_died_before_the_batch_was_started_starts_it_anew(tmp_path):
    with BatchServer(label) as server:
        server.problem = {"message": "bad key", "code": "invalid_api_key"}
        with pytest.raises(JobStopped, match="does not accept the API key") as caught:
            await job(server, tmp_path)
        assert isinstance(caught.value.cause, AuthenticationFailed)
        server.problem = None
        assert_right(await job(server, tmp_path, resume=True))
    assert server.requests == 8


async def test_a_session_that_died_while_it_collected_pays_for_nothing_twice(tmp_path):
    with BatchServer(label) as server:
        await job(server, tmp_path)
        lines = (tmp_path / "journal").read_bytes().splitlines(keepends=True)
        answers = [index for index, line in enumerate(lines) if b'"answers"' in line]
        (tmp_path / "journal").write_bytes(b"".join(lines[: answers[3]]))
        result = await job(server, tmp_path, resume=True)
    assert_right(result)
    assert (server.requests, result.report.usage.calls, result.report.resumed) == (8, 8, 15)


async def test_an_endpoint_that_is_out_of_reach_for_a_while_does_not_end_the_wait(tmp_path):
    with BatchServer(label, polls=2) as server:
        server.outages = 5
        result = await job(server, tmp_path)
    assert_right(result)
    assert server.requests == 8


async def test_an_endpoint_that_stays_out_of_reach_ends_the_wait_and_the_batch_is_collected_later(tmp_path):
    with BatchServer(label) as server:
        server.outages = 1_000_000
        with pytest.raises(JobStopped, match=r"resume"):
            await job(server, tmp_path, out_of_reach_s=0.1)
        server.outages = 0
        result = await job(server, tmp_path, resume=True)
    assert_right(result)
    assert server.requests == 8


async def test_results_that_break_off_are_read_again_and_booked_once(tmp_path):
    with BatchServer(label) as server:
        server.cut_downloads = 2
        result = await job(server, tmp_path)
    assert_right(result)
    assert (server.requests, result.report.usage.calls) == (8, 8)


async def test_unusable_answers_of_results_that_break_off_are_noted_once(tmp_path):
    asked = []

    def often_wrong(body):
        asked.append(body)
        return label(body) if len(asked) > 8 else "no JSON"

    with BatchServer(often_wrong) as server:
        server.cut_downloads = 2
        result = await job(server, tmp_path)
    assert_right(result)
    assert result.report.failed == 0


async def test_a_cancelled_batch_gives_what_it_has_and_the_rest_is_asked_anew(tmp_path):
    with BatchServer(label) as server:
        server.hold = True
        with pytest.raises(JobStopped):
            await job(server, tmp_path, wait=False)
        server.answered_before_cancel = 3
        async with BatchAPI(api_key="k", base_url=server.base_url) as api:
            assert await api.cancel(tmp_path / "journal") == 1
            assert await api.cancel(tmp_path / "journal") == 0
        server.hold = False
        assert_right(await job(server, tmp_path, resume=True))
    assert [batch["status"] for batch in server.batches.values()] == ["cancelled", "completed"]
    assert server.requests == 8


async def test_a_budget_is_kept_and_what_was_sent_is_collected(tmp_path):
    with BatchServer(label) as server:
        with pytest.raises(JobStopped) as caught:
            await job(server, tmp_path, budget=Budget(calls=5))
        assert isinstance(caught.value.cause, BudgetExceeded)
        assert server.requests == 5
        result = await job(server, tmp_path, resume=True)
    assert_right(result)
    assert server.requests == 8
    assert result.report.resumed == 25


async def test_a_batch_that_is_refused_as_a_whole_is_a_clear_error(tmp_path, monkeypatch):
    with BatchServer(label) as server:
        monkeypatch.setattr(
            server, "problem_of", lambda _batch: {"code": "invalid", "message": "the file is odd"}
        )
        with pytest.raises(JobStopped, match=r"refuses the batch .*: the file is odd") as caught:
            await job(server, tmp_path)
    assert isinstance(caught.value.cause, BadRequest)


def test_limits_above_those_of_the_api_are_refused():
    for wrong in ({"max_requests": 50_001}, {"max_bytes": 200_000_001}, {"enqueued_tokens": 0}):
        with pytest.raises(SettingsError):
            BatchAPI(api_key="k", **wrong)


async def test_no_key_is_written(tmp_path):
    with BatchServer(label) as server:
        await job(server, tmp_path)
    assert all(
        json.loads(line) and b"Bearer" not in line
        for line in (tmp_path / "journal").read_bytes().splitlines()
    )
