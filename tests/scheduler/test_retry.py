from __future__ import annotations

import anyio
import pytest
from fake_provider import FakeProvider, call

from rlm.errors import (
    AuthenticationFailed,
    BadReply,
    BadRequest,
    CallTimedOut,
    ConnectionFailed,
    ContextTooLong,
    OutputTruncated,
    PromptTruncated,
    QuotaExhausted,
    RateLimited,
    Refused,
    ServerError,
    UnknownModel,
)
from rlm.events import CallRetried
from rlm.scheduler import Scheduler
from rlm.scheduler.retry import RetryPolicy
from rlm.settings import SchedulerSettings
from rlm.values import Usage


def longest(_low, high):
    return high


def wait(error, retries=None, *, failures=1, waited_s=0.0, ever_answered=True, **settings):
    retries = retries or RetryPolicy(SchedulerSettings(**settings), jitter=longest)
    return retries.wait_before_next(error, failures=failures, waited_s=waited_s, ever_answered=ever_answered)


@pytest.mark.parametrize(
    "error",
    [RateLimited(""), ServerError("", status=500), ConnectionFailed(""), CallTimedOut(""), BadReply("")],
    ids=repr,
)
def test_what_may_pass_is_asked_again(error):
    assert wait(error) is not None


@pytest.mark.parametrize(
    "error",
    [
        AuthenticationFailed(""),
        BadRequest(""),
        ContextTooLong(""),
        UnknownModel(""),
        QuotaExhausted(""),
        Refused(""),
        OutputTruncated("", text="x"),
        PromptTruncated(""),
    ],
    ids=repr,
)
def test_what_will_not_pass_is_not_asked_again(error):
    assert wait(error) is None


def test_the_longest_wait_doubles_up_to_its_limit_and_the_jitter_goes_down_to_nothing():
    settings = {"first_backoff_s": 1, "longest_backoff_s": 8, "max_attempts": 50}
    waits = [wait(ServerError(""), failures=n, **settings) for n in range(1, 7)]
    assert waits == [1, 2, 4, 8, 8, 8]
    none = RetryPolicy(SchedulerSettings(), jitter=lambda low, _high: low)
    assert wait(ServerError(""), none, failures=3) == 0


def test_retry_after_is_never_undercut_and_a_negative_one_is_none():
    none = RetryPolicy(SchedulerSettings(), jitter=lambda low, _high: low)
    assert wait(RateLimited("", retry_after=7), none) == 7
    assert wait(ServerError("", retry_after=-3), none) == 0
    assert 7 < wait(RateLimited("", retry_after=7)) < 8


def test_nobody_waits_longer_than_the_patience():
    assert wait(RateLimited("", retry_after=3600)) is None
    assert wait(RateLimited("", retry_after=10), waited_s=295) is None
    assert wait(RateLimited("", retry_after=10), waited_s=200) is not None


def test_attempts_end_failures_but_not_rate_limits():
    assert wait(ServerError(""), failures=9) is None
    assert wait(RateLimited(""), failures=9, waited_s=60) is not None
    assert wait(RateLimited(""), failures=5000, waited_s=60) is not None


def test_an_address_where_nothing_ever_answered_is_not_tried_long():
    nobody = ConnectionFailed("refused", sent=False)
    assert wait(nobody, failures=2, ever_answered=False) is not None
    assert wait(nobody, failures=3, ever_answered=False) is None
    assert wait(nobody, failures=3, ever_answered=True) is not None


def test_the_retry_budget_of_a_tree_shrinks_with_failures_and_grows_with_answers():
    retries = RetryPolicy(SchedulerSettings(retry_budget=3), jitter=longest)
    assert [wait(ServerError(""), retries) is not None for _ in range(5)] == [True, True, True, False, False]
    assert wait(RateLimited(""), retries) is not None
    retries.answered()
    assert wait(ServerError(""), retries) is not None
    assert wait(ServerError(""), retries) is None
    for _ in range(100):
        retries.answered()
    granted = [wait(ServerError(""), retries) is not None for _ in range(7)]
    assert granted == [True] * 6 + [False]


def fails_first(*errors):
    pending = [lambda error=error: error for error in errors]

    class Provider(FakeProvider):
        def _fault(self):
            return pending.pop(0)() if pending else None

    return Provider()


