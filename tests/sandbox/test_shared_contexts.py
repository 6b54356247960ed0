# ruff: noqa: PTH208 - tests look at /proc as the kernel shows it
"""Contexts of child runs go from guest to guest: they arrive whole, the host does not hold them, nothing is left."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections import Counter, OrderedDict, defaultdict
from pathlib import PurePosixPath
from typing import NamedTuple

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm import RLM_REPL, ScriptedClient
from rlm.engine import prompts
from rlm.errors import ContextError, HostCallRefused
from rlm.sandbox.guest import decoding, frames, values
from rlm.sandbox.guest.shared_memory import (
    ALIGNMENT,
    MemoryReader,
    SharedMemoryFull,
    open_shared_memory,
    read_context,
)
from rlm.sandbox.guest.sketch import Sketch, sketch
from rlm.sandbox.launchers import Launcher
from rlm.sandbox.process import LOCATIONS_BYTES
from rlm.sandbox.session import open_session
from rlm.sandbox.shared_contexts import ContextRef, make_shared_contexts
from rlm.settings import SandboxSettings

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="there are such files on Linux"),
]

MB = 1 << 20
QUICK = SandboxSettings(cell_timeout_s=5.0, memory_bytes=1024 * MB)
FALLBACK = Launcher(name="env", prefix=("env", "A=1"), python=sys.executable, shares_files=True)

SPEAK = r"""
import os, struct, time
links = {n: os.readlink(f"/proc/self/fd/{n}") for n in range(250, 400) if os.path.exists(f"/proc/self/fd/{n}")}
channel = [n for n, link in links.items() if "socket" in link][0]
def F(kind, more, number, payload=b""):
    os.write(channel, struct.pack(">BBII", kind, more, number, len(payload)) + payload)
CALL, SHARE, UNSHARE = 19, 36, 37
def S(text):
    return b"s" + struct.pack(">I", len(text)) + text
def I(number):
    return b"i" + struct.pack(">q", number)
SKETCH = b"t\0\0\0\7" + S(b"str") + S(b"str") + I(9) + b"t\0\0\0\0" + b"t\0\0\0\0" + b"N" + b"F"
def ASK(index):
    shelved = b"t\0\0\0\2" + I(index) + SKETCH
    arguments = b"d\0\0\0\2" + S(b"question") + S(b"q") + S(b"shared") + shelved
    return b"t\0\0\0\2" + S(b"rlm_query") + arguments
