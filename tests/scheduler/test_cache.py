from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading

import anyio
import pytest
from fake_provider import FakeProvider, call

from rlm.events import Warned
from rlm.scheduler import Scheduler
from rlm.scheduler.cache import Cache, cache_path, key_of
from rlm.settings import SchedulerSettings
from rlm.values import Reply, Usage

pytestmark = pytest.mark.anyio


def settings(folder, mode="on", **changes):
    return SchedulerSettings(cache=mode, cache_folder=str(folder), **changes)


def at_once(**changes):
    return FakeProvider(seconds=0, **changes)


async def ask(provider, settings, calls, *, emit=lambda _: None, dedupe=True):
    scheduler = Scheduler(provider, settings)
    tree = scheduler.tree(run_id="r", emit=emit)
    try:
        return await tree.complete_all(calls, max_concurrent=8, dedupe=dedupe), tree.ledger
    finally:
        await scheduler.aclose()


async def test_a_stored_answer_is_marked_costs_nothing_and_is_not_asked_for(tmp_path):
    provider = at_once()
    first, _ = await ask(provider, settings(tmp_path), [call("a"), call("b")])
    again, ledger = await ask(provider, settings(tmp_path), [call("b"), call("a"), call("c")])
    assert provider.prompts == ["a", "b", "c"]
    assert [reply.text for reply in again] == ["answer to b", "answer to a", "answer to c"]
    assert [reply.stored for reply in again] == [True, True, False]
    assert not first[0].stored
    assert again[0].usage == Usage()
    assert again[0].cost_usd == 0
    assert ledger.usage.calls == 1
    assert ledger.cost_summary()["stored_replies"] == 2


async def test_samples_of_one_prompt_are_stored_one_by_one(tmp_path):
    numbers = iter(range(100))
    provider = at_once(answer=lambda _: Reply(text=str(next(numbers))))
    first, _ = await ask(provider, settings(tmp_path), [call("same")] * 5)
    again, _ = await ask(provider, settings(tmp_path), [call("same")] * 7)
    assert len({reply.text for reply in first}) == 5
    assert [reply.text for reply in again[:5]] == [reply.text for reply in first]
    assert [reply.stored for reply in again] == [True] * 5 + [False] * 2
    pairs, _ = await ask(provider, settings(tmp_path), [call("x"), call("y")] * 3, dedupe=False)
    assert len({reply.text for reply in pairs}) == 6


async def test_read_uses_but_does_not_add(tmp_path):
    provider = at_once()
    await ask(provider, settings(tmp_path, "read"), [call("a")])
    assert not list(tmp_path.iterdir())
    await ask(provider, settings(tmp_path), [call("a")])
    for _ in range(2):
        await ask(provider, settings(tmp_path, "read"), [call("a"), call("b")])
    assert provider.prompts == ["a", "a", "b", "b"]


async def test_sampled_answers_are_kept_only_when_asked_for(tmp_path):
    provider = at_once()
    for _ in range(2):
        await ask(
            provider, settings(tmp_path), [call("warm", temperature=0.7), call("cold", temperature=0.0)]
        )
    assert provider.prompts == ["warm", "cold", "warm"]
    for _ in range(2):
        await ask(provider, settings(tmp_path, cache_sampled=True), [call("hot", temperature=2.0)])
    assert provider.prompts.count("hot") == 1


async def test_only_whole_answers_are_kept(tmp_path):
    provider = at_once(answer=lambda _: Reply(text="cut", finish_reason="length"))
    for _ in range(2):
        await ask(provider, settings(tmp_path), [call("a")])
    assert provider.prompts == ["a", "a"]


async def test_two_endpoints_do_not_share_answers(tmp_path):
    one, two = at_once(), at_once()
    one.endpoint, two.endpoint = "http://one", "http://two"
    for provider in (one, two, one, two):
        await ask(provider, settings(tmp_path), [call("a")])
    assert one.prompts == two.prompts == ["a"]


async def test_any_text_survives_the_disk(tmp_path):
    text = "nul \x00, lone \udc80, emoji 🙂, crlf \r\n"
    provider = at_once(answer=lambda _: Reply(text=text))
    for _ in range(2):
        replies, _ = await ask(provider, settings(tmp_path), [call("\ud800 odd \x00")])
    assert replies[0].stored
    assert replies[0].text == text


async def test_the_cache_stays_within_its_size_and_forgets_what_was_not_used(tmp_path):
    cache = Cache(tmp_path / "c.sqlite3", mode="on", max_bytes=20_000)
    await cache.put(call("favourite"), Reply(text="x" * 900))
    for number in range(100):
        await cache.put(call(str(number)), Reply(text="x" * 900))
        with sqlite3.connect(tmp_path / "c.sqlite3") as other:
            other.execute("UPDATE replies SET used_at = used_at - 100")
        other.close()
        assert await cache.get(call("favourite"))
    kept = [number for number in range(100) if await cache.get(call(str(number)))]
    await cache.aclose()
    with sqlite3.connect(tmp_path / "c.sqlite3") as other:
        (total,) = other.execute("SELECT sum(bytes) FROM replies").fetchone()
        (counted,) = other.execute("SELECT bytes FROM size").fetchone()
    other.close()
    assert total == counted <= 20_000
    assert kept == list(range(100 - len(kept), 100))
    assert len(kept) > 10


