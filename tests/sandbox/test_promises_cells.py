# ruff: noqa: PTH123, PTH208 - tests look at /proc as the kernel shows it
"""What an honest cell may rely on, and what a dishonest one costs: that cell, and nothing else."""

from __future__ import annotations

import os

import anyio
import pytest

from rlm.sandbox.guest import cell_watch
from rlm.sandbox.process import CALL_BYTES
from rlm.sandbox.session import open_session
from rlm.settings import SandboxSettings

pytestmark = pytest.mark.anyio

QUICK = SandboxSettings(cell_timeout_s=5.0, memory_bytes=512 << 20, answer_bytes=1 << 20)

SPEAK = r"""
import os, struct, time
links = {n: os.readlink(f"/proc/self/fd/{n}") for n in range(250, 400) if os.path.exists(f"/proc/self/fd/{n}")}
channel = [n for n, link in links.items() if "socket" in link][0]
death_pipe = [n for n, link in links.items() if "pipe" in link][0]
def F(kind, more, number, payload=b""):
    os.write(channel, struct.pack(">BBII", kind, more, number, len(payload)) + payload)
P = b"t\0\0\0\2s\0\0\0\1xd\0\0\0\0"
"""


async def slow(call):
    await anyio.sleep_forever()


async def at_length(call):
    return "x" * 2_000_000


@pytest.fixture
async def session():
    session = await open_session(QUICK)
    await session.load("context")
    assert (await session.run("mine = 'kept'", serve=slow)).state == "kept"
    yield session
    await session.aclose()


async def goes_on(session, expected="kept"):
    """A plain cell runs at once and finds the variables."""
    with anyio.fail_after(5):
        result = await session.run("print(mine)", serve=slow)
    assert (result.outcome, result.state, result.stdout) == ("ok", "kept", expected + "\n"), result


