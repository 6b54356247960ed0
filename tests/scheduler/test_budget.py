from __future__ import annotations

import json
import random

import anyio
import pytest
from fake_provider import FakeProvider, broken, call, dropped, price, too_many
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlm.errors import (
    BadReply,
    BudgetExceeded,
    CallError,
    ConnectionFailed,
    DeadlineExceeded,
    RateLimited,
    ServerError,
    SettingsError,
)
from rlm.scheduler import Budget, Ledger, Scheduler
from rlm.scheduler.ledger import certainly_unbilled
from rlm.settings import SchedulerSettings
from rlm.values import Usage

CAP = 50


def run(virtual_time, provider, main, budget=None, count=lambda _: 10, **changes):
    async def body():
        scheduler = Scheduler(provider, SchedulerSettings(**changes), price=price, count_tokens=count)
        return await main(scheduler.tree(run_id="r", budget=budget))

    return anyio.run(body, **virtual_time)


async def spend_all(tree, prompts=10_000, width=10, **changes):
    """Ask until a limit is reached; the number of calls that were answered."""
    calls = [call(str(number), max_output_tokens=CAP, **changes) for number in range(prompts)]
    try:
        return await tree.complete_all(calls, max_concurrent=width)
    except BudgetExceeded as error:
        return error


@st.composite
def worlds(draw):
    """A provider with faults, a few trees of runs, and a budget for each that holds at least 22 worst cases."""
    prompt_tokens = draw(st.integers(1, 200))
    worst_tokens = prompt_tokens + CAP
    worst_dollars = (prompt_tokens + 3 * CAP) * 1e-6
    kind = draw(st.sampled_from(["dollars", "tokens", "calls"]))
    worst = {"dollars": worst_dollars, "tokens": worst_tokens, "calls": 1}[kind]
    size = draw(st.integers(22, 30)) * worst
    return {
        "seed": draw(st.integers(0, 2**32)),
        "prompt_tokens": prompt_tokens,
        "kind": kind,
        "limit": size,
        "worst": worst,
        "trees": draw(st.integers(1, 12)),
        "batches": draw(st.integers(1, 3)),
        "width": draw(st.integers(1, 20)),
        "faulty": draw(st.booleans()),
        "capacity": draw(st.sampled_from([None, 5])),
    }


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(world=worlds())
def test_a_budget_is_never_exceeded_and_nearly_all_of_it_can_be_used(virtual_time, world):
    """Over hundreds of runs: what was billed stays within each budget to the last picodollar."""
    draw = random.Random(world["seed"])

    def usage(_call):
        return Usage(calls=1, input_tokens=world["prompt_tokens"], output_tokens=draw.randint(1, CAP))

    def billed_garbage():
        return BadReply("garbage", usage=usage(None))

    faults = ((0.1, too_many()), (0.05, broken()), (0.05, billed_garbage), (0.02, dropped)) * world["faulty"]
    providers = [
        FakeProvider(
            seconds=lambda _: draw.uniform(0.1, 3),
            usage=usage,
            faults=faults,
            random=draw,
            capacity=world["capacity"],
        )
        for _ in range(world["trees"])
    ]

    async def one_tree(provider):
        scheduler = Scheduler(provider, price=price, count_tokens=lambda _: world["prompt_tokens"])
        tree = scheduler.tree(run_id="r", budget=Budget(**{world["kind"]: world["limit"]}))
        async with anyio.create_task_group() as tasks:
            for _ in range(world["batches"]):
                tasks.start_soon(spend_all, tree, 150, world["width"])
        return tree.ledger

    async def main():
        ledgers = []

        async def keep(provider):
            ledgers.append((provider, await one_tree(provider)))

        async with anyio.create_task_group() as tasks:
            for provider in providers:
                tasks.start_soon(keep, provider)
        return ledgers

    for provider, ledger in anyio.run(main, **virtual_time):
        billed = {
            "dollars": provider.billed_usd,
            "tokens": provider.billed.total_tokens,
            "calls": provider.billed.calls,
        }[world["kind"]]
        rounding = 1e-12 if world["kind"] == "dollars" else 0
        assert billed <= world["limit"] + rounding
        summary = ledger.cost_summary()
        aside = summary["possibly_billed"][{"dollars": "cost_usd"}.get(world["kind"], world["kind"])]
        spent = {"dollars": ledger.cost_usd, "tokens": ledger.usage.total_tokens, "calls": ledger.usage.calls}
        assert spent[world["kind"]] + aside >= 0.95 * world["limit"]
        assert spent[world["kind"]] <= billed + rounding


