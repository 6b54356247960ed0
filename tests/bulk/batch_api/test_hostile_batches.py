"""What a Batch API may do to a job, and when a session may die."""

from __future__ import annotations

import json
from contextlib import aclosing

import anyio
import pytest
from labelling import SCHEMA, answer, label, parity
from openai_batch_server import BatchServer, refusing_schemas

from rlm.bulk import JobGroup, amap_rows, astream_rows
from rlm.bulk.batch_api.passes import BatchAPI
from rlm.errors import InputError, JobStopped
from rlm.metering.prices import Price
from rlm.scheduler.budget import Budget
from rlm.testing.scripted import ScriptedClient

pytestmark = pytest.mark.anyio


PRICES = {"m": Price(input=1.0, output=1.0)}
NEVER = ScriptedClient([])


class Died(BaseException):
    """A session that was killed: nothing of it runs any more."""


def reply_of(body):
    return answer(body["messages"][-1]["content"], parity)


def rows(number):
    return [{"text": f"number {n}"} for n in range(number)]


def opened(server, **options):
    return BatchAPI(
        api_key="k",
        base_url=server.base_url,
        prices=PRICES,
        first_poll_s=0.001,
        longest_poll_s=0.01,
        **options,
    )


async def labelled(api, folder, number, *, resume=False):
    return await amap_rows(
        rows(number), "Label {{text}}", schema=SCHEMA, checkpoint=folder / "journal", model="m", rows_per_call=5,
        client=NEVER, prices=PRICES, max_output_tokens=100, ask_packs=api, resume=resume,
    )  # fmt: skip


async def job(server, folder, number=40, *, resume=False, **options):
    async with opened(server, **options) as api:
        return await labelled(api, folder, number, resume=resume)


def assert_right(result, number=40):
    assert [row["label"] for row in result] == ["odd" if n % 2 else "even" for n in range(number)]


# Lines of results ----------------------------------------------------------------------------------------------


def with_breaks(line):
    """As an API writes it that leaves all but ASCII's control codes as they are."""
    line["response"]["body"]["note"] = "a\u2028b\u2029c\x85d"
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


async def test_what_ends_a_line_elsewhere_ends_no_line_of_results(tmp_path):
    with BatchServer(reply_of) as server:
        server.write_line = with_breaks
        assert_right(await job(server, tmp_path, out_of_reach_s=0.2))
    assert server.requests == 8


async def test_a_last_line_may_have_no_end(tmp_path):
    with BatchServer(reply_of) as server:
        server.write_line = lambda line: (b"\r\n" if server.files else b"") + json.dumps(line).encode()
        # Only the first file of results has one line; so ask in one request.
        assert_right(await job(server, tmp_path, 5, out_of_reach_s=0.2), 5)


@pytest.mark.parametrize(
    "odd", [b"\n", b"null\n", b"<html>\n", b'{"custom_id": 7}\n', b'{"custom_id": "rlm-1-0"}\n']
)
async def test_an_odd_line_costs_no_answer_beside_it(tmp_path, odd):
    with BatchServer(reply_of) as server:
        server.write_line = lambda line: odd + json.dumps(line).encode() + b"\n"
        assert_right(await job(server, tmp_path, out_of_reach_s=0.2))
    assert server.requests == 8


@pytest.mark.parametrize(
    "spoil",
    [
        lambda line: {**line, "custom_id": line["custom_id"] + "9"},
        lambda line: {**line, "custom_id": None},
        lambda line: {**line, "response": None},
        lambda line: {**line, "response": {"status_code": 200, "body": None}},
        lambda line: {**line, "response": {"status_code": "200", "body": {}}},
        lambda line: {**line, "response": {"status_code": 200, "body": {"choices": []}}},
    ],
)
async def test_a_line_that_answers_nothing_is_asked_again_and_labels_no_other_row(tmp_path, spoil):
    spoiled = []

    def write_line(line):
        if len(spoiled) < 3:
            spoiled.append(line)
            line = spoil(line)
        return json.dumps(line).encode() + b"\n"

    with BatchServer(reply_of) as server:
        server.write_line = write_line
        assert_right(await job(server, tmp_path, out_of_reach_s=0.2))
    assert server.requests == 11


# Sessions that die ---------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_session_that_dies_at_any_point_loses_nothing_and_pays_for_nothing_twice(
    tmp_path, monkeypatch
):
    """Killed before and after everything that it tells the journal or the provider, in turn."""
    point = 0
    while True:
        folder = tmp_path / str(point)
        folder.mkdir()
        with BatchServer(reply_of) as server:
            with monkeypatch.context() as patches:
                died = dies_at(point, patches)
                try:
                    await job(server, folder, 10, max_requests=1)
                except* Died:
                    pass
            result = await job(server, folder, 10, resume=True)
        assert_right(result, 10)
        # What was enqueued without a batch, or found as one, is asked once: 2 packs, whatever the files are.
        assert (server.requests, result.report.usage.calls) == (2, 2), f"killed at point {point}"
        if not died:
            break
        point += 1
    assert point > 12


