from __future__ import annotations

import anyio
import pytest
from fake_provider import FakeProvider, call

from rlm.errors import (
    AuthenticationFailed,
    BadRequest,
    CallError,
    CircuitOpen,
    ConnectionFailed,
    RateLimited,
    ServerError,
)
from rlm.scheduler import Scheduler
from rlm.scheduler.circuit_breaker import Circuit
from rlm.settings import SchedulerSettings
from rlm.values import Reply

SETTINGS = SchedulerSettings(breaker_failures=3, breaker_patience_s=60, breaker_pause_s=30)


def failing(circuit, times, *, now=0.0, error=None, probing=False):
    for _ in range(times):
        circuit.failed(error or ServerError("down", status=500), probing=probing, now=now)


def test_a_circuit_that_was_alive_waits_and_probes_and_closes_on_an_answer():
    circuit = Circuit("m", SETTINGS)
    circuit.answered()
    failing(circuit, 2)
    assert (circuit.state, circuit.wait(0.0)) == ("closed", 0)
    failing(circuit, 1)
    assert (circuit.state, circuit.wait(0.0)) == ("waiting", 1)
    assert circuit.wait(1.0) == 0
    assert circuit.start()
    assert circuit.wait(1.0) == float("inf")
    failing(circuit, 1, now=1.5, probing=True)
    assert circuit.wait(1.5) == 2
    assert circuit.start()
    circuit.answered()
    assert (circuit.state, circuit.wait(5.0), circuit.start()) == ("closed", 0, False)


def test_a_circuit_opens_when_its_patience_is_over_and_probes_now_and_then():
    circuit = Circuit("m", SETTINGS)
    circuit.answered()
    failing(circuit, 3)
    circuit.start()
    failing(circuit, 1, now=61, probing=True)
    with pytest.raises(
        CircuitOpen, match="m was not called, because it failed 4 times in a row: down"
    ) as caught:
        circuit.wait(62)
    assert isinstance(caught.value.cause, ServerError)
    assert circuit.wait(91) == 0
    assert circuit.start()
    with pytest.raises(CircuitOpen):
        circuit.wait(91)  # one probe at a time
    failing(circuit, 1, now=92, probing=True)
    with pytest.raises(CircuitOpen):
        circuit.wait(100)
    assert circuit.wait(122) == 0


def test_a_probe_that_was_cancelled_leaves_the_next_one_to_another():
    circuit = Circuit("m", SETTINGS)
    circuit.answered()
    failing(circuit, 3)
    circuit.start()
    circuit.unknown(probing=True)
    assert circuit.wait(2.0) == 0


def test_refusals_of_a_request_or_for_its_rate_are_no_failures_of_the_endpoint():
    circuit = Circuit("m", SETTINGS)
    for error in (BadRequest("no"), RateLimited("slow")):
        failing(circuit, 2)
        failing(circuit, 20, error=error)
        assert circuit.state == "closed"
        assert circuit.ever_answered
        circuit.answered()


def test_a_refused_key_opens_the_circuit_at_once():
    circuit = Circuit("m", SETTINGS)
    circuit.answered()
    failing(circuit, 3, error=AuthenticationFailed("wrong key"))
    with pytest.raises(CircuitOpen, match="wrong key"):
        circuit.wait(0.1)


def _run(virtual_time, provider, main, **settings):
    async def body():
        return await main(Scheduler(provider, SchedulerSettings(**settings)).tree(run_id="r"))

    return anyio.run(body, **virtual_time)


def test_an_outage_of_twenty_seconds_costs_no_answer_and_few_requests(virtual_time):
    provider = FakeProvider()

    async def main(tree):
        async def outage():
            await anyio.sleep(5)
            provider.faults = ((1.0, lambda: ServerError("down", status=500)),)
            await anyio.sleep(20)
            provider.faults = ()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outage)
            return await tree.complete_all([call(str(n)) for n in range(400)], max_concurrent=20)

    replies = _run(virtual_time, provider, main)
    assert all(isinstance(reply, Reply) for reply in replies)
    assert len(provider.requests) < 500


def test_a_wrong_key_fails_a_large_batch_after_few_requests_with_the_true_cause(virtual_time):
    provider = FakeProvider(faults=((1.0, lambda: AuthenticationFailed("wrong key", status=401)),))

    async def main(tree):
        return await tree.complete_all([call(str(n)) for n in range(2000)], max_concurrent=10)

    outcomes = _run(virtual_time, provider, main)
    assert len(provider.requests) < 25
    assert isinstance(outcomes[0], AuthenticationFailed)
    assert isinstance(outcomes[-1], CircuitOpen)
    assert isinstance(outcomes[-1].cause, AuthenticationFailed)
    assert "wrong key" in str(outcomes[-1])


def test_an_address_where_nobody_listens_fails_within_seconds(virtual_time):
    provider = FakeProvider()

    async def refuse(call):
        provider.requests.append(call)
        raise ConnectionFailed("connection refused", sent=False)

    provider.complete = refuse

    async def main(tree):
        started = anyio.current_time()
        with pytest.raises(ConnectionFailed):
            await tree.complete(call())
        alone = anyio.current_time() - started
        outcomes = await tree.complete_all([call(str(n)) for n in range(1000)], max_concurrent=10)
        return alone, anyio.current_time() - started, outcomes

    alone, together, outcomes = _run(virtual_time, provider, main)
    assert alone < 1
    assert together < 5
    assert all(isinstance(outcome, CallError) for outcome in outcomes)
    assert len(provider.requests) < 60


def test_an_endpoint_that_stays_down_fails_the_rest_once_patience_is_over_and_is_found_again(virtual_time):
    provider = FakeProvider()

    async def main(tree):
        await tree.complete(call("alive"))
        provider.faults = ((1.0, lambda: ServerError("down", status=500)),)
        started = anyio.current_time()
        outcomes = await tree.complete_all([call(str(n)) for n in range(1000)], max_concurrent=10)
        seconds = anyio.current_time() - started
        provider.faults = ()
        with pytest.raises(CircuitOpen):
            await tree.complete(call("too early"))
        await anyio.sleep(60)
        return outcomes, seconds, (await tree.complete(call("again"))).text

    outcomes, seconds, text = _run(virtual_time, provider, main)
    assert all(isinstance(outcome, CallError) for outcome in outcomes)
    assert isinstance(outcomes[-1], CircuitOpen)
    assert 50 < seconds < 120
    assert len(provider.requests) < 100
    assert text == "answer to again"


def test_one_models_outage_is_no_other_models(virtual_time):
    class Provider(FakeProvider):
        async def complete(self, call):
            if call.model == "down":
                raise AuthenticationFailed("not for you")
            return await super().complete(call)

    async def main(tree):
        await tree.complete_all([call(str(n), model="down") for n in range(100)], max_concurrent=10)
        return await tree.complete(call("x", model="up"))

    assert _run(virtual_time, Provider(), main).text == "answer to x"


def test_cancelling_a_probe_does_not_hang_those_who_wait_for_it(virtual_time):
    provider = FakeProvider()

    async def main(tree):
        await tree.complete(call("alive"))
        provider.faults = ((1.0, lambda: ServerError("down", status=500)),)
        with anyio.move_on_after(3):
            await tree.complete_all([call(str(n)) for n in range(100)], max_concurrent=30)
        provider.faults = ()
        provider.seconds = 500
        with anyio.move_on_after(20):
            await tree.complete(call("a probe that is given up"))
        provider.seconds = 1
        with anyio.fail_after(20):
            return await tree.complete(call("next"))

    assert _run(virtual_time, provider, main).text == "answer to next"