def test_a_call_waits_while_those_in_flight_may_settle_lower(virtual_time):
    provider = FakeProvider(usage=lambda _: Usage(calls=1, input_tokens=10, output_tokens=1))

    async def main(tree):
        return await tree.complete_all(
            [call(str(n), max_output_tokens=90) for n in range(20)], max_concurrent=20
        )

    replies = run(virtual_time, provider, main, Budget(tokens=309))
    assert len(replies) == 20
    assert provider.most_in_flight == 3


def test_a_budget_that_is_used_up_says_what_is_gone(virtual_time):
    async def main(tree):
        error = await spend_all(tree)
        return error, tree.ledger

    error, ledger = run(virtual_time, FakeProvider(), main, Budget(dollars=0.001))
    assert isinstance(error, BudgetExceeded)
    assert (error.name, error.limit) == ("dollars", 0.001)
    assert error.spent == pytest.approx(ledger.cost_usd)
    assert "the budget of $0.001 is too far gone: $0.000848 are used, and the next call to m" in str(error)


def test_calls_in_flight_are_finished_when_the_budget_ends_a_batch(virtual_time):
    provider = FakeProvider(seconds=lambda call: 1 + int(call.messages[0].content))

    async def main(tree):
        await spend_all(tree, width=5)

    run(virtual_time, provider, main, Budget(calls=5))
    assert sum(provider.answered.values()) == 5


def test_the_budget_of_calls_counts_answers_and_not_refusals(virtual_time):
    provider = FakeProvider(faults=((0.5, too_many()),))

    async def main(tree):
        await spend_all(tree)

    run(virtual_time, provider, main, Budget(calls=7))
    assert sum(provider.answered.values()) == 7


def test_a_budget_in_dollars_needs_a_price(virtual_time):
    async def main(tree):
        with pytest.raises(SettingsError, match="price of 'free-text' is not known"):
            await tree.complete(call(model="free-text"))
        return tree.ledger.usage

    assert run(virtual_time, FakeProvider(), main, Budget(dollars=1)) == Usage()
    with pytest.raises(SettingsError, match="free-text"):
        Scheduler(FakeProvider(), price=price).tree(
            run_id="r", budget=Budget(dollars=1), models=["m", "free-text"]
        )


def test_an_output_cap_is_sent_along_only_where_a_worst_case_has_to_be_known(virtual_time):
    caps = []

    class Provider(FakeProvider):
        async def complete(self, call):
            caps.append(call.max_output_tokens)
            return await super().complete(call)

    async def main(tree):
        await tree.complete(call())

    for budget in (None, Budget(calls=1), Budget(seconds=10), Budget(tokens=1000), Budget(dollars=1)):
        run(virtual_time, Provider(), main, budget, default_max_output_tokens=77)
    assert caps == [None, None, None, 77, 77]


def test_what_was_cancelled_in_flight_is_set_aside_and_not_counted_as_spent(virtual_time):
    async def main(tree):
        with anyio.move_on_after(0.5):
            await tree.complete(call(max_output_tokens=40))
        return tree.ledger.cost_summary()

    summary = run(virtual_time, FakeProvider(), main, Budget(tokens=1000))
    assert summary["possibly_billed"] == {"cost_usd": 0.0, "tokens": 50, "calls": 1}
    assert summary["total_tokens"] == 0


def test_a_cancelled_wait_for_the_budget_holds_nothing(virtual_time):
    async def main(tree):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tree.complete, call("first", max_output_tokens=80))
            await anyio.sleep(0.1)
            with anyio.move_on_after(0.5):
                await tree.complete(call("waits", max_output_tokens=80))
        return await tree.complete(call("last", max_output_tokens=70))

    assert run(virtual_time, FakeProvider(), main, Budget(tokens=100)).text == "answer to last"


