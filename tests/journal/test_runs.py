"""The journal of runs, with real guests, real processes and a real file."""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
import signal
import stat
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import anyio
import pytest
from openai_server import OpenAIServer, failed

from rlm import RLM_REPL, ScriptedClient
from rlm.errors import AuthenticationFailed, BadRequest, JournalError, JournalLocked, SettingsError
from rlm.events import (
    AnswerGiven,
    CallFinished,
    CallStarted,
    CallWrote,
    CellFinished,
    CellOutput,
    CellStarted,
    RunFailed,
    RunStarted,
    Warned,
)
from rlm.journal.codec import record_of
from rlm.journal.log import Journal, read
from rlm.journal.runs import RunJournal, read_events
from rlm.metering.prices import Price
from rlm.values import Call, Message

HERE = {"run_id": "r", "depth": 0, "at": 1.0}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.journal"


def cell(code):
    return f"```repl\n{code}\n```"


def scripted(*replies, sub=lambda call: call.messages[-1].content.upper(), **settings):
    return RLM_REPL(client=ScriptedClient(root=list(replies), sub=sub), **settings)


def family(call):
    """A root run with three children, each with three of its own, each with a call."""
    if call.role == "sub":
        return "leaf"
    if call.depth == 2:
        return cell("FINAL(llm_query(context))")
    return cell("FINAL('+'.join(rlm_batch([(f'child {n}', f'{context}.{n}') for n in range(3)])))")


def kinds(events):
    return Counter(type(event).__name__ for event in events)


def test_the_events_of_a_run_are_in_its_journal_in_their_order(path):
    heard = []
    code = "print('hello')\nFINAL((llm_query('a'), llm_batch(['b', 'c'])))"
    with scripted("no code yet", cell(code), on_event=heard.append, journal=path) as rlm:
        answer = rlm.completion("x", "a question")
    written = list(read_events(path))
    assert written == [event for event in heard if not isinstance(event, (CallWrote, CellOutput))]
    assert isinstance(written[-1], AnswerGiven)
    assert written[-1].answer.value == answer.value == ("A", ["B", "C"])
    assert vars(written[-1].answer) == vars(answer)


def test_pieces_are_left_to_what_holds_them_whole(path):
    with scripted(cell("print('one')\nFINAL('two')"), journal=path) as rlm:
        told = {type(event) for event in rlm.stream("x", "a question")}
    assert {CallWrote, CellOutput} <= told
    written = list(read_events(path))
    assert not {CallWrote, CellOutput} & set(map(type, written))
    assert [event.result.stdout for event in written if isinstance(event, CellFinished)] == ["one\n"]
    assert [event.reply.text for event in written if isinstance(event, CallFinished)] == [
        cell("print('one')\nFINAL('two')")
    ]


def test_child_runs_of_any_depth_are_in_it_and_name_their_parents(path):
    with RLM_REPL(client=ScriptedClient(family), max_depth=3, journal=path, timeout_s=120) as rlm:
        assert rlm.completion("c", "a question").status == "ok"
        spent = rlm.cost_summary()
    written = list(read_events(path))
    runs = {event.run_id: event for event in written if isinstance(event, RunStarted)}
    assert Counter(event.depth for event in runs.values()) == {0: 1, 1: 3, 2: 9}
    for event in runs.values():
        assert event.depth == 0 or runs[event.parent_id].depth == event.depth - 1
    ended = {event.run_id for event in written if isinstance(event, AnswerGiven)}
    assert ended == set(runs) == {event.run_id for event in written}
    replies = [event.reply for event in written if isinstance(event, CallFinished)]
    assert sum((reply.usage for reply in replies[1:]), replies[0].usage).total_tokens == spent["total_tokens"]
    numbers = [event.call for event in written if isinstance(event, CallStarted)]
    assert sorted(numbers) == list(range(1, 13 + 9 + 1))