def dies_at(point, patches):
    """Let the session die at this point; the list that it gives is empty where there is no such point."""
    from rlm.clients.openai_batches import OpenAIBatches
    from rlm.journal.log import Journal

    left = [point]
    died = []

    def pass_by():
        if left[0] == 0:
            died.append(point)
        left[0] -= 1
        if left[0] < 0:
            raise Died

    append, start, lines = Journal.append, OpenAIBatches.start, OpenAIBatches.lines

    def dying_append(self, record):
        pass_by()
        offset = append(self, record)
        pass_by()
        return offset

    async def dying_start(self, *arguments):
        pass_by()
        state = await start(self, *arguments)
        pass_by()
        return state

    async def dying_lines(self, *arguments):
        async with aclosing(lines(self, *arguments)) as results:
            async for line in results:
                pass_by()
                yield line

    patches.setattr(Journal, "append", dying_append)
    patches.setattr(OpenAIBatches, "start", dying_start)
    patches.setattr(OpenAIBatches, "lines", dying_lines)
    return died


async def test_a_resumed_batch_whose_schema_was_refused_is_asked_without_it(tmp_path):
    with BatchServer(refusing_schemas(reply_of)) as server:
        server.hold = True
        with pytest.raises(JobStopped):
            await job(server, tmp_path, 1, wait=False)
        server.hold = False
        assert_right(await job(server, tmp_path, 1, resume=True), 1)


async def test_answers_to_requests_without_a_schema_say_nothing_of_requests_with_one(tmp_path):
    with BatchServer(refusing_schemas(reply_of)) as server:
        async with opened(server, wait=False, max_requests=2) as api:
            server.hold = True
            api.plain_models.refusing.add("m")
            with pytest.raises(JobStopped):
                await labelled(api, tmp_path, 10)
        server.hold = False
        assert_right(await job(server, tmp_path, 40, resume=True))


async def test_rows_of_a_batch_that_is_out_are_not_asked_in_another_way_as_well(tmp_path):
    direct = ScriptedClient(label)
    options = {"schema": SCHEMA, "checkpoint": tmp_path / "journal", "model": "m", "resume": True}
    with BatchServer(reply_of) as server:
        server.hold = True
        with pytest.raises(JobStopped):
            await job(server, tmp_path, 10, wait=False)
        with pytest.raises(InputError, match=r"1 batch of an earlier session is not collected.*--batch-api"):
            await amap_rows(rows(10), "Label {{text}}", client=direct, **options)
        server.hold = False
        assert_right(await job(server, tmp_path, 10, resume=True), 10)
    result = await amap_rows(rows(12), "Label {{text}}", client=direct, **options)
    assert_right(result, 12)
    assert (server.requests, len(direct.calls)) == (2, 1)


async def test_a_batch_that_the_account_does_not_have_is_not_asked_again_unasked(tmp_path):
    with BatchServer(reply_of) as server:
        server.hold = True
        with pytest.raises(JobStopped):
            await job(server, tmp_path, 10, wait=False)
        server.hold = False
        server.batches.clear()
        with pytest.raises(JobStopped, match=r"has no batch batch_\d+ \(404\).*--cancel"):
            await job(server, tmp_path, 10, resume=True)
        assert not server.batches
        async with opened(server) as api:
            assert await api.cancel(tmp_path / "journal") == 1
        assert_right(await job(server, tmp_path, 10, resume=True), 10)


async def test_results_that_are_not_kept_any_more_are_asked_again(tmp_path):
    with BatchServer(reply_of) as server:
        server.hold = True
        with pytest.raises(JobStopped):
            await job(server, tmp_path, 10, wait=False)
        server.hold = False
        (number,) = server.batches
        server.look(number)
        del server.files[server.batches[number]["output_file_id"]]
        assert_right(await job(server, tmp_path, 10, resume=True), 10)
    assert len(server.batches) == 2


async def test_an_endpoint_without_a_batch_api_says_so(tmp_path, monkeypatch):
    with BatchServer(reply_of) as server:
        monkeypatch.setattr(server, "post", lambda *_: (404, {"error": {"message": "Not Found"}}))
        with pytest.raises(JobStopped, match="has no Batch API there"):
            await job(server, tmp_path, 10)


# Several opinions, several jobs --------------------------------------------------------------------------------


async def test_each_opinion_has_all_tries_of_its_own(tmp_path):
    def by_model(body):
        prompt = body["messages"][-1]["content"]
        if body["model"] == "a" or len(first_asks) < 2:
            if body["model"] == "b":
                first_asks.append(prompt)
            return answer(prompt, lambda item: "?" if "number 3" in str(item) else parity(item))
        return answer(prompt, parity)

    first_asks = []
    with BatchServer(by_model) as server:
        async with opened(server) as api:
            result = await amap_rows(
                rows(5), "Label {{text}}", schema=SCHEMA, model=("a", "b"), rows_per_call=5,
                client=NEVER, ask_packs=api,
            )  # fmt: skip
    assert [row["label"] for row in result] == ["even", "odd", "even", "odd", "even"]


