"""Ledgers within another one: several trees that spend from one budget."""

from __future__ import annotations

import random

import anyio
import pytest
from fake_provider import FakeProvider, broken, call, dropped, price
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlm.errors import BudgetExceeded, DeadlineExceeded
from rlm.scheduler import Budget, Ledger, Scheduler
from rlm.settings import SchedulerSettings
from rlm.values import Usage

CAP = 50
PROMPT_TOKENS = 10
WORST_USD = (PROMPT_TOKENS + 3 * CAP) * 1e-6


async def spend(tree, calls=40, width=5):
    """Ask until a limit is reached; whether one was."""
    asked = [call(f"{tree.run_id} {number}", max_output_tokens=CAP) for number in range(calls)]
    try:
        await tree.complete_all(asked, max_concurrent=width)
    except (BudgetExceeded, DeadlineExceeded):
        return True
    return False


def run(virtual_time, provider, budget, *, own=(None, None, None), **options):
    """Three trees at once within one ledger: the ledger, the trees, and whether each came to a limit."""
    stopped = {}

    async def body():
        shared = Ledger(budget)
        scheduler = Scheduler(
            provider,
            SchedulerSettings(max_concurrent=20),
            price=price,
            count_tokens=lambda _call: PROMPT_TOKENS,
        )
        trees = [
            scheduler.tree(run_id=f"tree {number}", budget=part, within=shared)
            for number, part in enumerate(own)
        ]

        async def one(tree):
            stopped[tree.run_id] = await spend(tree, **options)

        async with anyio.create_task_group() as tasks:
            for tree in trees:
                tasks.start_soon(one, tree)
        return shared, trees

    return *anyio.run(body, **virtual_time), list(stopped.values())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    worst_cases=st.integers(1, 100),
    kind=st.sampled_from(["dollars", "tokens", "calls"]),
    seed=st.integers(0, 2**32),
    part=st.none() | st.integers(1, 30),
)
def test_trees_at_once_never_pass_the_budget_they_share(virtual_time, worst_cases, kind, seed, part):
    draw = random.Random(seed)
    worst = {"dollars": WORST_USD, "tokens": PROMPT_TOKENS + CAP, "calls": 1}[kind]
    provider = FakeProvider(
        seconds=lambda _call: draw.uniform(0.1, 2),
        usage=lambda _call: Usage(calls=1, input_tokens=PROMPT_TOKENS, output_tokens=draw.randint(1, CAP)),
        faults=((0.1, broken()), (0.05, dropped)) * draw.randint(0, 1),
    )
    own = (Budget(calls=part) if part else None, None, None)
    shared, trees, stopped = run(virtual_time, provider, Budget(**{kind: worst_cases * worst}), own=own)
    billed = {
        "dollars": provider.billed_usd,
        "tokens": provider.billed.total_tokens,
        "calls": provider.billed.calls,
    }
    assert billed[kind] <= worst_cases * worst * (1 + 1e-9)
    assert shared.usage == sum((tree.ledger.usage for tree in trees), Usage())
    assert shared.cost_usd == pytest.approx(sum(tree.ledger.cost_usd for tree in trees))
    if shared.is_exhausted:
        assert sum(stopped) >= 1


def test_the_first_refusal_is_for_all_so_that_they_stop_together(virtual_time):
    provider = FakeProvider()
    shared, trees, stopped = run(virtual_time, provider, Budget(calls=17), calls=1_000)
    assert stopped == [True, True, True]
    assert shared.usage.calls == sum(tree.ledger.usage.calls for tree in trees) == 17
    assert all(tree.ledger.usage.calls >= 4 for tree in trees)  # they took turns
    assert shared.cost_summary()["possibly_billed"]["calls"] == 0


def test_a_budget_of_ones_own_stops_nobody_else(virtual_time):
    own = (Budget(calls=3), None, None)
    shared, trees, stopped = run(virtual_time, FakeProvider(), Budget(calls=500), own=own)
    assert [tree.ledger.usage.calls for tree in trees] == [3, 40, 40]
    assert sorted(stopped) == [False, False, True]
    assert not shared.is_exhausted


def test_the_seconds_of_a_shared_budget_begin_with_the_first_call_of_all(virtual_time):
    provider = FakeProvider(seconds=1.0)

    async def body():
        shared = Ledger(Budget(seconds=10))
        scheduler = Scheduler(provider)
        first, second = (scheduler.tree(run_id=name, within=shared) for name in "ab")
        await first.complete(call("a"))
        await anyio.sleep(9.5)
        with pytest.raises(DeadlineExceeded):
            await second.complete(call("b"))

    anyio.run(body, **virtual_time)
