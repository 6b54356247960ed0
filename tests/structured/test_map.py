from __future__ import annotations

import json
import re

import anyio
import pytest

from rlm.errors import (
    AuthenticationFailed,
    BadRequest,
    BudgetExceeded,
    ContextTooLong,
    InvalidAnswer,
    OutputTruncated,
    RateLimited,
    Refused,
    ServerError,
    SettingsError,
)
from rlm.events import CallStarted
from rlm.scheduler.budget import Budget
from rlm.scheduler.scheduler import Scheduler
from rlm.settings import SchedulerSettings
from rlm.structured.leftovers import Item
from rlm.structured.map import MapSettings, PlainModels, ask_checked, fill_packs, map_items, map_packs
from rlm.structured.packs import Task
from rlm.structured.schema import schema_of
from rlm.testing.scripted import ScriptedClient
from rlm.values import Call, Message

pytestmark = pytest.mark.anyio

SETTINGS = MapSettings(model="small")
ONE_TRY = SchedulerSettings(max_attempts=1)


def items_in(call):
    """The items of a prompt: id → item, and {1: the text} where one item is asked alone."""
    prompt = call.messages[0].content
    lines = re.findall(r'^\{"id": .*\}$', prompt, re.MULTILINE)
    if "\n\nItems:\n" not in prompt:
        return {1: prompt.split("\n\n")[1]}
    return {entry["id"]: entry["item"] for entry in map(json.loads, lines) if "item" in entry}


def answer(call, value_of):
    """A right reply: the value of each item, in the form that was asked for."""
    items = items_in(call)
    if "\n\nItems:\n" not in call.messages[0].content:
        (item,) = items.values()
        value = value_of(item)
        return json.dumps({"value": value}) if call.schema else str(value)
    return json.dumps({"results": [{"id": key, "value": value_of(item)} for key, item in items.items()]})


def upper(call):
    return answer(call, str.upper)


def tree_of(client, *, budget=None):
    return Scheduler(client, ONE_TRY).tree(run_id="r", budget=budget)


async def mapped(client, items, settings=SETTINGS, **options):
    outcomes = await map_items(tree_of(client), items, "Say it.", settings, **options)
    return [outcome.kind if outcome.failed else outcome.value for outcome in outcomes]


async def test_many_items_are_packed_into_few_calls_and_keep_their_order():
    client = ScriptedClient(upper)
    items = [f"item {number}" for number in range(60)]
    assert await mapped(client, items) == [item.upper() for item in items]
    assert len(client.calls) == 3


async def test_equal_items_are_asked_once():
    client = ScriptedClient(upper)
    assert await mapped(client, ["a", "b", "a", "a"], MapSettings(model="m", per_call=1)) == [
        "A",
        "B",
        "A",
        "A",
    ]
    assert len(client.calls) == 2


async def test_items_that_are_equal_only_in_python_stay_separate():
    client = ScriptedClient(lambda call: answer(call, repr))
    assert await mapped(client, [1, True, "1", [1], None]) == ["1", "True", "'1'", "[1]", "None"]


async def test_no_items_are_no_calls():
    client = ScriptedClient(upper)
    assert await mapped(client, []) == []
    assert client.calls == []


async def test_only_what_is_missing_or_invalid_is_asked_again():
    replies = iter(
        [
            '{"results": [{"id": 1, "value": "yes"}, {"id": 2, "value": "perhaps"}]}',
            '{"results": [{"id": 1, "value": "no"}, {"id": 2, "value": "yes"}]}',
        ]
    )
    client = ScriptedClient(lambda _call: next(replies))
    assert await mapped(client, ["a", "b", "c"], schema="'yes'|'no'") == ["yes", "no", "yes"]
    assert items_in(client.calls[1]) == {1: "b", 2: "c"}
    assert 'item 1 could not be used: must be one of "yes", "no"' in client.calls[1].messages[0].content


async def test_a_pack_that_keeps_failing_is_split_until_its_bad_item_stands_alone():
    def picky(call):
        items = items_in(call)
        return "I would rather not." if "bad" in items.values() else upper(call)

    items = [*(f"item {number}" for number in range(15)), "bad"]
    client = ScriptedClient(picky)
    values = await mapped(client, items, schema="str")
    assert values[:15] == [item.upper() for item in items[:15]]
    assert len(client.calls) <= 15


async def test_an_item_without_a_valid_answer_fails_with_the_reason_and_hurts_no_other():
    client = ScriptedClient(lambda call: answer(call, lambda item: 5 if item == "x" else "high"))
    outcomes = await map_items(tree_of(client), ["x", "y"], "Rate.", SETTINGS, schema="int")
    assert (outcomes[0].value, outcomes[0].failed) == (5, False)
    assert (outcomes[1].kind, outcomes[1].reason) == ("InvalidAnswer", 'must be a whole number, not "high"')
    assert len(client.calls) == 3