def test_completions_at_once_share_it_and_are_distinguished(path):
    client = ScriptedClient(lambda call: cell("FINAL(context * 2)"))
    with RLM_REPL(client=client, journal=path) as rlm, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda n: rlm.completion(f"{n}.", "a question"), range(16)))
    given = {event.run_id: event.answer for event in read_events(path) if isinstance(event, AnswerGiven)}
    assert {answer.run_id: answer for answer in answers} == given
    by_run = {}
    for event in read_events(path):
        by_run.setdefault(event.run_id, []).append(type(event).__name__)
    assert set(map(tuple, by_run.values())) == {
        (
            *("RunStarted", "TurnStarted", "CallStarted", "CallFinished", "RootReplied"),
            *("CellStarted", "CellFinished", "AnswerGiven"),
        )
    }


def test_sessions_cells_of_the_user_and_single_calls_are_in_it(path):
    with scripted("FINAL(one)", "FINAL(two)", journal=path) as rlm:
        with rlm.session("x") as session:
            session.ask("first")
            session.run("print(41 + 1)")
            session.ask("second")
        rlm.ask_model(Call(model="m", messages=(Message("user", "hi"),)))
    written = list(read_events(path))
    assert [event.question for event in written if isinstance(event, RunStarted)] == ["first", "second"]
    assert [event.code for event in written if isinstance(event, CellStarted)] == ["print(41 + 1)"]
    assert [event.reply.text for event in written if isinstance(event, CallFinished)][-1] == "HI"


def test_a_journal_that_is_there_is_gone_on_with_after_its_last_whole_record(path):
    for answer in "one", "two":
        with scripted(f"FINAL({answer})", journal=path) as rlm:
            rlm.completion("x", "a question")
        with path.open("ab") as file:
            file.write(b'{"v":1,"type":"Warn')
    assert [event.answer for event in read_events(path) if isinstance(event, AnswerGiven)] == ["one", "two"]


def test_only_its_owner_may_read_it(path):
    with scripted(journal=path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_answer_that_no_json_can_say_comes_back(path):
    code = "FINAL({1: (b'\\xff', {2}), 'half': '\\ud800', 'n': float('inf')})"
    with scripted(cell(code), journal=path) as rlm:
        answer = rlm.completion("x", "a question")
    (given,) = [event.answer for event in read_events(path) if isinstance(event, AnswerGiven)]
    assert given.value == answer.value == {1: (b"\xff", {2}), "half": "\ud800", "n": float("inf")}


def test_a_huge_record_is_as_good_as_any(path):
    size = 5_000_000
    with scripted(cell(f"FINAL('é' * {size})"), journal=path) as rlm:
        assert len(rlm.completion("x", "a question")) == size
    (given,) = [event.answer for event in read_events(path) if isinstance(event, AnswerGiven)]
    assert given == "é" * size
    with scripted("FINAL(x)", journal=path) as rlm:
        question(rlm)
    assert list(read_events(path))[-1].answer == "x"


KILLED = """
import sys, anyio
from rlm import RLM_REPL, ScriptedClient

async def model(call):
    if call.role == "root":
        if call.depth:
            return "```repl\\nFINAL('+'.join(llm_batch([f'{context} {n}' for n in range(50)])))\\n```"
        return "```repl\\nFINAL('+'.join(rlm_batch([(f'child {n}', f'child {n}') for n in range(4)])))\\n```"
    prompt = call.messages[-1].content
    if int(prompt.split()[-1]) >= 30:
        await anyio.sleep_forever()
    return prompt.upper()

def listen(event):
    if type(event).__name__ == "CallFinished":
        print(event.call, flush=True)

RLM_REPL(client=ScriptedClient(model), max_depth=2, journal=sys.argv[1], on_event=listen).completion("x", "q")
"""


def test_a_killed_process_leaves_every_call_that_was_answered(path):
    """Four child runs are under way, each with 30 of its 50 calls answered, when it dies."""
    arguments = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        heard = {int(process.stdout.readline()) for _ in range(125)}
        with pytest.raises(JournalLocked, match="another process"):
            RunJournal(path)
        process.send_signal(signal.SIGKILL)
    written = list(read_events(path))
    finished = {event.call: event for event in written if isinstance(event, CallFinished)}
    prompts = {event.call: event.messages[-1].content for event in written if isinstance(event, CallStarted)}
    assert set(finished) == heard
    for call, event in finished.items():
        assert event.depth == 0 or event.reply.usage.calls == 1
        if not event.reply.text.startswith("```"):
            assert event.reply.text == prompts[call].upper()
    assert kinds(written)["RunStarted"] == 5
    assert kinds(written)["AnswerGiven"] == 0
    with scripted("FINAL(x)", journal=path) as rlm:  # the lock has gone with the process
        rlm.completion("x", "a question")
    assert list(read_events(path))[: len(written)] == written


def fill_the_disk(monkeypatch, rlm, *, after):
    """The journal's file takes so many more records; then the disk is full."""
    real, left = os.write, [after]
    journal = rlm._journal._journal._descriptor

    def write(descriptor, data):
        if descriptor == journal:
            left[0] -= 1
            if left[0] < 0:
                real(descriptor, bytes(data)[:10])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)