def test_an_estimate_that_was_too_low_is_raised_for_the_next_call(virtual_time):
    provider = FakeProvider(usage=lambda _: Usage(calls=1, input_tokens=30, output_tokens=1))

    async def main(tree):
        calls = [call(str(n), max_output_tokens=1) for n in range(100)]
        with pytest.raises(BudgetExceeded):
            await tree.complete_all(calls, max_concurrent=1)
        return tree.ledger.usage.total_tokens

    # 11 were expected at first and 31 were used, so after 31 calls (961) the 29 that are left are too few
    assert run(virtual_time, provider, main, Budget(tokens=990)) == 961


def test_a_call_that_is_cancelled_in_front_of_the_gate_gives_back_what_it_reserved(virtual_time):
    async def main(tree):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tree.complete, call("first", max_output_tokens=20))
            await anyio.sleep(0.1)
            with anyio.move_on_after(0.5):
                await tree.complete(call("in line", max_output_tokens=20))
        for number in range(4):
            await tree.complete(call(str(number), max_output_tokens=30))
        return tree.ledger.cost_summary()["possibly_billed"]["tokens"]

    assert run(virtual_time, FakeProvider(), main, Budget(tokens=90), max_concurrent=1) == 0


def test_the_wall_time_of_a_tree_ends_what_is_in_flight(virtual_time):
    provider = FakeProvider(seconds=4)

    async def main(tree):
        started = anyio.current_time()
        await tree.complete(call("a"))
        with pytest.raises(DeadlineExceeded, match="10 seconds"):
            await tree.complete_all([call(str(n)) for n in range(100)], max_concurrent=10)
        seconds = anyio.current_time() - started
        with pytest.raises(DeadlineExceeded):
            await tree.complete(call("late"))
        return seconds

    assert run(virtual_time, provider, main, Budget(seconds=10)) == 10
    assert provider.in_flight == 0
    assert "late" not in provider.prompts


@pytest.mark.parametrize("field", ["dollars", "tokens", "calls", "seconds"])
@pytest.mark.parametrize("value", [0, -1, True, "1", float("nan")])
def test_a_budget_that_makes_no_sense_is_refused(field, value):
    with pytest.raises(SettingsError, match=field):
        Budget(**{field: value})


def test_the_summary_adds_up_per_model_and_per_depth_and_is_plain_json(virtual_time):
    async def main(tree):
        for model, depth in (("m", 0), ("n", 1), ("n", 1), ("free-text", 2)):
            await tree.complete(call(model=model, depth=depth))
        return tree.ledger

    ledger = run(virtual_time, FakeProvider(), main)
    summary = json.loads(json.dumps(ledger.cost_summary()))
    assert summary["calls"] == 4
    assert summary["cost_usd"] is None
    assert summary["unpriced_calls"] == 1
    assert summary["priced_usd"] == pytest.approx(3 * 16e-6)
    assert {model: part["calls"] for model, part in summary["by_model"].items()} == {
        "m": 1,
        "n": 2,
        "free-text": 1,
    }
    assert {depth: part["input_tokens"] for depth, part in summary["by_depth"].items()} == {
        "0": 10,
        "1": 20,
        "2": 10,
    }
    assert summary["latency_s"] == 4
    total = Ledger()
    for _ in range(2):
        total.absorb(ledger)
    assert total.usage == ledger.usage + ledger.usage
    assert total.by_model["n"].usage.calls == 4


def test_only_a_request_that_was_refused_is_certainly_unbilled():
    assert certainly_unbilled(RateLimited(""))
    assert certainly_unbilled(ServerError("", status=500))
    assert certainly_unbilled(ConnectionFailed("", sent=False))
    assert not certainly_unbilled(ServerError("", status=504))
    assert not certainly_unbilled(ConnectionFailed(""))
    assert not certainly_unbilled(BadReply(""))
    assert not certainly_unbilled(CallError(""))
    assert not certainly_unbilled(KeyboardInterrupt())