"""


class Point(NamedTuple):
    x: int


class Counted:
    """A session, and how many bytes its guest has sent to the host."""

    def __init__(self, session):
        self.session = session
        self.received = 0
        assembler = session._guest._assembler
        self._feed, session._guest._assembler = assembler.feed, self

    def feed(self, data):
        self.received += len(data)
        return self._feed(data)


@pytest.fixture
async def parent():
    session = await open_session(QUICK)
    await session.load("context")
    await session.run("mine = 'kept'", serve=nobody)
    yield session
    await session.aclose()


async def nobody(call):
    raise HostCallRefused("nobody is asked here")


def shelved_bytes(session):
    """Return the bytes that the shared memory of a guest takes."""
    with session._guest.shared_memory.opened() as descriptor:
        return os.fstat(descriptor).st_blocks * 512


def child_of(code, launcher=None, seen=None):
    """Answers each rlm_query with what the cell `code` prints in a guest of its own, or with why it cannot."""

    async def serve(call):
        context = call.arguments["context"]
        if seen is not None:
            seen.append(context)
        piece = context if isinstance(context, ContextRef) else None
        child = await open_session(QUICK, launcher=launcher, parent_context=piece)
        try:
            await child.load(context)
            result = await child.run(code, serve=nobody)
            return result.stdout + result.error
        finally:
            await child.aclose()

    return serve


async def in_a_child(parent, make, code, launcher=None):
    """What `code` prints in a child whose context the expression `make` gives in the parent."""
    seen = []
    serve = child_of(code, launcher, seen)
    result = await parent.run(f"print(rlm_query('q', {make}), end='')", serve=serve, context_refs=True)
    assert result.outcome == "ok", result
    return result.stdout, seen


# --- what arrives -------------------------------------------------------------------------------------------


VALUES = {
    "text": r"'é\r\n\0\ud800漢😀' * 20_000",
    "plain text": "'x' * 300_000",
    "rows": r"[{'id': n, 3: (n, None), 'raw': b'\0\xff', 'text': 'é\r\n\ud83d'} for n in range(5_000)]",
    "a dict": "{'a' * 500: ['b'] * 40_000, 7: {(1, 2): {3}}, None: 1.5}",
    "bytes": r"bytes(range(256)) * 400",
    "bytearray": "bytearray(100_000)",
    "tuple": "tuple(map(str, range(20_000)))",
    "sets": "set(range(20_000))",
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize(
    "launcher",
    [None, pytest.param(FALLBACK, marks=pytest.mark.slow)],
    ids=["shared", "through the host"],
)
async def test_a_large_context_arrives_as_it_was(name, launcher):
    make = VALUES[name]
    parent = await open_session(QUICK, launcher=launcher)
    shown, seen = await in_a_child(
        parent, make, f"print(context == {make}, type(context).__name__)", launcher
    )
    await parent.aclose()
    assert shown == f"True {type(eval(make)).__name__}\n"
    assert isinstance(seen[0], ContextRef) is (launcher is None)


async def test_fifty_megabytes_reach_a_child_and_not_the_host(parent):
    make = r"('é\r\n\0\ud800 漢 ' + 'x' * 989) * 50_000"
    counted = Counted(parent)
    code = f"made = {make}\nprint(len(context), context == made)"
    shown, _ = await in_a_child(parent, make, code)
    assert shown == f"{50_000 * 997} True\n"
    assert counted.received < 10_000
    assert shelved_bytes(parent) == 0


async def test_a_small_context_goes_with_its_call(parent):
    shown, seen = await in_a_child(parent, "'x' * 1000", "print(len(context))")
    assert (shown, seen) == ("1000\n", ["x" * 1000])


@pytest.mark.parametrize(
    "make",
    [
        "10 ** 200_000",
        "'x' * 60_000",
        "[open]",
    ],
)
async def test_what_is_not_large_or_no_text_or_container_takes_the_way_of_any_argument(parent, make):
    async def take(call):
        assert not isinstance(call.arguments["context"], ContextRef)
        return "taken"

    result = await parent.run(f"rlm_query('q', {make})", serve=take, context_refs=True)
    assert result.stdout == "'taken'\n" or "['context'][0]: a value of type" in result.error


async def test_a_handler_without_shared_contexts_gets_the_values(parent):
    async def echo(call):
        if call.name == "rlm_batch":
            return [{"value": item["context"]} for item in call.arguments["items"]]
        return call.arguments["context"]

    code = "t = [('é\\r\\n', n) for n in range(20_000)]\nrlm_query('q', t) == t, rlm_batch([('q', t), ('r', 1)]) == [t, 1]"
    assert (await parent.run(code, serve=echo)).stdout == "(True, True)\n"


async def test_one_object_for_twenty_children_lies_there_once(parent):
    sizes, places = [], []

    async def look(call):
        sizes.append(shelved_bytes(parent))
        places.extend((item["context"].offset, item["context"].length) for item in call.arguments["items"])
        return [{"value": n} for n in range(len(call.arguments["items"]))]

    code = "t = 'x' * 5_000_000\nlen(rlm_batch([(f'q{n}', t) for n in range(20)] + [('other', t[1:])]))"
    result = await parent.run(code, serve=look, context_refs=True)
    assert result.stdout == "21\n"
    assert len(set(places)) == 2
    assert 10_000_000 < sizes[0] < 10_200_000
    assert shelved_bytes(parent) == 0


async def test_space_is_given_back_while_other_calls_go_on(parent):
    """One call is pending all the time, and three hundred megabytes pass through sixty-four of shared memory."""
    small = await open_session(SandboxSettings(memory_bytes=64 * MB, cell_timeout_s=20))
    done = anyio.Event()
    most = 0

    async def serve(call):
        nonlocal most
        if call.arguments["question"] == "stay":
            await done.wait()
            value = await call.arguments["context"].value()
            return value == "s" * 100_000
        most = max(most, shelved_bytes(small))
        if call.arguments["question"] == "29":
            done.set()
        return call.arguments["context"].length

    code = (
        "import threading\nstayed = []\n"
        "t = threading.Thread(target=lambda: stayed.append(rlm_query('stay', 's' * 100_000)))\nt.start()\n"
        "while not stayed and threading.active_count() < 2: pass\n"
        "sizes = {rlm_query(str(n), str(n) * 5_000_000) for n in range(30)}\nt.join()\nprint(stayed, len(sizes))"
    )
    result = await small.run(code, serve=serve, context_refs=True)
    await small.aclose()
    assert result.stdout == "[True] 2\n", result
    assert most < 40 * MB


async def test_threads_share_contexts_at_once(parent):
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "texts = [chr(65 + n) * (1_000_000 + n) for n in range(8)]\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    print(list(pool.map(lambda t: rlm_query('q', t), texts)) == texts)"
    )

    async def echo(call):
        return await call.arguments["context"].value()

    assert (await parent.run(code, serve=echo, context_refs=True)).stdout == "True\n"
    assert shelved_bytes(parent) == 0


async def test_a_cell_that_shares_more_than_the_limit_gets_an_error_and_continues():
    session = await open_session(SandboxSettings(memory_bytes=64 * MB))
    waiting = 0
    free = anyio.Event()

    async def serve(call):
        nonlocal waiting
        match call.arguments:
            case {"question": "stay"}:
                waiting += 1
                await free.wait()
            case {"prompt": "three wait?"}:
                return waiting == 3
            case {"prompt": "go on"}:
                free.set()
        return "answered"

    code = (
        "import threading\nt = 'x' * 20_000_000\n"
        "pool = [threading.Thread(target=rlm_query, args=('stay', t)) for _ in range(3)]\n"
        "for thread in pool: thread.start()\n"
        "while not llm_query('three wait?'): pass\n"
        "try: rlm_query('?', t)\n"
        "except LLMError as error: print(error)\n"
        "llm_query('go on')\n"
        "for thread in pool: thread.join()\n"
        "print([rlm_query('?', t) for _ in range(4)])"
    )
    result = await session.run(code, serve=serve, context_refs=True)
    assert result.stdout == (
        "rlm_query: the contexts of the running child runs would take more than 67,108,864 bytes: pass smaller "
        f"ones, or fewer at once\n{['answered'] * 4}\n"
    ), result
    assert shelved_bytes(session) == 0
    await session.aclose()


async def test_what_cannot_cross_takes_back_what_was_put_there_before(parent):
    code = "x = 'x' * 200_000\ntry: rlm_batch([('q', x), ('r', [x, print])])\nexcept TypeError as e: print(e)\nllm_query('?')"
    sizes = []

    async def look(call):
        sizes.append(shelved_bytes(parent))
        return "."

    result = await parent.run(code, serve=look)
    assert "rlm_batch: ['items'][1]['context'][1]: a value of type" in result.stdout
    assert sizes == [0]


# --- hostile cells ------------------------------------------------------------------------------------------


async def goes_on(session):
    result = await session.run(
        "print(mine, rlm_query('q', 'x' * 100_000))", serve=child_of("print(len(context))")
    )
    assert (result.outcome, result.stdout) == ("ok", "kept 100000\n\n"), result
    assert shelved_bytes(session) == 0


ATTACKS = {
    "a number it does not have": (
        "F(SHARE, 0, 9, S(b'x'))\nF(CALL, 0, 9, ASK(1))\ntime.sleep(60)",
        "refused",
    ),
    "a number below zero": ("F(SHARE, 0, 9, S(b'x'))\nF(CALL, 0, 9, ASK(-1))\ntime.sleep(60)", "refused"),
    "another call's piece": ("F(SHARE, 0, 8, S(b'x'))\nF(CALL, 0, 9, ASK(0))\ntime.sleep(60)", "refused"),
    "a piece it took back": (
        "F(SHARE, 0, 9, S(b'x'))\nF(UNSHARE, 0, 9)\nF(CALL, 0, 9, ASK(0))\ntime.sleep(60)",
        "refused",
    ),
    "garbage": ("F(SHARE, 0, 9, b'zzzz')\nF(CALL, 0, 9, ASK(0))\ntime.sleep(60)", "cannot be read"),
    "two values": ("F(SHARE, 0, 9, b'NN')\nF(CALL, 0, 9, ASK(0))\ntime.sleep(60)", "cannot be read"),
    "nothing": ("F(SHARE, 0, 9)\nF(CALL, 0, 9, ASK(0))\ntime.sleep(60)", "cannot be read"),
    "a length that is a lie": (
        "F(SHARE, 0, 9, b's\\xff\\xff\\xff\\xff' + b'x' * 200)\nF(CALL, 0, 9, ASK(0))\ntime.sleep(60)",
        "cannot be read",
    ),
    "too many values": (
        "F(SHARE, 1, 9, b'l' + struct.pack('>I', 3_000_000))\nfor _ in range(12): F(SHARE, 1, 9, b'N' * 250_000)\nF(SHARE, 0, 9)\nF(CALL, 0, 9, ASK(0))\ntime.sleep(60)",
        "cannot be read",
    ),
    "colliding keys": (
        "big = lambda n: b'I\\0\\0\\0\\x0a' + (n * (2**61 - 1)).to_bytes(10, 'little')\nF(SHARE, 0, 9, b'e' + struct.pack('>I', 1500) + b''.join(map(big, range(1500))))\nF(CALL, 0, 9, ASK(0))\ntime.sleep(60)",
        "cannot be read",
    ),
    "frames without end": ("while True: F(SHARE, 1, 9, b'x' * 200_000)", "protocol"),
    "pieces without end": ("n = 0\nwhile True:\n  n += 1\n  F(SHARE, 0, n)", "protocol"),
    "a call within a piece": ("F(SHARE, 1, 9, b'x')\nF(CALL, 0, 9, ASK(0))\ntime.sleep(60)", "protocol"),
    "a piece within a piece": ("F(SHARE, 1, 9, b'x')\nF(SHARE, 0, 8, b'x')\ntime.sleep(60)", "protocol"),
    "taken back within a piece": ("F(SHARE, 1, 9, b'x')\nF(UNSHARE, 0, 9)\ntime.sleep(60)", "protocol"),
    "a piece for a call under way": (
        "F(SHARE, 0, 9, S(b'x'))\nF(CALL, 0, 9, b't\\0\\0\\0\\2' + S(b'wait') + b'd\\0\\0\\0\\0')\nF(SHARE, 0, 9, S(b'x'))\ntime.sleep(60)",
        "protocol",
    ),
    "places of its own": ("F(23, 0, 9, b'l\\0\\0\\0\\2' + I(0) + I(99))\ntime.sleep(60)", "protocol"),
    "death within a piece": ("F(SHARE, 1, 9, b'x' * 200_000)\nos._exit(1)", "exited"),
    "the end within a piece": ("F(SHARE, 1, 9, b'x' * 200_000)", "protocol"),
    "a piece that nobody asks about": ("F(SHARE, 0, 9, b'x' * 200_000)", "ok"),
}


@pytest.mark.parametrize("name", ATTACKS)
async def test_a_hostile_use_of_shared_memory_costs_that_cell_alone(name):
    code, ending = ATTACKS[name]
    session = await open_session(
        SandboxSettings(cell_timeout_s=20.0, memory_bytes=256 * MB, highest_tier="process")
    )
    heard = []

    class Told(Exception):
        pass

    async def serve(call):
        """Start the child that is asked for; that it cannot be started ends the cell, which waits for nothing."""
        if call.name == "wait":
            await anyio.sleep_forever()
        try:
            await child_of("print(context)")(call)
        except (ContextError, HostCallRefused) as error:
            heard.append(str(error))
        raise Told

    await session.load("context")
    await session.run("mine = 'kept'", serve=serve)
    try:
        if ending == "refused":
            code = SPEAK + code.replace("time.sleep(60)", "reply = os.read(channel, 1000)\nprint(reply)")
            result = await session.run(code, serve=serve, context_refs=True)
            assert "there is no such shared context" in result.stdout, result
        elif ending == "cannot be read":
            with pytest.raises(Told):
                await session.run(SPEAK + code, serve=serve, context_refs=True)
            assert "cannot be read" in heard[0]
        else:
            result = await session.run(SPEAK + code, serve=serve, context_refs=True)
            assert result.outcome == ending, result
        await goes_on(session)
    finally:
        await session.aclose()


@pytest.mark.parametrize(
    "drawn", ["S(b'str')", "SKETCH[:-1] + b'N'", "SKETCH.replace(b'str', b'abc')", "b'N'"]
)
async def test_a_sketch_in_a_form_of_its_own_is_refused(drawn):
    session = await open_session(SandboxSettings(cell_timeout_s=20.0, highest_tier="process"))
    code = f"{SPEAK}\nF(SHARE, 0, 9, S(b'x'))\nSKETCH = {drawn}\nF(CALL, 0, 9, ASK(0))\nprint(os.read(channel, 1000))"
    result = await session.run(code, serve=nobody, context_refs=True)
    await session.aclose()
    assert "not the sketch of a context" in result.stdout


async def test_no_cell_has_a_descriptor_of_the_shared_memory(parent):
    code = (
        "import os, stat\nfound = []\nfor n in range(3, 4096):\n  try: found.append((n, os.fstat(n)))\n  except OSError: pass\n"
        "[(n, stat.S_ISREG(s.st_mode)) for n, s in found]"
    )

    of_child = await parent.run(
        "print(rlm_query('q', 'x' * 100_000))", serve=child_of(code), context_refs=True
    )
    for shown in ((await parent.run(code, serve=nobody)).stdout, of_child.stdout):
        numbers = eval(shown)
        assert len(numbers) == 3, numbers  # channel, death pipe, empty input
        assert not any(is_file for _, is_file in numbers)


async def test_no_cell_has_a_descriptor_of_shared_memory_that_its_guest_cannot_use():
    """Its room is less than its trial takes, so contexts go with their calls."""
    session = await open_session(SandboxSettings(memory_bytes=ALIGNMENT))
    code = "import os\nfound = []\nfor n in range(3, 4096):\n  try: os.fstat(n); found.append(n)\n  except OSError: pass\nfound"
    result = await session.run(code, serve=nobody)
    await session.aclose()
    assert len(eval(result.stdout)) == 3, result


async def test_a_text_that_takes_more_memory_than_a_guest_may_have_is_refused():
    """One character in each piece of it makes all of them take four bytes, which its sender never had to hold."""
    settings = SandboxSettings(cell_timeout_s=20.0, memory_bytes=64 * MB, highest_tier="process")
    parent = await open_session(settings)
    heard = []

    async def serve(call):
        child = await open_session(settings, parent_context=call.arguments["context"])
        try:
            with pytest.raises(ContextError, match="more memory than a guest may have"):
                await child.load(call.arguments["context"])
            heard.append((await child.run("context", serve=nobody)).outcome)
            await child.load("x")
            heard.append((await child.run("context", serve=nobody)).stdout)
        finally:
            await child.aclose()

    code = (
        f"{SPEAK}\npiece = ('x' * 250_000 + '😀').encode()\npiece = struct.pack('>I', len(piece)) + piece\n"
        "F(SHARE, 1, 9, b'S')\nfor _ in range(250): F(SHARE, 1, 9, piece)\nF(SHARE, 0, 9, bytes(4))\n"
        "F(CALL, 0, 9, ASK(0))\nos.read(channel, 1000)"
    )
    assert (await parent.run(code, serve=serve, context_refs=True)).outcome == "ok"
    await parent.aclose()
    assert heard == ["ok", "'x'\n"]


@pytest.mark.parametrize(
    "call", ["rlm_query('q', t)", "rlm_batch([('q', t), ('r', t + '1')])", "llm_query(t)"]
)
async def test_a_timer_that_goes_off_while_a_call_is_on_its_way_costs_that_call_alone(parent, call):
    async def serve(call):
        return [{"value": "v"}] * 2 if call.name == "rlm_batch" else "v" * 300_000

    code = (
        "import random, signal\nclass Late(Exception): pass\ndef ring(*_): raise Late\n"
        "signal.signal(signal.SIGALRM, ring)\nt, rung = 'x' * 5_000_000, 0\n"
        "for _ in range(20):\n"
        "    try:\n"
        "        try:\n"
        "            signal.setitimer(signal.ITIMER_REAL, 0.001 + random.random() / 100)\n"
        f"            while True: {call}\n"
        "        finally: signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "    except Late: rung += 1\n"
        "print(rung, llm_query('?') == 'v' * 300_000)"
    )
    result = await parent.run(code, serve=serve, context_refs=True)
    assert (result.outcome, result.stdout) == ("ok", "20 True\n"), result


@pytest.mark.parametrize("end", ["cancelled", "killed", "timed out"])
async def test_a_cell_that_ends_in_the_middle_leaves_no_shared_memory(end):
    seconds = 2.0 if end == "timed out" else 30.0
    session = await open_session(SandboxSettings(cell_timeout_s=seconds, memory_bytes=512 * MB))
    await session.run("mine = 'kept'", serve=nobody)
    called = anyio.Event()

    async def forever(call):
        assert shelved_bytes(session) > 200_000
        called.set()
        await anyio.sleep_forever()

    code = "import threading, os\nthreading.Thread(target=rlm_query, args=('q', 'x' * 300_000)).start()\n"
    async with anyio.create_task_group() as tasks:

        async def run_it():
            after = {"killed": "llm_query('die')\nos._exit(1)", "timed out": "while True: pass"}
            result = await session.run(
                code + after.get(end, "while True: pass"), serve=die_or(forever), context_refs=True
            )
            assert result.state == "rolled back"

        def die_or(serve):
            async def either(call):
                if call.name == "llm_query":
                    await called.wait()
                    return "now"
                return await serve(call)

            return either

        tasks.start_soon(run_it)
        with anyio.fail_after(30):
            await called.wait()
        if end == "cancelled":
            tasks.cancel_scope.cancel()
    await goes_on(session)
    await session.aclose()


# --- guests that die ----------------------------------------------------------------------------------------


async def test_a_child_guest_that_was_killed_has_its_context_again(parent):
    async def serve(call):
        context = call.arguments["context"]
        child = await open_session(QUICK, parent_context=context)
        try:
            await child.load(context)
            first = await child.run("x = len(context)\nx", serve=nobody)
            child._guest._process.kill()
            lost = await child.run("x", serve=nobody)
            found = await child.run("context == 'y' * 3_000_000", serve=nobody)
            await child.reset()
            again = await child.run("context[:3]", serve=nobody)
            await child.load("another")
            return (
                first.stdout,
                lost.state,
                found.stdout,
                again.stdout,
                (await child.run("context", serve=nobody)).stdout,
            )
        finally:
            await child.aclose()

    result = await parent.run("print(rlm_query('q', 'y' * 3_000_000))", serve=serve, context_refs=True)
    assert eval(result.stdout) == ("3000000\n", "lost", "True\n", "'yyy'\n", "'another'\n")


async def test_a_guest_that_was_not_started_for_a_context_gets_it_all_the_same(parent):
    async def serve(call):
        context = call.arguments["context"]
        child = await open_session(QUICK)
        try:
            await child.load(context)
            await child.load(context)
            return (await child.run("len(context)", serve=nobody)).stdout
        finally:
            await child.aclose()

    result = await parent.run("print(rlm_query('q', 'y' * 3_000_000))", serve=serve, context_refs=True)
    assert result.stdout == "3000000\n\n"


async def test_the_context_of_a_parent_that_is_gone_is_refused():
    kept = []

    async def keep(call):
        kept.append(call.arguments["context"])
        return ""

    parent = await open_session(QUICK)
    await parent.run("rlm_query('q', 'x' * 300_000)", serve=keep, context_refs=True)
    child = await open_session(QUICK, parent_context=kept[0])
    with pytest.raises(
        ContextError, match="cannot be read: WireError: the value was released before it was read"
    ):
        await child.load(kept[0])
    assert (await child.run("context", serve=nobody)).stdout == ""
    await child.aclose()
    await parent.aclose()
    with pytest.raises(HostCallRefused, match="gone"):
        await kept[0].value()
    with pytest.raises(HostCallRefused, match="gone"):
        await open_session(QUICK, parent_context=kept[0])


async def test_children_leave_no_descriptor_behind(parent):
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    code = "t = 'x' * 100_000\nprint(len(rlm_batch([(str(n), t) for n in range(20)])))"
    child = child_of("len(context)")

    async def serve(call):
        slots = [{}] * len(call.arguments["items"])

        async def one(index, item):
            slots[index] = {"value": await child(type(call)("rlm_query", item))}

        async with anyio.create_task_group() as tasks:
            for index, item in enumerate(call.arguments["items"]):
                tasks.start_soon(one, index, item)
        return slots

    assert (await parent.run(code, serve=serve, context_refs=True)).stdout == "20\n"
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


# --- whole runs ---------------------------------------------------------------------------------------------


def cell(code):
    return f"```repl\n{code}\n```"


def by_depth(*replies):
    return lambda call: cell(replies[call.depth])


def complete(*replies, launcher=None, **options):
    client = ScriptedClient(root=by_depth(*replies), sub=lambda call: str(len(call.messages[-1].content)))
    with RLM_REPL(client=client, sandbox=QUICK, launcher=launcher, **options) as rlm:
        answer = rlm.completion("x", "a question")
    return answer, client


@pytest.mark.parametrize("launcher", [None, FALLBACK], ids=["shared", "through the host"])
def test_a_piece_goes_down_three_levels_and_each_is_told_of_it(launcher):
    down = "FINAL(rlm_query('q', (context if len(context) > 1 else 'é\\n' * 600_000)[1:]))"
    answer, client = complete(
        down, down, "FINAL((len(context), context[:2]))", launcher=launcher, max_depth=4
    )
    assert answer.value == (1_199_998, "é\n")
    told = [call.messages[1].content for call in client.calls]
    for size in ("1,199,999", "1,199,998"):
        assert any(f"`context` is a str of {size} characters." in text for text in told)


@pytest.mark.parametrize("launcher", [None, FALLBACK], ids=["shared", "through the host"])
def test_at_the_depth_limit_the_plain_call_has_the_text(launcher):
    code = "t = 'é' * 100_000\nFINAL([rlm_query('12', t), rlm_batch([('1', t), ('2', [t]), ('3', t * 9)])])"
    answer, _ = complete(code, launcher=launcher, max_depth=1)
    one, (two, three, four) = answer.value
    assert (one, two, three) == ("100004", "100003", str(3 + 100_000 + 8))
    assert "is longer than the 400,000 characters a sub-model takes" in four


def test_a_context_beyond_what_any_plain_call_takes_is_not_even_read():
    answer, _ = complete("FINAL(rlm_batch([('q', 'x' * 5_000_000)])[0])", max_depth=1)
    assert "its context of 5,0" in answer


def test_a_child_is_told_of_its_context_in_the_same_words_by_both_ways():
    point = "from collections import namedtuple, OrderedDict, defaultdict\nP = namedtuple('P', 'x y')\n"
    makes = [
        "[P(1, 'a'), 3, 'b' * 100_000, True]",
        "defaultdict(list, {1: 'x' * 100_000, 'k' * 300: 'y', (1, 'é\\n'): 2})",
        "OrderedDict((str(n), 'z' * 100) for n in range(3000))",
        "[{'role': 'user', 'content': 'c' * 1000}] * 100",
        "{'t' * n for n in range(500)}",
        "tuple('u' * 100 for n in range(2000))",
        "bytearray(100_000)",
        "type('S', (str,), {})('w' * 200_000)",
    ]
    told = []
    for launcher in (None, FALLBACK):
        code = point + f"FINAL(rlm_batch([('q', c) for c in [{', '.join(makes)}]], max_concurrent=2))"
        client = ScriptedClient(root=by_depth(code, "FINAL(1)"))
        with RLM_REPL(client=client, max_depth=2, sandbox=QUICK, launcher=launcher) as rlm:
            assert rlm.completion("x", "q").value == [1] * len(makes)
        told.append(Counter(call.messages[1].content for call in client.calls if call.depth == 1))
    assert told[0] == told[1]
    assert any("a list of chat messages with 100 items." in words for words in told[0])


# --- the parts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("context", "words"),
    [
        ("x" * 1_234, "`context` is a str of 1,234 characters."),
        (b"abc", "`context` is bytes of length 3."),
        (["ab", "cde"], "`context` is a list with 2 items. Items: str. Text in all: 5 characters, longest 3."),
        (
            [1, "a", None, 2.5, b"", ()],
            ("`context` is a list with 6 items. Items: NoneType, bytes, float, int, str. "
             "Text in all: 1 characters, longest 1."),
        ),
        ({"k" * 100: 1}, "`context` is a dict with 1 key: '" + "k" * 53 + "\n[... 22 characters cut ...]\n"
         + "k" * 25 + "'."),
        (dict.fromkeys(range(22), ""), "`context` is a dict with 22 keys: " + ", ".join(map(str, range(20)))
         + " and 2 more. Text in all: 0 characters, longest 0."),
        ([Point(1)], "`context` is a list with 1 item. Items: Point."),
        ((), "`context` is a tuple with 0 items."),
        (5, "`context` is of type int: 5."),
    ],
)  # fmt: skip
def test_the_words_are_made_from_a_sketch_and_are_what_they_were(context, words):
    assert prompts.describe_context(context) == words
    drawn = sketch(context)
    if drawn is not None and "Point" not in words:
        crossed = decoding.decode(
            b"".join(frames.message_frames(0, 0, values.encode(drawn.to_tuple())))[frames.HEADER.size :]
        )
        assert prompts.describe_context(Sketch.from_tuple(crossed)) == words


GOOD = ("dict", "dict", 3, (("'a'", 3),), (), (5, 5), False)


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, "tuple"), (0, 1), (1, "OrderedDict"), (1, "list"), (2, -1), (2, True), (2, 1 << 63), (2, "3"),
        (3, [("a", 1)]), (3, (("a", 0),)), (3, (("a",),)), (3, (("a" * 161, 200),)), (3, (("a", 1),) * 21),
        (3, ((1, 1),)), (4, ("str",)), (4, None), (5, (1, 2)), (5, (1,)), (5, (-1, -1)), (5, [5, 5]),
        (6, None), (6, True),
    ],
)  # fmt: skip
def test_a_sketch_is_read_in_one_form_only(index, value):
    assert Sketch.from_tuple(GOOD).length == 3
    with pytest.raises(ValueError, match="not the sketch"):
        Sketch.from_tuple((*GOOD[:index], value, *GOOD[index + 1 :]))


PLAIN = [
    True, 5, "s", b"b", bytearray(b"a"), [1], (1,), {1: 2}, {1}, frozenset({1}), 1.5, 2j, None,
    PurePosixPath("a"), OrderedDict(a=1), Counter("ab"), defaultdict(int, a=1), Point(1),
    type("S", (str,), {})("text"), type("I", (int,), {})(7), type("B", (bytearray,), {})(b"x"),
]  # fmt: skip


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: type(value).__name__)
def test_a_plain_value_is_of_the_type_that_arrives(value):
    arrived = decoding.decode(
        b"".join(frames.message_frames(0, 0, values.encode(value)))[frames.HEADER.size :]
    )
    assert (type(values.received_form(value)), values.received_form(value)) == (type(arrived), arrived)


@pytest.fixture
def memory():
    shelf = make_shared_contexts()
    yield shelf
    shelf.close()


def test_released_contexts_free_their_memory_and_leave_the_others(memory):
    writer = open_shared_memory(memory.writing, 10 * MB)
    for call in range(8):
        writer.append(call, bytes([call]) * MB, more=True)
        writer.append(call, b"end", more=False)
    with memory.opened() as descriptor:
        full = os.fstat(descriptor).st_blocks * 512
        for call in range(7):
            writer.release(call)
        assert os.fstat(descriptor).st_blocks * 512 < full / 4
        offset, length = writer.locations(7)
        assert os.pread(descriptor, length, offset) == b"\7" * MB + b"end"
        writer.release(7)
        assert os.fstat(descriptor).st_blocks == 0
        writer.append(1, b"x", more=False)
        assert writer.locations(1)[0] > offset, "an offset was used twice"


def test_the_host_can_only_read(memory):
    with memory.opened() as descriptor, pytest.raises(OSError, match=r"Bad file descriptor"):
        os.write(descriptor, b"x")


def test_a_host_that_has_too_many_descriptors_refuses_to_read(memory):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(HostCallRefused, match="cannot be read"), memory.opened():
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_shared_memory_smaller_than_its_trial_is_not_used(memory):
    assert open_shared_memory(memory.writing, ALIGNMENT) is None


@pytest.mark.parametrize("most", [64 * MB, 1 << 45])
def test_the_number_of_contexts_is_bounded(memory, most):
    writer = open_shared_memory(memory.writing, most)

    def fill():
        for _ in range(100_000):
            writer.append(7, b"", more=False)

    with pytest.raises(SharedMemoryFull):
        fill()
    assert values.encoded_size(values.encode(writer.locations(7))) < LOCATIONS_BYTES


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(0, 40), max_size=20))
def test_a_memory_reader_reads_as_a_buffer_does(data, counts):
    memory = make_shared_contexts()
    try:
        os.pwrite(memory.writing, data, 11)
        part, buffer = MemoryReader(memory.writing, 11, len(data)), decoding.Buffer(data)
        for count in counts:
            if count > buffer.left():
                with pytest.raises(values.WireError):
                    part.read(count)
                return
            assert part.read(count) == buffer.read(count)
            assert part.left() == buffer.left()
    finally:
        memory.close()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_in_shared_memory_are_a_value_or_a_clean_error(data):
    memory = make_shared_contexts()
    try:
        os.pwrite(memory.writing, data, 0)
        with contextlib.suppress(values.WireError):
            read_context(memory.writing, 0, len(data), 1000)
    finally:
        memory.close()