async def test_two_opinions_are_submitted_side_by_side_and_resumed(tmp_path):
    options = {"schema": SCHEMA, "model": ("a", "b"), "checkpoint": tmp_path / "journal"}
    with BatchServer(reply_of) as server:
        for stops in (True, True, False):
            server.hold = stops
            async with opened(server, wait=not stops) as api:
                ask = {"client": NEVER, "ask_packs": api, "resume": True, "rows_per_call": 5 if stops else 3}
                if stops:
                    with pytest.raises(JobStopped, match="2 batches are submitted"):
                        await amap_rows(rows(20), "Label {{text}}", **options, **ask)
                else:
                    result = await amap_rows(rows(20), "Label {{text}}", **options, **ask)
    assert_right(result, 20)
    assert server.requests == 4 + 4


async def test_opinions_of_one_model_share_the_tokens_that_may_be_enqueued():
    with BatchServer(reply_of, enqueued_tokens=700) as server:
        async with opened(server, enqueued_tokens=700, max_requests=1) as api:
            result = await amap_rows(
                rows(20), "Label {{text}}", schema=SCHEMA, model="m", samples=3, temperature=0.5,
                rows_per_call=5, client=NEVER, ask_packs=api,
            )  # fmt: skip
    assert_right(result, 20)
    assert server.requests == len(server.batches) == 12  # none was refused


async def test_a_row_with_several_opinions_is_reported_once_with_the_result_of_all():
    with BatchServer(reply_of) as server:
        async with opened(server) as api, astream_rows(
            [*rows(20), *rows(20)], "Label {{text}}", schema=SCHEMA, model=("a", "b", "c"), rows_per_call=3,
            client=NEVER, ask_packs=api,
        ) as finished:  # fmt: skip
            told = [row async for row in finished]
    assert sorted(row.index for row in told) == list(range(40))
    assert {row.row["agreement"] for row in told} == {1.0}


async def test_an_unknown_model_stops_the_job_at_once_and_submitted_batches_are_collected_later(
    tmp_path,
):
    asked, has_b = [], False

    def by_model(body):
        asked.append(body["model"])
        if body["model"] == "b" and not has_b:
            return 404, {"error": {"code": "model_not_found"}}
        return reply_of(body)

    options = {"schema": SCHEMA, "model": ("a", "b"), "checkpoint": tmp_path / "journal", "client": NEVER}
    with BatchServer(by_model) as server:
        async with opened(server) as api:
            with pytest.raises(JobStopped):
                await amap_rows(rows(20), "Label {{text}}", ask_packs=api, **options)
        mended = {**options, "resume": True}
        has_b = True
        async with opened(server) as api:
            result = await amap_rows(rows(20), "Label {{text}}", ask_packs=api, **mended)
    assert_right(result, 20)
    assert asked.count("a") == 1


async def test_a_job_that_only_submits_leaves_its_group_the_rest_of_the_budget():
    group = JobGroup(client=ScriptedClient(label), budget=Budget(calls=5), prices=PRICES)
    options = {"schema": SCHEMA, "model": "m", "max_output_tokens": 100}
    with BatchServer(reply_of) as server, anyio.fail_after(5):
        server.hold = True
        async with group as jobs, opened(server, wait=False) as api:
            with pytest.raises(JobStopped):
                await jobs.amap_rows(rows(20), "Label {{text}}", rows_per_call=5, ask_packs=api, **options)
            assert len(await jobs.amap_rows(rows(4), "Label {{text}}", **options)) == 4
            with pytest.raises(JobStopped, match="used up"):
                await jobs.amap_rows(rows(4), "Label {{text}}", **options)
    assert group.cost_summary()["possibly_billed"]["calls"] == 4


async def test_a_batch_that_cannot_be_started_leaves_its_group_the_whole_budget():
    group = JobGroup(client=ScriptedClient(label), budget=Budget(calls=4), prices=PRICES)
    options = {"schema": SCHEMA, "model": "m", "max_output_tokens": 100}
    with BatchServer(reply_of) as server, anyio.fail_after(5):
        server.problem = {"message": "bad key", "code": "invalid_api_key"}
        async with group as jobs, opened(server) as api:
            with pytest.raises(JobStopped):
                await jobs.amap_rows(rows(20), "Label {{text}}", rows_per_call=5, ask_packs=api, **options)
            assert len(await jobs.amap_rows(rows(4), "Label {{text}}", **options)) == 4
    assert group.cost_summary()["possibly_billed"]["calls"] == 0
