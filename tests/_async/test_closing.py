"""What closing, dropping, forking and the end of the process do to runs, sessions and their guests."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import pytest
from openai_server import OpenAIServer

from rlm import RLM_REPL, OpenAIClient, REPLEnv, ScriptedClient
from rlm._async.closing import RunningWork
from rlm.errors import SessionClosed


def cell(code):
    return f"```repl\n{code}\n```"


LONG = cell("import time\ntime.sleep(60)")


def scripted(*replies, **settings):
    return RLM_REPL(client=ScriptedClient(root=list(replies), sub=str), **settings)


def until_cell():
    """A listener and the event that it sets when a cell has begun."""
    begun = threading.Event()

    def listen(event):
        if type(event).__name__ == "CellStarted":
            begun.set()

    return begun, listen


def process_of(session):
    return session._owner.guest._guest._process.pid


def scratch_of(session):
    return session._owner.guest._guest._resources.scratch.path


def wait_until(is_so, seconds=10):
    """Other threads and processes bring it about; there is nothing to wait on."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# Closing


@pytest.mark.parametrize("blocking", [True, False])
def test_closing_ends_the_completion_under_way(blocking):
    begun, listen = until_cell()
    with ThreadPoolExecutor(1) as threads:
        rlm = scripted(LONG, cell("llm_query('still asking')"), on_event=listen)
        answer = threads.submit(rlm.completion, "x", "a question")
        assert begun.wait(10)
        started = time.monotonic()
        rlm.close() if blocking else anyio.run(rlm.aclose)
        with pytest.raises(RuntimeError, match="closed while"):
            answer.result(timeout=10)
        assert time.monotonic() - started < 30, "the cell was waited for"
    assert len(rlm.client.calls) == 1


def test_closing_ends_what_a_session_does():
    begun, listen = until_cell()
    with ThreadPoolExecutor(2) as threads, scripted(LONG, on_event=listen) as rlm:
        session = rlm.session("x")
        asking = threads.submit(session.ask, "a question")
        assert begun.wait(10)
        waiting = threads.submit(session.run, "print(1)")
        session.close()
        for call in (asking, waiting):
            with pytest.raises(SessionClosed):
                call.result(timeout=10)


def test_closing_the_object_ends_what_its_sessions_do():
    begun, listen = until_cell()
    with ThreadPoolExecutor(1) as threads:
        rlm = scripted(LONG, on_event=listen)
        session = rlm.session("x")
        pid = process_of(session)
        asking = threads.submit(session.ask, "a question")
        assert begun.wait(10)
        rlm.close()
        with pytest.raises((SessionClosed, RuntimeError), match="closed"):
            asking.result(timeout=10)
        assert is_gone(pid)


def test_closing_twice_and_in_any_order_is_no_error():
    rlm = scripted()
    session, other = rlm.session("x"), rlm.session("x")
    other.close()
    rlm.close()
    session.close()
    anyio.run(session.aclose)
    rlm.close()
    anyio.run(rlm.aclose)
    env = REPLEnv(client=ScriptedClient(str))
    env.close()
    env.close()


def test_a_close_that_fails_is_final_and_gives_the_loop_back():
    class Stuck(ScriptedClient):
        async def aclose(self):
            raise OSError("will not close")

    rlm = RLM_REPL(client=Stuck(str))
    session = rlm.session("x")
    pid = process_of(session)
    with pytest.raises(OSError, match="will not close"):
        rlm.close()
    rlm.close()
    assert is_gone(pid)
    assert "rlm-portal" not in [thread.name for thread in threading.enumerate()]


def test_a_listener_cannot_close_by_blocking_and_closes_nothing():
    problems = []

    def listen(event):
        try:
            rlm.close()
        except RuntimeError as error:
            problems.append(str(error))

    with scripted("FINAL(x)", "FINAL(y)", on_event=listen) as rlm:
        assert rlm.completion("x", "a question") == "x"
        assert rlm.completion("x", "a question") == "y"
    assert "await the async twin" in problems[0]


@pytest.mark.parametrize("other_lease", [True, False])
def test_a_run_may_close_its_own_object(other_lease):
    async def script(call):
        await rlm.aclose()
        return "FINAL(too late)"

    with ThreadPoolExecutor(1) as threads, scripted() as other:
        if other_lease:
            other.session("x")
        rlm = RLM_REPL(client=ScriptedClient(script))
        with pytest.raises(RuntimeError, match="closed"):
            threads.submit(rlm.completion, "x", "a question").result(timeout=20)


def test_a_cell_may_close_its_own_session():
    async def script(call):
        await sessions[0].aclose()
        return "too late"

    with ThreadPoolExecutor(1) as threads, RLM_REPL(client=ScriptedClient(script)) as rlm:
        sessions = [rlm.session("x")]
        pid = process_of(sessions[0])
        with pytest.raises(SessionClosed):
            threads.submit(sessions[0].run, "llm_query('hi')").result(timeout=20)
        wait_until(lambda: is_gone(pid))