async def test_a_broken_file_switches_the_cache_off_with_a_warning_and_fails_no_call(tmp_path):
    cache_path(settings(tmp_path)).write_bytes(b"this is no database" * 100)
    events = []
    replies, _ = await ask(at_once(), settings(tmp_path), [call("a"), call("b")], emit=events.append)
    assert [reply.text for reply in replies] == ["answer to a", "answer to b"]
    assert len([event for event in events if isinstance(event, Warned)]) == 1
    assert "switched off" in next(event.message for event in events if isinstance(event, Warned))


async def test_a_folder_that_cannot_be_made_fails_no_call(tmp_path):
    (tmp_path / "file").write_text("")
    replies, _ = await ask(at_once(), settings(tmp_path / "file" / "sub"), [call("a")])
    assert replies[0].text == "answer to a"


async def test_a_row_that_something_else_wrote_is_asked_again(tmp_path):
    provider = at_once()
    await ask(provider, settings(tmp_path), [call("a")])
    with sqlite3.connect(cache_path(settings(tmp_path))) as other:
        other.execute("UPDATE replies SET reply = 'nonsense'")
    other.close()
    for _ in range(2):
        replies, _ = await ask(provider, settings(tmp_path), [call("a")])
    assert provider.prompts == ["a", "a"]
    assert replies[0].stored


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
async def test_answers_are_readable_by_their_owner_only(tmp_path):
    await ask(at_once(), settings(tmp_path / "new"), [call("a")])
    assert cache_path(settings(tmp_path / "new")).stat().st_mode & 0o077 == 0
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0


async def test_the_database_is_never_touched_in_the_event_loops_thread(tmp_path, monkeypatch):
    threads = set()
    connect = sqlite3.connect

    def connect_traced(*arguments, **keywords):
        connection = connect(*arguments, **keywords)
        connection.set_trace_callback(lambda _: threads.add(threading.get_ident()))
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect_traced)
    await ask(at_once(), settings(tmp_path), [call(str(n)) for n in range(20)])
    assert threads
    assert threading.get_ident() not in threads


async def test_a_cancelled_put_leaves_a_cache_that_works(tmp_path):
    cache = Cache(tmp_path / "c.sqlite3", mode="on")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await cache.put(call("a"), Reply(text="x"))
    await cache.put(call("b"), Reply(text="y"))
    assert (await cache.get(call("b"))).text == "y"
    await cache.aclose()


WRITER = """
import sys, anyio
sys.path[:0] = sys.argv[3:]
from pathlib import Path
from fake_provider import call
from rlm.scheduler.cache import Cache
from rlm.values import Reply

async def main():
    cache = Cache(Path(sys.argv[1]), mode="on", max_bytes=200_000)
    for number in range(100):
        async with anyio.create_task_group() as tasks:  # a reading and a writing errand in one transaction
            for _ in range(3):
                tasks.start_soon(cache.get, call("nothing"))
            tasks.start_soon(lambda: cache.put(call(f"{sys.argv[2]} {number}"), Reply(text="x" * 500)))
        assert (await cache.get(call(f"{sys.argv[2]} {number}"))).text == "x" * 500
    assert not cache.problem, cache.problem
    await cache.aclose()

anyio.run(main)
"""


async def test_a_call_with_options_that_json_cannot_sort_is_stored_like_the_others(tmp_path):
    odd = call("odd", extra={"logit_bias": {1: 2, "b": 3}})
    for asked in (6, 0):
        provider = at_once()
        replies, _ = await ask(provider, settings(tmp_path), [odd, *(call(str(n)) for n in range(5))])
        assert all(isinstance(reply, Reply) for reply in replies)
        assert len(provider.requests) == asked


async def test_several_processes_may_write_at_once(tmp_path):
    writers = [
        subprocess.Popen(  # noqa: ASYNC220 - the loop has nothing else to do
            [sys.executable, "-c", WRITER, str(tmp_path / "c.sqlite3"), str(number), *sys.path]
        )
        for number in range(3)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    cache = Cache(tmp_path / "c.sqlite3", mode="read")
    found = [await cache.get(call(f"{writer} {n}")) for writer in range(3) for n in range(100)]
    await cache.aclose()
    assert all(found)


def test_the_key_holds_all_that_reaches_the_model_and_nothing_else():
    base = key_of(call("a"), endpoint="e")
    assert base == key_of(call("a", run_id="x", depth=3, batch=9, role="root"), endpoint="e")
    assert len(base) == 32
    others = [
        key_of(call("b"), endpoint="e"),
        key_of(call("a"), endpoint="f"),
        key_of(call("a", model="n"), endpoint="e"),
        key_of(call("a", temperature=0), endpoint="e"),
        key_of(call("a", max_output_tokens=1), endpoint="e"),
        key_of(call("a", schema={}), endpoint="e"),
        key_of(call("a", extra={"seed": 1}), endpoint="e"),
        key_of(call("a"), endpoint="e", occurrence=1),
    ]
    assert len({base, *others}) == 9


def test_without_a_folder_the_users_cache_folder_is_used():
    assert cache_path(SchedulerSettings()).is_absolute()
    assert "rlm-cells" in str(cache_path(SchedulerSettings()))
