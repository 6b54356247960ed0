"""What a guest may do to its host: nothing that takes long, and nothing that takes much memory."""

from __future__ import annotations

import struct
import time

import anyio
import pytest

from rlm.sandbox.guest import decoding, values
from rlm.sandbox.session import open_session
from rlm.settings import SandboxSettings

pytestmark = pytest.mark.anyio

VALUES = 2_000_000
MERSENNE = 2**61 - 1


def count(number):
    return struct.pack(">I", number)


def integers(numbers):
    return b"".join(b"".join(values.encode(number)) for number in numbers)


@pytest.mark.parametrize(
    "payload",
    [
        b"e" + count(40_000) + integers([n * MERSENNE for n in range(20_000)]) + integers(range(1, 20_001)),
        b"l" + count(60) + (b"e" + count(1_000) + integers([n * MERSENNE for n in range(1_000)])) * 60,
        b"S" + (count(2) + b"ab") * 2_100_000 + count(0),
        b"l" + count(1_900_000) + (b"e" + count(0)) * 1_900_000,
    ],
    ids=["one set that collides", "many sets that collide", "a text in tiny pieces", "many empty sets"],
)
def test_values_made_to_be_slow_or_large_are_refused(payload):
    with pytest.raises(values.WireError, match=r"collide|too many values"):
        decoding.decode(payload, max_values=VALUES)


@pytest.mark.parametrize(
    "value",
    [{-1: "a", -2: "b"}, set(range(100_000)), {str(n): n for n in range(100_000)}, [{"a": 1}] * 100_000],
)
def test_honest_values_of_the_same_kinds_pass(value):
    assert (
        decoding.decode(
            b"".join(
                part if isinstance(part, (bytes, bytearray)) else part.encode()
                for part in values.encode(value)
            ),
            max_values=VALUES,
        )
        == value
    )


async def nothing(call):
    return ""


@pytest.fixture
async def session():
    session = await open_session(SandboxSettings(cell_timeout_s=5.0, memory_bytes=1 << 30))
    await session.load("a text")
    yield session
    await session.aclose()


async def test_a_large_call_does_not_hold_up_the_event_loop(session):
    longest = 0.0

    async def watch():
        nonlocal longest
        while True:
            before = time.monotonic()
            await anyio.sleep(0.001)
            longest = max(longest, time.monotonic() - before)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        started = time.monotonic()
        result = await session.run("llm_batch(['x'] * 900_000) and None", serve=nothing)
        took = time.monotonic() - started
        tasks.cancel_scope.cancel()
    assert result.outcome in {"ok", "raised", "protocol"}
    assert longest < max(0.25, took / 3)


@pytest.mark.slow
async def test_more_bytes_of_calls_than_the_host_keeps_cost_the_cell(session):
    async def never(call):
        await anyio.sleep_forever()

    code = "from threading import Thread\nx = 'x' * (60 << 20)\nfor _ in range(6): Thread(target=llm_query, args=(x,), daemon=True).start()\nimport time; time.sleep(4)"
    result = await session.run(code, serve=never)
    assert (result.outcome, result.state) == ("protocol", "rolled back")
    assert "in flight" in result.error
    assert (await session.run("print('still here')", serve=nothing)).stdout == "still here\n"


@pytest.mark.parametrize(
    "lie",
    [
        "describe.__code__ = (lambda *a, **k: 5).__code__",
        "Repl.inspect.__code__ = (lambda s, q: [b'zz']).__code__",
    ],
)
async def test_a_guest_that_lies_about_its_variables_only_hides_them(session, lie):
    await session.run(f"import sys; sys.modules['guest.repl'].{lie}", serve=nothing)
    assert await session.variables() == ()


@pytest.mark.parametrize("patch", ["describe = lambda *a, **k: 5", "Repl.inspect = lambda s, q: [b'zz']"])
async def test_replaced_functions_of_the_guest_are_put_back(session, patch):
    await session.run(f"mine = 1; __import__('sys').modules['guest.repl'].{patch}", serve=nothing)
    assert [variable.name for variable in await session.variables()] == ["mine"]


async def test_cancelling_a_fetch_costs_no_variable(session):
    await session.run("large = 'x' * 30_000_000\nkept = 41", serve=nothing)
    for seconds in (0.0, 0.005, 0.02):
        with anyio.move_on_after(seconds):
            await session.fetch("large")
    assert await session.fetch("kept") == 41