def processes(session):
    """The guest's processes: state and processor ticks of each, by number."""
    found = {}
    waiting = [session._guest._process.pid]
    while waiting:
        pid = waiting.pop()
        try:
            with open(f"/proc/{pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
            found[pid] = (fields[0], int(fields[11]) + int(fields[12]))
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children") as file:
                    waiting += map(int, file.read().split())
        except OSError:
            continue
    return found


# --- calls that nobody waits for -----------------------------------------------------------------------------


@pytest.mark.slow
async def test_replies_that_a_cell_does_not_read_end_it_before_they_fill_the_memory(session):
    async def huge(call):
        return "x" * (8 << 20)

    code = f"{SPEAK}\nfor n in range(60): F(19, 0, n, P)\ntime.sleep(60)"
    with anyio.fail_after(40):
        result = await session.run(code, serve=huge)
    assert (result.outcome, result.state) == ("protocol", "rolled back"), result
    assert "the cell did not read" in result.error
    await goes_on(session)


async def test_a_cell_that_does_not_read_can_be_cancelled(session):
    async def huge(call):
        return "x" * (8 << 20)

    code = f"{SPEAK}\nfor n in range(15): F(19, 0, n, P)\ntime.sleep(60)"
    with anyio.move_on_after(0.8), anyio.fail_after(5):
        await session.run(code, serve=huge)
    await goes_on(session)


@pytest.mark.slow
async def test_a_reply_larger_than_what_may_wait_unread_arrives():
    async def huge(call):
        return [{"text": "x" * 1_000_000} for _ in call.arguments["prompts"]]

    session = await open_session(SandboxSettings(cell_timeout_s=60))
    result = await session.run("print(sum(map(len, llm_batch(['p'] * 300))))", serve=huge)
    await session.aclose()
    assert result.stdout == "300000000\n", result


async def test_a_cell_that_does_not_collect_its_calls_is_kept_and_the_next_one_runs_at_once(session):
    for _ in range(3):
        result = await session.run(
            "from concurrent.futures import ThreadPoolExecutor\n"
            "pool = ThreadPoolExecutor(4)\n"
            "futures = [pool.submit(llm_query, 'x') for _ in range(4)]\n"
            "mine = 'new'",
            serve=at_length,
        )
        assert (result.outcome, result.state) == ("ok", "kept"), result
        await goes_on(session, "new")


async def test_a_cell_that_ends_while_replies_arrive_is_kept(session):
    for _ in range(3):
        result = await session.run(
            "import threading\n"
            "for _ in range(4): threading.Thread(target=llm_query, args=('x',), daemon=True).start()\n"
            "llm_query('x')\nmine = 'new'",
            serve=at_length,
        )
        assert (result.outcome, result.state) == ("ok", "kept"), result
        await goes_on(session, "new")


async def test_a_thread_that_waits_for_a_reply_does_not_cost_its_cell(session):
    result = await session.run(
        "import threading, time\n"
        "threading.Thread(target=llm_query, args=('x',), daemon=True).start()\n"
        "time.sleep(.1)\nmine = 'new'",
        serve=slow,
    )
    assert (result.outcome, result.state) == ("ok", "kept"), result
    await goes_on(session, "new")


# --- between cells -------------------------------------------------------------------------------------------


async def test_threads_of_ended_cells_do_not_run_on_after_a_question_or_a_rolled_back_cell(session):
    await session.run(
        "import threading\ndef spin():\n  while True: pass\nthreading.Thread(target=spin, daemon=True).start()",
        serve=slow,
    )
    await session.variables()
    await session.run("import os; os._exit(1)", serve=slow)
    before = processes(session)
    await anyio.sleep(0.3)
    after = processes(session)
    assert after.keys() == before.keys()
    assert all(ticks - before[pid][1] <= 1 for pid, (_, ticks) in after.items()), (before, after)
    assert "T" in [state for state, _ in after.values()]


@pytest.mark.parametrize(
    "left",
    [
        "signal.alarm(1)",
        "signal.setitimer(signal.ITIMER_REAL, .001)",
        "signal.signal(signal.SIGALRM, lambda *_: 1 / 0)\nsignal.setitimer(signal.ITIMER_REAL, .05, .05)",
        "signal.signal(signal.SIGCHLD, lambda *_: 1 / 0)",
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    ],
)
async def test_timers_and_signal_handlers_of_a_cell_cost_no_later_cell_its_state(session, left):
    result = await session.run(f"import signal\nmine = 'new'\n{left}", serve=slow)
    if result.state == "kept":  # a timer of a millisecond may end its own cell
        await anyio.sleep(0.1)
        result = await session.run("import os; os._exit(3)", serve=slow)
        assert (result.state, result.error[-1]) == ("rolled back", "3"), result
        await goes_on(session, "new")
    await session.run("import os; os._exit(1)", serve=slow)
    assert (await session.run("mine", serve=slow)).outcome == "ok"


async def test_a_signal_handler_stays_for_the_next_cell(session):
    await session.run(
        "import signal\nseen = []\nsignal.signal(signal.SIGALRM, lambda *_: seen.append(1))", serve=slow
    )
    result = await session.run(
        "import time\nsignal.setitimer(signal.ITIMER_REAL, .01)\ntime.sleep(.05)\nseen", serve=slow
    )
    assert result.stdout == "[1]\n"


async def test_children_that_a_thread_forks_while_its_cell_ends_do_not_stay(session):
    for _ in range(3):
        await session.run(
            "import threading, os\n"
            "def fork():\n"
            "  for _ in range(40):\n"
            "    if os.fork() == 0:\n"
            "      while True: pass\n"
            "threading.Thread(target=fork, daemon=True).start()",
            serve=slow,
        )
        before = processes(session)
        await anyio.sleep(0.1)
        after = processes(session)
        assert all(ticks - before[pid][1] <= 1 for pid, (_, ticks) in after.items()), (before, after)


# --- what a cell says out of order ---------------------------------------------------------------------------


def test_host_and_supervisor_agree_on_the_length_of_a_call():
    assert cell_watch.CALL_BYTES == CALL_BYTES


@pytest.mark.parametrize(
    "speech",
    [
        "F(19, 0, 7, P); F(19, 0, 7, P); time.sleep(1)",
        "F(19, 1, 7, P); F(19, 1, 8, P); time.sleep(1)",
        "F(19, 1, 7, P)",
        "p = bytes(1 << 18)\nfor _ in range(1100): F(19, 1, 7, p)",
    ],
    ids=["one number twice", "a message within a message", "an unfinished message", "a long message"],
)
async def test_frames_out_of_order_cost_the_cell_alone(session, speech):
    result = await session.run(SPEAK + speech, serve=slow)
    assert (result.outcome, result.state) == ("protocol", "rolled back"), result
    await goes_on(session)


async def test_a_cell_cannot_keep_the_channel_or_the_death_pipe_of_its_checkpoint(session):
    await session.run(SPEAK + "kept = [os.dup(channel), os.dup(death_pipe)]", serve=slow)
    result = await session.run("[os.path.exists(f'/proc/self/fd/{n}') for n in kept]", serve=slow)
    assert result.stdout == "[False, False]\n", result
    await session.run("import os; os._exit(3)", serve=slow)
    await goes_on(session)


async def test_a_cell_cannot_pass_itself_off_as_the_next_process(session):
    result = await session.run(
        SPEAK + "import sys\n"
        "def forged(self, descriptors):\n"
        "    os.write(descriptors[0], struct.pack('>BBII', 33, 0, os.getpid(), 0))\n"
        "sys.modules['guest.worker'].Worker._fork.__code__ = forged.__code__",  # an attribute would be put back
        serve=slow,
    )
    assert (result.outcome, result.state) == ("protocol", "rolled back"), result
    await goes_on(session)


# --- the clock -----------------------------------------------------------------------------------------------


async def test_children_that_compute_while_a_call_is_pending_use_up_the_time_of_their_cell(session):
    with anyio.fail_after(30):
        result = await session.run(
            "import os\nfor _ in range(3):\n  if os.fork() == 0:\n    while True: pass\nllm_query('x')",
            serve=slow,
        )
    assert (result.outcome, result.state) == ("timeout", "rolled back"), result
    await goes_on(session)