def question(rlm):
    return rlm.completion("x", "a question")


@pytest.mark.parametrize("after", range(12))
def test_a_full_disk_ends_the_journal_and_not_the_run(path, monkeypatch, after):
    heard = []
    with scripted(cell("print(llm_query('a'))"), "FINAL(x)", journal=path, on_event=heard.append) as rlm:
        fill_the_disk(monkeypatch, rlm, after=after)
        answer = question(rlm)
    assert (answer, answer.status) == ("x", "ok")
    (warning,) = answer.warnings
    assert "incomplete in its journal" in warning
    assert "No space left" in warning
    assert len(list(read_events(path))) == after
    assert [event.message for event in heard if isinstance(event, Warned)] == [warning]
    assert isinstance(heard[0], RunStarted)
    assert heard[-1].answer is answer


def test_a_disk_that_is_full_at_the_very_end_is_logged_too(path, monkeypatch, caplog):
    heard = []
    with scripted("FINAL(x)", journal=path, on_event=heard.append) as rlm:
        fill_the_disk(monkeypatch, rlm, after=5)
        answer = question(rlm)
    assert isinstance(list(read_events(path))[-1], type(heard[-2]))
    assert isinstance(heard[-1], AnswerGiven)
    (warning,) = answer.warnings
    assert "No space left" in warning
    assert caplog.messages == [warning]


def test_every_answer_after_that_says_it_is_not_in_the_journal(path, monkeypatch):
    with scripted("FINAL(x)", "FINAL(y)", journal=path) as rlm:
        fill_the_disk(monkeypatch, rlm, after=3)
        first = question(rlm)
        monkeypatch.undo()
        second = question(rlm)
    assert first.warnings == second.warnings != ()
    assert len(list(read_events(path))) == 3