def test_work_that_has_ended_by_itself_keeps_its_result():
    async def main():
        work = RunningWork("it", RuntimeError)
        with work.track():
            pass
        await work.end()
        with pytest.raises(RuntimeError, match="it is closed"), work.track():
            pass

    anyio.run(main)


# Dropping


def test_a_dropped_session_ends_its_guest():
    with scripted() as rlm:
        session = rlm.session("x")
        pid, scratch = process_of(session), scratch_of(session)
        del session
        gc.collect()
        wait_until(lambda: is_gone(pid) and not Path(scratch).exists())
        wait_until(lambda: not rlm._state.guests)


def test_a_closed_session_is_forgotten():
    with scripted() as rlm:
        for _ in range(3):
            rlm.session("x").close()
        wait_until(lambda: not rlm._state.guests)


def test_no_session_is_lost_when_its_opening_is_cancelled_at_any_time():
    async def main(rlm):
        for milliseconds in (0, 20, 60, 70, 80, 90, 100, 150):
            with anyio.move_on_after(milliseconds / 1000):
                await rlm.asession("x")

    def all_ended():
        gc.collect()  # a session that came too late may be part of a cycle
        return not rlm._state.guests

    with scripted() as rlm:
        anyio.run(main, rlm)
        wait_until(all_ended)


# Forking

forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def in_child(function):
    """Run it in a forked child; what it gave, as text."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(20)
            try:
                said = repr(function())
            except Exception as error:  # noqa: BLE001 - told to the parent
                said = f"{type(error).__name__}: {error}"
            os.write(writing, said.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


@forks
def test_closing_in_a_forked_child_leaves_the_parent_alone():
    rlm = scripted()
    session = rlm.session("x")
    session.run("a = 41")

    def child():
        nonlocal session
        session.close()
        rlm.close()
        session = None
        gc.collect()
        return "closed"

    assert in_child(child) == "'closed'"
    assert Path(scratch_of(session)).exists()
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(session.run, "print(a + 1)").result(timeout=10).stdout == "42\n"
    rlm.close()


@forks
def test_a_forked_child_begins_anew_though_the_parent_is_busy():
    begun = threading.Event()

    async def script(call):
        if "slow" in call.messages[-1].content:
            begun.set()
            await anyio.sleep_forever()
        return cell("FINAL(context)")

    with ThreadPoolExecutor(1) as threads:
        rlm = RLM_REPL(client=ScriptedClient(script), max_concurrent=1)
        slow = threads.submit(rlm.completion, "x", "slow")
        assert begun.wait(10)

        def child():
            answer = rlm.completion("quick", "a question")
            rlm.close()
            return answer

        assert in_child(child) == "'quick'"
        rlm.close()
        with pytest.raises(RuntimeError, match="closed"):
            slow.result(timeout=10)


@forks
def test_a_session_of_the_parent_is_closed_to_a_forked_child():
    with scripted() as rlm:
        session = rlm.session("x")
        assert in_child(lambda: session.run("1")).startswith("SessionClosed: this session belongs to")
        assert session.run("print(1)").stdout == "1\n"


@forks
def test_the_connections_of_a_client_stay_with_the_parent():
    with OpenAIServer() as server, OpenAIClient(base_url=server.base_url, api_key="sk-test") as client:
        client.completion("hi")

        def child():
            answer = client.completion("hi")
            client.close()
            gc.collect()
            return answer

        assert in_child(child) == "'answer to hi'"
        with ThreadPoolExecutor(1) as threads:
            assert threads.submit(client.completion, "hi").result(timeout=10) == "answer to hi"


# The end of the process

PREAMBLE = """
import os, signal, threading
from rlm import RLM_REPL, REPLEnv, ScriptedClient
LONG = "```repl\\nimport time\\ntime.sleep(60)\\n```"
"""


def left_behind_by(script, folder):
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", PREAMBLE + script],
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ended.stderr, sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "script",
    [
        "rlm = RLM_REPL(client=ScriptedClient(str)); session = rlm.session('x'); session.run('a = 1')",
        "env = REPLEnv(client=ScriptedClient(str)); env.code_execution('1 + 1')",
        "rlm = RLM_REPL(client=ScriptedClient(root=[LONG])); stream = rlm.stream('x', 'q'); next(stream)",
    ],
)
def test_the_end_of_the_process_leaves_no_guest_no_folder_and_no_word(script, tmp_path):
    assert tempfile.gettempdir() != str(tmp_path)
    assert left_behind_by(script, tmp_path) == ("", [])
