from __future__ import annotations

import anyio
import pytest

from rlm.errors import BadRequest, BudgetExceeded, CallError
from rlm.events import BatchFinished, BatchStarted, CallFailed, CallFinished, CallStarted
from rlm.scheduler import Scheduler
from rlm.settings import SchedulerSettings
from rlm.values import Call, Message, Reply, Usage


def call(prompt, **changes):
    return Call(model="m", messages=(Message("user", prompt),), run_id="r", **changes)


class Echo:
    """Answers each prompt with itself after a second, and counts."""

    def __init__(self, seconds=1.0):
        self.seconds = seconds
        self.prompts = []
        self.in_flight = 0
        self.most_in_flight = 0

    async def complete(self, call):
        prompt = call.messages[-1].content
        self.prompts.append(prompt)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await anyio.sleep(self.seconds)
        finally:
            self.in_flight -= 1
        if prompt == "bad":
            raise BadRequest("no such thing", usage=Usage(input_tokens=5))
        if prompt == "limit":
            raise BudgetExceeded("too dear", name="dollars", limit=1, spent=1)
        if prompt == "bug":
            raise ZeroDivisionError
        return Reply(text=prompt, usage=Usage(calls=1, input_tokens=10, output_tokens=2))


def run(virtual_time, client, main, events=None, **settings):
    async def body():
        scheduler = Scheduler(client, SchedulerSettings(**settings))
        emit = events.append if events is not None else (lambda _: None)
        return await main(scheduler.tree(run_id="r", emit=emit))

    return anyio.run(body, **virtual_time)


def test_a_batch_keeps_its_order_and_a_failed_slot_hurts_no_other(virtual_time):
    async def main(tree):
        calls = [call("a"), call("bad"), call("c")]
        outcomes = await tree.complete_all(calls, max_concurrent=2)
        return [o if isinstance(o, CallError) else o.text for o in outcomes], tree.ledger

    events = []
    outcomes, ledger = run(virtual_time, Echo(), main, events)
    assert outcomes[0] == "a"
    assert isinstance(outcomes[1], BadRequest)
    assert outcomes[2] == "c"
    assert ledger.usage == Usage(calls=2, input_tokens=25, output_tokens=4)
    assert [type(e) for e in events if isinstance(e, (BatchStarted, BatchFinished))] == [
        BatchStarted,
        BatchFinished,
    ]
    assert events[-1].failed == 1
    assert sum(isinstance(e, CallStarted) for e in events) == 3
    assert sum(isinstance(e, CallFinished) for e in events) == 2
    assert [e.kind for e in events if isinstance(e, CallFailed)] == ["BadRequest"]


def test_a_batch_never_exceeds_its_own_width_nor_the_gates(virtual_time):
    client = Echo()

    async def main(tree):
        await tree.complete_all([call(str(i)) for i in range(20)], max_concurrent=4)
        alone = client.most_in_flight
        async with anyio.create_task_group() as group:
            for start in (100, 200, 300):
                calls = [call(str(start + i)) for i in range(20)]
                group.start_soon(lambda calls=calls: tree.complete_all(calls, max_concurrent=4))
        return alone, client.most_in_flight

    assert run(virtual_time, client, main, max_concurrent=6) == (4, 6)


def test_equal_prompts_are_asked_once_and_one_prompt_repeated_is_sampling(virtual_time):
    async def main(tree):
        mixed = await tree.complete_all([call(str(i % 10)) for i in range(100)], max_concurrent=10)
        asked_mixed = len(client.prompts)
        await tree.complete_all([call("same") for _ in range(7)], max_concurrent=10)
        asked_same = len(client.prompts) - asked_mixed
        await tree.complete_all([call(str(i % 2)) for i in range(8)], max_concurrent=10, dedupe=False)
        return mixed, asked_mixed, asked_same, len(client.prompts) - asked_mixed - asked_same

    client = Echo()
    mixed, asked_mixed, asked_same, asked_all = run(virtual_time, client, main)
    assert [reply.text for reply in mixed] == [str(i % 10) for i in range(100)]
    assert (asked_mixed, asked_same, asked_all) == (10, 7, 8)
    assert sum(reply.usage.calls for reply in mixed) == 10


def test_a_batch_tells_how_many_of_its_calls_are_distinct_and_how_many_slots_failed(virtual_time):
    events = []

    async def main(tree):
        await tree.complete_all([call(name) for name in ("a", "bad", "a", "bad", "bad")], max_concurrent=2)
        await tree.complete_all([call("same")] * 3, max_concurrent=2)

    run(virtual_time, Echo(), main, events)
    started = [(event.size, event.distinct) for event in events if isinstance(event, BatchStarted)]
    assert started == [(5, 2), (3, 3)]
    assert [event.failed for event in events if isinstance(event, BatchFinished)] == [3, 0]


def test_calls_that_were_stopped_did_not_fail(virtual_time):
    events = []

    async def main(tree):
        with anyio.move_on_after(1.5):
            await tree.complete_all([call(str(n)) for n in ("bad", *range(50))], max_concurrent=5)

    run(virtual_time, Echo(), main, events)
    assert isinstance(events[-1], BatchFinished)
    assert events[-1].failed == 1
    assert "Cancelled" in {event.kind for event in events if isinstance(event, CallFailed)}


def test_a_call_that_failed_tells_what_it_cost(virtual_time):
    events = []

    async def main(tree):
        with pytest.raises(BadRequest):
            await tree.complete(call("bad"))
        return tree.ledger.usage

    spent = run(virtual_time, Echo(), main, events)
    assert [event.usage for event in events if isinstance(event, CallFailed)] == [spent]
    assert spent.input_tokens == 5


def test_a_limit_ends_the_batch_unwrapped_after_what_is_in_flight(virtual_time):
    events = []

    async def main(tree):
        calls = [call("a"), call("limit"), *(call(f"later {i}") for i in range(50))]
        with pytest.raises(BudgetExceeded):
            await tree.complete_all(calls, max_concurrent=3)

    client = Echo()
    run(virtual_time, client, main, events)
    assert client.in_flight == 0
    assert len(client.prompts) < 8
    finished = sum(isinstance(e, CallFinished) for e in events)
    assert finished == len(client.prompts) - 1
    assert isinstance(events[-1], BatchFinished)
    assert events[-1].failed == 0  # a call that was never made did not fail


def test_an_unexpected_error_ends_the_batch_unwrapped(virtual_time):
    async def main(tree):
        with pytest.raises(ZeroDivisionError):
            await tree.complete_all([call("a"), call("bug"), call("c")], max_concurrent=3)

    run(virtual_time, Echo(), main)


def test_a_cancelled_batch_gives_all_its_places_back(virtual_time):
    client = Echo(seconds=10)

    async def main(tree):
        with anyio.move_on_after(5):
            await tree.complete_all([call(str(i)) for i in range(30)], max_concurrent=20)
        assert client.in_flight == 0
        return await tree.complete_all([call(str(i)) for i in range(4)], max_concurrent=4)

    assert len(run(virtual_time, client, main, max_concurrent=4)) == 4
    assert client.most_in_flight == 4