async def test_structured_output_is_asked_for_and_a_model_that_refuses_it_is_remembered():
    def plain(call):
        return BadRequest("response_format is not supported") if call.schema else upper(call)

    client, plain_models = ScriptedClient(plain), PlainModels()
    assert await mapped(client, ["a", "b"], schema="str", plain_models=plain_models) == ["A", "B"]
    assert await mapped(client, ["c", "d"], schema="str", plain_models=plain_models) == ["C", "D"]
    assert [call.schema is not None for call in client.calls] == [True, False, False]


async def test_a_request_that_is_refused_for_another_reason_is_not_repeated_for_each_item():
    client = ScriptedClient(lambda _call: BadRequest("no"))
    assert await mapped(client, ["a", "b", "c"]) == ["BadRequest"] * 3
    assert len(client.calls) == 2


@pytest.mark.parametrize("error", [Refused("not this"), ContextTooLong("too long")])
async def test_a_refused_prompt_is_split_so_that_one_item_costs_only_itself(error):
    client = ScriptedClient(lambda call: error if "bad" in items_in(call).values() else upper(call))
    assert await mapped(client, ["a", "b", "bad", "c"]) == ["A", "B", type(error).__name__, "C"]


async def test_the_whole_answers_of_a_reply_that_was_cut_are_kept():
    def cut(call):
        if len(items_in(call)) > 2:
            whole = upper(call)
            return OutputTruncated("cut", text=whole[: len(whole) // 2])
        return upper(call)

    client = ScriptedClient(cut)
    assert await mapped(client, ["a", "b", "c", "d"]) == ["A", "B", "C", "D"]
    assert "a" not in [item for call in client.calls[1:] for item in items_in(call).values()]


async def test_a_failure_that_splitting_cannot_help_fails_the_pack():
    client = ScriptedClient(lambda _call: ServerError("down", status=500))
    assert await mapped(client, ["a", "b"]) == ["ServerError", "ServerError"]
    assert len(client.calls) == 1


async def test_an_item_longer_than_the_window_is_never_sent():
    client = ScriptedClient(upper)
    settings = MapSettings(model="m", window_chars=1_000)
    assert await mapped(client, ["a", "x" * 2_000, "b"], settings) == ["A", "ContextTooLong", "B"]
    assert all("xx" not in call.messages[0].content for call in client.calls)


def test_no_more_calls_are_made_at_once_than_allowed(virtual_time):
    client = ScriptedClient(upper, latency_s=1)
    settings = MapSettings(model="m", per_call=2, max_concurrent=3)

    async def main():
        started = anyio.current_time()
        assert len(await mapped(client, [str(number) for number in range(40)], settings)) == 40
        return anyio.current_time() - started

    assert anyio.run(main, **virtual_time) == pytest.approx(7, abs=0.1)
    assert client.most_in_flight == 3


def test_a_call_that_waits_to_be_asked_again_gives_its_place_to_another(virtual_time):
    """A tenth of the first calls are told to come back after ten times the time that an answer takes."""
    refused = set()

    def sometimes(call):
        text = call.messages[0].content.split()[-1]
        if int(text) % 10 == 3 and int(text) < 100 and text not in refused:
            refused.add(text)
            return RateLimited("later", status=429, retry_after=10)
        return text

    client = ScriptedClient(sometimes, latency_s=1.0)
    tree = Scheduler(client, SchedulerSettings(max_concurrent=10)).tree(run_id="r")
    settings = MapSettings(model="m", per_call=1, max_concurrent=10)

    async def main():
        started = anyio.current_time()
        outcomes = await map_items(tree, [f"n {number}" for number in range(200)], "Say.", settings)
        assert not any(outcome.failed for outcome in outcomes)
        return anyio.current_time() - started

    assert anyio.run(main, **virtual_time) < 25  # 22 where places are given back, 31 where they are kept
    assert client.most_in_flight == 10


async def test_few_items_need_few_workers():
    """As many as may be at once are allowed, not started."""
    client = ScriptedClient(upper)
    settings = MapSettings(model="m", per_call=1, max_concurrent=100_000)
    assert [m.value for m in await map_items(tree_of(client), ["a", "b"], "Say.", settings)] == ["A", "B"]


async def test_a_map_emits_its_first_calls_as_one_batch():
    events = []

    def sometimes(call):
        if len(items_in(call)) > 1:
            return Refused("not together")
        return upper(call)

    tree = Scheduler(ScriptedClient(sometimes), ONE_TRY).tree(run_id="r", emit=events.append)
    settings = MapSettings(model="m", per_call=2, depth=1)
    await map_items(tree, ["a", "b", "c", "d"], "Say.", settings)
    started, *calls, finished = events
    assert (started.batch, started.size, started.distinct, started.depth) == (1, 2, 2, 1)
    assert (finished.batch, finished.failed) == (1, 0)
    assert [call.batch for call in calls if isinstance(call, CallStarted)].count(1) == 2


async def test_a_budget_ends_the_mapping_after_the_calls_in_flight():
    client = ScriptedClient(upper)
    tree = tree_of(client, budget=Budget(calls=3))
    with pytest.raises(BudgetExceeded):
        await map_items(tree, [str(n) for n in range(10)], "Say.", MapSettings(model="m", per_call=1))
    assert len(client.calls) == 3


async def test_what_is_settled_before_a_stop_is_handed_on():
    replies = iter(["ONE", AuthenticationFailed("wrong key"), "THREE"])
    client = ScriptedClient(lambda _call: next(replies))
    kept = []

    async def keep(settled):
        kept.extend(mapped.value for _, mapped in settled.items)

    async def packs():
        for number in range(100):
            yield [Item(number, str(number))]

    settings = MapSettings(model="m", max_concurrent=1, stops_at=(AuthenticationFailed,))
    with pytest.raises(AuthenticationFailed):
        await map_packs(tree_of(client), packs(), Task("Say."), keep, settings)
    assert kept == ["ONE"]


async def test_packs_are_pulled_only_as_fast_as_they_are_settled():
    pulled, settled_count, ahead = 0, 0, 0

    async def source():
        nonlocal pulled, ahead
        for number in range(2_000):
            pulled += 1
            ahead = max(ahead, pulled - settled_count)
            yield [Item(number, f"item {number}")]

    async def keep(settled):
        nonlocal settled_count
        settled_count += len(settled.items)

    settings = MapSettings(model="m", per_call=10, max_concurrent=5)
    task = Task("Say.")
    packs = fill_packs(source(), settings.pack_budget(task))
    await map_packs(tree_of(ScriptedClient(upper)), packs, task, keep, settings)
    assert settled_count == 2_000
    assert ahead <= (5 + 5 + 2) * 10


@pytest.mark.parametrize("broken", ["source", "sink"])
async def test_an_error_of_the_source_or_the_sink_ends_the_mapping_as_it_is(broken):
    async def packs():
        yield [Item(1, "a")]
        if broken == "source":
            raise OSError("the source is broken")

    async def keep(_settled):
        if broken == "sink":
            raise OSError("the sink is broken")

    with pytest.raises(OSError, match=f"the {broken} is broken"):
        await map_packs(tree_of(ScriptedClient(upper)), packs(), Task("Say."), keep, SETTINGS)


async def test_a_cancelled_mapping_makes_no_more_calls():
    client = ScriptedClient(upper, latency_s=10)
    with anyio.move_on_after(0.05):
        await mapped(client, [str(number) for number in range(500)], MapSettings(model="m", per_call=1))
    assert len(client.calls) == 10


@pytest.mark.parametrize("wrong", [{"per_call": 0}, {"per_call": "many"}, {"max_concurrent": True}])
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(SettingsError):
        MapSettings(model="m", **wrong)


CALL = Call(model="m", messages=(Message("user", "How many?"),))


async def test_one_call_with_a_schema_gives_the_value():
    client = ScriptedClient(['{"value": 3}'])
    assert await ask_checked(tree_of(client), CALL, schema_of("int")) == 3
    assert client.calls[0].schema is not None


async def test_an_answer_that_does_not_meet_its_schema_is_repaired_once():
    client = ScriptedClient(["about three", '{"value": 3}'])
    assert await ask_checked(tree_of(client), CALL, schema_of("int")) == 3
    assert client.calls[1].messages[-2].content == "about three"


async def test_an_answer_that_cannot_be_repaired_is_an_error():
    client = ScriptedClient(["about three", "three or so"])
    with pytest.raises(InvalidAnswer, match="whole number") as caught:
        await ask_checked(tree_of(client), CALL, schema_of("int"))
    assert caught.value.text == "three or so"


async def test_one_call_does_without_structured_output_where_the_provider_refuses_it():
    client = ScriptedClient([BadRequest("response_format?"), "3"])
    assert await ask_checked(tree_of(client), CALL, schema_of("int")) == 3
    assert client.calls[1].schema is None