def test_a_call_is_asked_again_until_it_is_answered_and_all_attempts_are_on_its_bill(virtual_time):
    billed = Usage(calls=1, input_tokens=100)
    provider = fails_first(ServerError("a"), BadReply("b", usage=billed), RateLimited("c", retry_after=30))
    events = []

    async def main():
        tree = Scheduler(provider, price=lambda _, usage: usage.total_tokens * 1.0).tree(
            run_id="r", emit=events.append
        )
        started = anyio.current_time()
        return await tree.complete(call()), anyio.current_time() - started, tree.ledger

    reply, seconds, ledger = anyio.run(main, **virtual_time)
    assert reply.text == "answer to hello"
    assert reply.attempts == 4
    assert reply.usage == Usage(calls=2, input_tokens=110, output_tokens=2) == ledger.usage
    assert reply.cost_usd == 112 == ledger.cost_usd
    assert reply.latency_s == 1
    assert 31 < seconds < 33
    retried = [event for event in events if isinstance(event, CallRetried)]
    assert [event.attempt for event in retried] == [1, 2, 3]
    assert retried[2].wait_s >= 30


def test_time_in_line_is_no_time_waited(virtual_time):
    """A call that stands in line for hours, before and between its attempts, is still asked again."""
    refusals = [RateLimited("slow down"), RateLimited("slow down")]

    class Provider(FakeProvider):
        async def complete(self, call):
            if call.messages[0].content == "late" and refusals:
                raise refusals.pop()
            return await super().complete(call)

    async def main():
        settings = SchedulerSettings(max_concurrent=1, call_timeout_s=4000)
        tree = Scheduler(Provider(seconds=3600), settings).tree(run_id="r")
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(tree.complete, call(str(number)))
            await anyio.sleep(1)
            return (await tree.complete(call("late"))).attempts, anyio.current_time()

    attempts, now = anyio.run(main, **virtual_time)
    assert attempts == 3
    assert now > 3 * 3600


def test_a_call_that_comes_back_does_not_wait_for_the_rest_of_its_batch(virtual_time):
    provider = fails_first(*[ServerError("oops", status=500)] * 4)

    async def main():
        started = anyio.current_time()
        tree = Scheduler(provider).tree(run_id="r")
        await tree.complete_all([call(str(n)) for n in range(400)], max_concurrent=4)
        return [at - started for at, prompt in provider.requests if prompt in {"0", "1", "2", "3"}]

    times = anyio.run(main, **virtual_time)
    assert len(times) == 8
    assert max(times) < 5


def test_a_call_that_waits_gives_its_place_in_the_batch_to_another(virtual_time):
    provider = fails_first(RateLimited("", retry_after=100), RateLimited("", retry_after=100))

    async def main():
        tree = Scheduler(provider).tree(run_id="r")
        started = anyio.current_time()
        replies = await tree.complete_all([call(str(n)) for n in range(50)], max_concurrent=2)
        assert [reply.text for reply in replies] == [f"answer to {n}" for n in range(50)]
        return anyio.current_time() - started

    assert anyio.run(main, **virtual_time) < 110
    assert provider.most_in_flight == 2


def test_a_timeout_is_an_error_that_names_the_seconds_and_is_asked_again(virtual_time):
    provider = FakeProvider(seconds=lambda _: 50 if len(provider.requests) == 1 else 1)

    async def main():
        tree = Scheduler(provider, SchedulerSettings(call_timeout_s=10)).tree(run_id="r", emit=events.append)
        return await tree.complete(call())

    events = []
    assert anyio.run(main, **virtual_time).attempts == 2
    assert "within 10 s" in next(event.error for event in events if isinstance(event, CallRetried))


def test_an_outage_is_not_multiplied_by_the_attempts_of_every_call(virtual_time):
    provider = FakeProvider(faults=((1.0, lambda: ServerError("down", status=500)),))
    settings = SchedulerSettings(breaker_failures=100_000, retry_budget=100)

    async def main():
        tree = Scheduler(provider, settings).tree(run_id="r")
        return await tree.complete_all([call(str(n)) for n in range(500)], max_concurrent=10)

    outcomes = anyio.run(main, **virtual_time)
    assert all(isinstance(outcome, ServerError) for outcome in outcomes)
    assert len(provider.requests) == 600