def test_a_disk_that_fails_at_the_end_is_logged(path, monkeypatch, caplog):
    def fail(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with scripted("FINAL(x)", BadRequest("no"), journal=path) as rlm:
        monkeypatch.setattr(os, "fsync", fail)
        answer = question(rlm)
    assert "Input/output error" in answer.warnings[0]
    assert caplog.messages == list(answer.warnings)


def test_a_disk_that_fails_after_a_failed_run_is_logged(path, monkeypatch, caplog):
    with scripted(BadRequest("no"), journal=path) as rlm:
        monkeypatch.setattr(os, "fsync", lambda descriptor: os.fstat(-1))
        with pytest.raises(BadRequest):
            question(rlm)
    assert "incomplete in its journal" in caplog.messages[-1]


def test_a_completion_that_has_returned_is_on_the_disk_itself(path, monkeypatch):
    synced = []
    real = os.fsync

    def fsync(descriptor):
        real(descriptor)
        synced.append(path.stat().st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    with scripted("FINAL(x)", BadRequest("no"), journal=path) as rlm:
        question(rlm)
        assert synced == [path.stat().st_size]
        with pytest.raises(BadRequest):
            question(rlm)
        assert synced[1:] == [path.stat().st_size]
        assert isinstance(list(read_events(path))[-1], RunFailed)


def test_a_cancelled_completion_is_whole_in_it(path):
    slow = cell("import time; time.sleep(60)")

    async def main():
        async with scripted(slow, journal=path) as rlm:
            async for event in (events := rlm.astream("x", "a question")):
                if isinstance(event, CellStarted):
                    break
            await events.aclose()

    anyio.run(main)
    written = list(read_events(path))
    assert [type(event) for event in written[-2:]] == [CellFinished, RunFailed]
    assert written[-1].kind == "Cancelled"


def test_closing_ends_what_runs_and_records_the_end(path):
    rlm = scripted(cell("import time; time.sleep(60)"), journal=path)
    with ThreadPoolExecutor(1) as threads:
        events = rlm.stream("x", "a question")
        next(event for event in events if isinstance(event, CellStarted))
        closing = threads.submit(rlm.close)
        with pytest.raises(RuntimeError, match="closed"):
            list(events)
        closing.result(timeout=20)
    assert isinstance(list(read_events(path))[-1], RunFailed)
    RunJournal(path).close()


def test_a_second_object_on_one_journal_is_refused_until_the_first_is_closed(path):
    with scripted("FINAL(x)", journal=path) as rlm:
        with pytest.raises(JournalLocked, match=r"runs\.journal"):
            scripted(journal=path)
        assert question(rlm).warnings == ()
    scripted(journal=path).close()


def test_an_object_that_is_dropped_lets_go_of_its_journal(path):
    rlm = scripted(journal=path)
    del rlm
    gc.collect()
    scripted(journal=path).close()


def test_two_objects_may_have_two_journals(tmp_path):
    with (
        scripted("FINAL(x)", journal=tmp_path / "a") as one,
        scripted("FINAL(y)", journal=tmp_path / "b") as two,
    ):
        question(one), question(two)
    assert [list(read_events(tmp_path / name))[-1].answer for name in "ab"] == ["x", "y"]


def test_a_journal_that_cannot_be_is_refused_at_once(path, tmp_path):
    with Journal.open(path, kind="bulk"):
        pass
    text = tmp_path / "a.txt"
    text.write_text("my text\n")
    for wrong, message in (
        (path, "of kind 'bulk', not 'run'"),
        (text, "is no journal"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none" / "runs.journal", "No such file"),
        (os.devnull, "no regular file"),
    ):
        with pytest.raises(JournalError, match=message):
            scripted(journal=wrong)
    assert text.read_text() == "my text\n"
    with pytest.raises(SettingsError, match="journal=True"):
        scripted(journal=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(JournalError, match="Permission denied"):
        scripted(journal=tmp_path / "runs.journal")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_writes_nothing_into_it_and_its_answers_say_so(path):
    rlm = scripted("FINAL(x)", "FINAL(y)", journal=path)
    question(rlm)
    before = path.read_bytes()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(30)
            answer = question(rlm)
            rlm.close()
            os.write(writing, json.dumps([answer, answer.warnings]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer, warnings = json.load(pipe)
    os.waitpid(child, 0)
    assert answer == "y"
    assert len(warnings) == 1
    assert "belongs to the parent process" in warnings[0]
    assert path.read_bytes() == before
    assert question(rlm).warnings == ()
    assert len(list(read_events(path))) > before.count(b"\n")
    rlm.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_not_keep_the_lock(path):
    """Not as long as the parent has the journal open, whose lock it must not break, nor after that."""
    journal = Journal.open(path, kind="run")
    reading, writing = os.pipe()
    hearing, saying = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        try:
            os.fstat(journal._descriptor)
        except OSError:
            os.write(saying, b"closed")
        else:
            os.write(saying, b"still open")
        os.read(reading, 1)  # lives until the parent has closed its end
        os._exit(0)
    assert os.read(hearing, 100) == b"closed"
    with pytest.raises(JournalLocked):
        RunJournal(path)
    journal.append({"n": 1})
    journal.close()
    RunJournal(path).close()
    for descriptor in reading, writing, hearing, saying:
        os.close(descriptor)
    os.waitpid(child, 0)


SECRET = "sk-proj-" + "a1B2" * 10


@pytest.mark.parametrize("place", ["argument", "environment"])
def test_no_key_is_ever_in_it(path, monkeypatch, place):
    """The endpoint refuses the key, and repeats it in its message."""
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    if place == "environment":
        monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    key = SECRET if place == "argument" else None
    told = failed(401, f"Incorrect API key provided: {SECRET}.")
    with OpenAIServer(plan=[told] * 5) as server:
        settings = {"api_key": key, "base_url": server.base_url, "journal": path, "model": "m"}
        with RLM_REPL(**settings) as rlm, pytest.raises(AuthenticationFailed):
            question(rlm)
    assert kinds(read_events(path))["CallFailed"] == 1
    data = path.read_bytes()
    assert SECRET[8:].encode() not in data
    assert b"a1B2a1B2" not in data


def test_the_cost_of_each_depth_can_be_summed(path):
    prices = {name: Price(input=1_000_000, output=0) for name in ("gpt-5", "gpt-5-nano")}
    with RLM_REPL(
        client=ScriptedClient(
            root=[cell("FINAL(rlm_query('q', 'c'))"), cell("FINAL(llm_query('12345678'))")], sub=["yes"]
        ),
        max_depth=2,
        prices=prices,
        journal=path,
    ) as rlm:
        question(rlm)
        summary = rlm.cost_summary()["by_depth"]
    costs = Counter()
    for _, record in read(path):
        if record["type"] == "CallFinished":
            costs[str(record["depth"])] += record["reply"]["cost_usd"]
    assert costs == {depth: part["cost_usd"] for depth, part in summary.items()}


def test_a_reader_leaves_out_what_only_a_later_version_knows(path, caplog):
    with Journal.open(path, kind="run") as journal:
        for _ in range(2):
            journal.append({"type": "Danced", "run_id": "r", "depth": 0, "at": 1.0})
        journal.append({**record_of(Warned(**HERE, message="m")), "colour": "blue"})
    assert list(read_events(path)) == [Warned(**HERE, message="m")]
    assert caplog.record_tuples == [("rlm", logging.WARNING, caplog.messages[0])]
    assert "'Danced'" in caplog.messages[0]


def test_a_record_that_is_no_event_is_damage_that_says_where(path):
    with Journal.open(path, kind="run") as journal:
        journal.append(record_of(Warned(**HERE, message="m")))
        offset = journal.append({"type": "Warned", "run_id": "r"})
    events = read_events(path)
    assert next(events).message == "m"
    with pytest.raises(JournalError, match=f"damaged at byte {offset:,}: .* without .*message"):
        next(events)


def test_a_journal_of_another_kind_is_not_read(path):
    with Journal.open(path, kind="bulk"):
        pass
    with pytest.raises(JournalError, match="of kind 'bulk'"):
        list(read_events(path))


def test_a_value_that_cannot_be_written_ends_the_journal_and_says_what(path):
    journal = RunJournal(path)
    journal.write(Warned(**HERE, message=object()))
    assert "a Warned cannot be written down" in journal.problem
    journal.write(Warned(**HERE, message="m"))
    journal.close()
    assert list(read_events(path)) == []


def test_reading_while_it_is_written_gives_what_is_there(path):
    seen = []
    listen = partial(_count_records, path, seen)
    with scripted(cell("FINAL(llm_query('a'))"), journal=path, on_event=listen) as rlm:
        question(rlm)
    assert seen == sorted(seen)
    assert seen[0] == 1, "a record is there before anybody hears of its event"


def _count_records(path, seen, event):
    seen.append(len(list(read_events(path))))
