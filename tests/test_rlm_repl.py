"""Whole completions: a scripted model, a real guest, and every door to them."""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest
import trio
from blockbuster import blockbuster_ctx

from rlm import RLM_REPL, ScriptedClient
from rlm.errors import (
    AuthenticationFailed,
    BadRequest,
    BudgetExceeded,
    ContextError,
    DeadlineExceeded,
    ServerError,
    SettingsError,
)
from rlm.events import AnswerGiven, CallWrote, CellFinished, CellOutput, RunFailed, RunStarted, Warned
from rlm.metering.prices import Price
from rlm.scheduler.budget import Budget
from rlm.settings import SandboxSettings, SchedulerSettings
from rlm.values import Call, Message


def cell(code):
    return f"```repl\n{code}\n```"


def scripted(*replies, sub=lambda call: call.messages[-1].content.upper(), **settings):
    return RLM_REPL(client=ScriptedClient(root=list(replies), sub=sub), **settings)


def always(reply, **settings):
    """Every question gets the same reply, so that many may be asked at once."""
    return RLM_REPL(client=ScriptedClient(lambda call: reply), **settings)


def complete(context, *replies, **settings):
    with scripted(*replies, **settings) as rlm:
        return rlm.completion(context, "a question")


def test_an_answer_is_computed_from_the_context_by_cells():
    answer = complete("red green red", cell("count = context.count('red')"), cell("FINAL(count)"))
    assert answer == "2"
    assert (answer.value, answer.status, answer.turns) == (2, "ok", 2)


def test_sub_calls_of_a_cell_are_answered_and_counted():
    answer = complete("a b c", cell("FINAL('-'.join(llm_batch(context.split())))"))
    assert answer == "A-B-C"
    assert answer.usage.calls == 4


@pytest.mark.parametrize(
    "context",
    [
        "line\r\nline\rline\n",
        "lone \ud800 and pair \ud83d\ude00 and NUL \0",
        ["a", b"\xff\x00", ("t", 1)],
        {1: "int key", ("tuple", 2): None, "nested": {"when": datetime(2026, 1, 2, tzinfo=UTC)}},
        [{"role": "user", "content": "hi"}],
        {"set": {1, 2}, "big": 2**200, "nan-free": -0.0},
    ],
)
def test_a_context_comes_back_as_it_went(context):
    assert complete(context, cell("FINAL(context)")).value == context


def test_a_path_is_read_as_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\ntwo")
    assert complete(path, cell("FINAL(repr(context))")) == repr("one\r\ntwo")


@pytest.mark.parametrize("context", ["", [], {}, None])
def test_an_empty_context_is_refused_before_anything_starts(context):
    with scripted() as rlm, pytest.raises(ContextError, match="empty"):
        rlm.completion(context, "a question")


def test_a_type_that_cannot_cross_is_named_with_its_place():
    with scripted() as rlm, pytest.raises(ContextError, match="Thread"):
        rlm.completion([{"worker": threading.Thread()}], "a question")


def test_a_missing_file_is_a_context_error():
    with scripted() as rlm, pytest.raises(ContextError, match="no such file"):
        rlm.completion(Path("/no/such/file"), "a question")


def test_without_a_question_the_context_is_followed():
    with scripted("FINAL(x)") as rlm:
        rlm.completion("do as I say")
        assert "context itself contains" in rlm.client.calls[0].messages[1].content


def test_bad_settings_are_refused_at_once():
    with pytest.raises(SettingsError, match="max_iterations=0"):
        RLM_REPL(max_iterations=0)


def test_a_failing_root_call_is_raised_as_it_is():
    with scripted(BadRequest("no")) as rlm, pytest.raises(BadRequest, match="no"):
        rlm.completion("x", "a question")


def test_without_key_or_endpoint_the_error_says_what_to_do(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(AuthenticationFailed, match="OPENAI_API_KEY"):
        RLM_REPL()


def test_a_cell_that_dies_costs_only_itself():
    answer = complete("x", cell("kept = 41"), cell("import os; os._exit(3)"), cell("FINAL(kept + 1)"))
    assert answer == "42"


def test_a_cell_that_loops_is_stopped_and_the_run_goes_on():
    answer = complete(
        "x", cell("kept = 41"), cell("while True: pass"), cell("FINAL(kept + 1)"), cell_timeout_s=0.5
    )
    assert answer == "42"


def test_a_run_that_takes_too_long_ends_with_its_draft():
    slow = cell("answer['content'] = 'so far'"), cell("import time; time.sleep(60)")
    answer = complete("x", *slow, timeout_s=3.0)
    assert (answer, answer.status) == ("so far", "timeout")
    assert "3 s" in answer.limit


def test_a_run_out_of_time_says_what_its_provider_was_in_trouble_with():
    client = ScriptedClient(root=lambda call: ServerError("the provider is on fire"))
    with RLM_REPL(client=client, timeout_s=3.0) as rlm:
        answer = rlm.completion("some text", "a question")
    assert answer.status == "timeout"
    assert answer.warnings == ("when time ran out, a call was waiting for a retry: the provider is on fire",)


def test_a_budget_ends_the_run_with_its_draft_before_it_is_exceeded():
    drafting = cell("answer['content'] = 'so far'"), cell("llm_batch([str(n) for n in range(100)])")
    with scripted(*drafting, budget=Budget(calls=6)) as rlm:
        answer = rlm.completion("x", "a question")
    assert (answer, answer.status) == ("so far", "budget")
    assert answer.usage.calls == len(rlm.client.calls) == 6


@pytest.mark.parametrize(
    ("limit", "error"),
    [({"budget": Budget(calls=1)}, BudgetExceeded), ({"timeout_s": 1.0}, DeadlineExceeded)],
)
def test_a_limit_may_raise_and_holds_the_partial_answer(limit, error):
    endless = cell("answer['content'] = 'so far'"), cell("import time; time.sleep(60)")
    with scripted(*endless, on_limit="raise", **limit) as rlm, pytest.raises(error) as raised:
        rlm.completion("x", "a question")
    assert raised.value.partial == "so far"
    assert raised.value.partial.usage.calls >= 1


def test_a_budget_in_dollars_needs_a_price():
    with (
        scripted("FINAL(x)", model="made-up", budget=1.0) as rlm,
        pytest.raises(SettingsError, match="price"),
    ):
        rlm.completion("x", "a question")


def test_what_a_run_cost_is_in_its_answer():
    prices = {name: Price(input=1_000_000, output=0) for name in ("gpt-5", "gpt-5-nano")}
    with scripted(cell("FINAL(llm_query('12345678'))"), prices=prices, budget=100_000.0) as rlm:
        answer = rlm.completion("x", "a question")
        assert answer.cost_usd == answer.usage.input_tokens
        assert rlm.cost_summary()["by_model"]["gpt-5-nano"]["cost_usd"] == 2


def test_a_sandbox_that_is_not_known_is_refused():
    with pytest.raises(SettingsError, match="sandbox='none'"):
        scripted(sandbox="none")


def test_no_turns_left_ends_with_the_draft():
    answer = complete("x", cell("answer['content'] = 'so far'"), max_iterations=1)
    assert (answer, answer.status) == ("so far", "partial")


def test_the_environment_does_not_reach_a_cell(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    answer = complete("x", cell("import os; FINAL(str(dict(os.environ)))"))
    assert "sk-canary" not in answer


def test_a_child_run_has_a_question_a_context_and_a_guest_of_its_own():
    def root(call):
        question = call.messages[1].content
        if call.depth == 0:
            return cell("mine = 1\nFINAL(rlm_query('what is in it?', context[:3]))")
        assert "what is in it?" in question
        return cell("FINAL((context, 'mine' in globals()))")

    with RLM_REPL(client=ScriptedClient(root=root), max_depth=2) as rlm:
        answer = rlm.completion("abcdef", "a question")
    assert answer.value == ("abc", False)
    assert answer.usage.calls == 2
    assert rlm.cost_summary()["by_depth"].keys() == {"0", "1"}


def test_children_run_in_parallel_at_depth_two():
    async def root(call):
        if call.depth == 0:
            return cell("FINAL(rlm_batch([(str(n), n + 1) for n in range(4)]))")
        in_flight.append(call)
        if len(in_flight) == 4:
            all_are_in_flight.set()
        await all_are_in_flight.wait()
        return cell("FINAL(context * 10)")

    in_flight, all_are_in_flight = [], anyio.Event()
    with RLM_REPL(client=ScriptedClient(root=root), max_depth=2, timeout_s=30) as rlm:
        assert rlm.completion("x", "a question").value == [10, 20, 30, 40]


def test_events_tell_the_run_in_order():
    events = []
    with scripted(cell("print('hello')"), "FINAL(x)", on_event=events.append) as rlm:
        rlm.completion("x", "a question")
    names = [type(event).__name__ for event in events if not isinstance(event, (CellOutput, CallWrote))]
    assert names == [
        "RunStarted",
        *("TurnStarted", "CallStarted", "CallFinished", "RootReplied", "CellStarted", "CellFinished"),
        *("TurnStarted", "CallStarted", "CallFinished", "RootReplied"),
        "AnswerGiven",
    ]
    assert isinstance(events[0], RunStarted)
    assert "".join(event.text for event in events if isinstance(event, CellOutput)) == "hello\n"
    assert next(event for event in events if isinstance(event, CellFinished)).result.stdout == "hello\n"
    assert isinstance(events[-1], AnswerGiven)


def test_a_failed_run_ends_with_an_event():
    events = []
    with scripted(BadRequest("no"), on_event=events.append) as rlm, pytest.raises(BadRequest):
        rlm.completion("x", "a question")
    assert isinstance(events[-1], RunFailed)


def test_a_listener_that_raises_does_not_hurt_the_run():
    def broken(event):
        raise OSError("the terminal is gone")

    told = []
    with scripted("FINAL(x)", "FINAL(y)", on_event=broken) as rlm:
        rlm._listeners.add(told.append)
        answer = rlm.completion("x", "a question")
        assert rlm.completion("x", "a question").warnings == ()
    assert answer == "x"
    assert [warning for warning in answer.warnings if "the terminal is gone" in warning]
    assert [event.message for event in told if isinstance(event, Warned)] == list(answer.warnings)


@pytest.mark.parametrize("question", [Path("contract.txt"), 5, ["a"]])
def test_a_query_that_is_no_text_is_refused(question):
    with (
        scripted("FINAL(x)") as rlm,
        pytest.raises(TypeError, match=r"call completion\(context, query\)"),
    ):
        rlm.completion("some text", question)


def test_the_offline_client_costs_nothing_and_fits_any_budget():
    with RLM_REPL(client="offline", budget=0.01) as rlm:
        answer = rlm.completion("The lease ends in May. " * 50, "When does the lease end?")
    assert (answer.status, answer.cost_usd) == ("ok", 0.0)


def test_a_listener_that_exits_does_not_take_the_loop_of_all_others_with_it():
    def leave(event):
        sys.exit(3)

    with scripted(cell("FINAL(1)"), on_event=leave) as rlm:
        answer = rlm.completion("x", "q")
    assert answer == "1"
    assert "SystemExit(3)" in answer.warnings[0]


@pytest.mark.parametrize("listener", [anyio.sleep, functools.partial(anyio.sleep), 5])
def test_a_listener_that_cannot_hear_is_refused(listener):
    with pytest.raises(SettingsError, match="on_event"):
        scripted(on_event=listener)


def test_every_method_that_blocks_has_an_async_twin():
    names = {name for name in vars(RLM_REPL) if not name.startswith("_")}
    plain = {name for name in names if not name.startswith("a") or name.startswith("ask")}
    assert {f"a{name}" for name in plain - {"cost_summary", "reset"}} == names - plain


def test_one_call_can_be_made_without_a_run():
    call = Call(model="m", messages=(Message("user", "hi"),))

    async def main():
        async with scripted() as rlm:
            assert (await rlm.aask_model(call)).text == "HI"
            assert [reply.text for reply in await rlm.aask_models([call] * 2)] == ["HI", "HI"]
            async with await rlm.abare_session() as session:
                return (await session.arun("print(1)")).stdout

    assert anyio.run(main) == "1\n"


def test_settings_that_would_be_overruled_are_refused():
    with pytest.raises(SettingsError, match="max_concurrent"):
        scripted(max_concurrent=3, scheduler=SchedulerSettings())
    with pytest.raises(SettingsError, match="cache"):
        scripted(cache="off", scheduler=SchedulerSettings())
    with pytest.raises(SettingsError, match="cell_timeout_s"):
        scripted(cell_timeout_s=3.0, sandbox=SandboxSettings())


def test_no_calls_at_once_is_not_automatic():
    with pytest.raises(SettingsError, match="max_concurrent=0"):
        scripted(max_concurrent=0)


@pytest.mark.parametrize("name", ["model", "recursive_model"])
def test_a_key_in_the_place_of_a_model_is_refused_and_not_shown(name):
    with pytest.raises(SettingsError, match="API key") as caught:
        RLM_REPL(**{name: "sk-proj-abcdefghijklmnop"}, client=ScriptedClient(str))
    assert "abcdefgh" not in repr(caught.value)


def test_a_key_in_the_environment_in_the_place_of_a_model_is_refused_and_not_shown(monkeypatch):
    monkeypatch.setenv("RLM_MODEL", "sk-proj-abcdefghijklmnop")
    with pytest.raises(SettingsError, match=r"RLM_MODEL=.*API key") as caught:
        RLM_REPL(client=ScriptedClient(str))
    assert "abcdefgh" not in repr(caught.value)


@pytest.mark.parametrize(
    ("client", "words"),
    [
        ("openai", "'offline' is the only client that has a name"),
        ("", "'offline' is the only client that has a name"),
        (ScriptedClient, r"client=ScriptedClient is a class: pass an instance, client=ScriptedClient\(...\)"),
        (42, "client=42 has no method `complete`: pass an async function"),
    ],
)
def test_what_is_no_client_is_refused_at_once(client, words):
    with pytest.raises(SettingsError, match=words):
        RLM_REPL(client=client)


@pytest.mark.parametrize("models", [["gpt-5", "sk-proj-abcdefghijklmnop"], "sk-proj-abcdefghijklmnop"])
def test_a_key_among_the_models_of_child_runs_is_refused_and_not_shown(models):
    with pytest.raises(SettingsError, match=r"child_models.*API key") as caught:
        RLM_REPL(child_models=models, client=ScriptedClient(str))
    assert "abcdefgh" not in repr(caught.value)


def test_a_budget_in_dollars_needs_the_prices_of_the_models_of_child_runs_that_there_can_be():
    options = {"client": ScriptedClient(root=["FINAL(1)"]), "budget": Budget(dollars=1.0)}
    with RLM_REPL("gpt-5", max_depth=1, child_models=["nobody-knows-it"], **options) as rlm:
        assert rlm.completion("x", "q") == "1"
    with (
        RLM_REPL("gpt-5", max_depth=2, child_models=["nobody-knows-it"], **options) as rlm,
        pytest.raises(SettingsError, match="nobody-knows-it"),
    ):
        rlm.completion("x", "q")


def test_a_stream_yields_events_as_they_happen():
    slow = cell("print('one')\nimport time\ntime.sleep(0.5)\nFINAL('two')")
    with scripted(slow) as rlm:
        times = {type(event).__name__: time.monotonic() for event in rlm.stream("x", "a question")}
    assert list(times)[-1] == "AnswerGiven"
    assert times["CellOutput"] < times["CellFinished"] - 0.3


def test_a_stream_tells_the_root_models_words_as_they_are_written():
    with scripted("FINAL(Ada)") as rlm:
        events = list(rlm.stream("x", "a question"))
    assert [event.text for event in events if isinstance(event, CallWrote)] == ["FINAL", "(Ada)"]


def test_a_stream_raises_what_ended_the_run_after_its_events():
    events = []
    with scripted(BadRequest("no")) as rlm, pytest.raises(BadRequest):
        events.extend(rlm.stream("x", "a question"))
    assert isinstance(events[-1], RunFailed)


def test_a_stream_left_early_cancels_the_run():
    with scripted(cell("import time; time.sleep(60)"), "FINAL(x)") as rlm:
        started = time.monotonic()
        for event in rlm.stream("x", "a question"):
            if type(event).__name__ == "CellStarted":
                break
        assert rlm.completion("x", "a question") == "x"
        assert time.monotonic() - started < 30, "the cell was waited for"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_stream_works_on_any_loop(backend):
    async def main():
        async with scripted(cell("print(1)"), "FINAL(x)") as rlm:
            return [event async for event in rlm.astream("x", "a question")]

    assert anyio.run(main, backend=backend)[-1].answer == "x"


def test_completions_run_from_many_threads_on_one_object():
    with always(cell("FINAL(context * 2)")) as rlm, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda n: rlm.completion(f"{n}.", "a question"), range(16)))
    assert answers == [f"{n}.{n}." for n in range(16)]


def test_completion_works_inside_a_running_event_loop():
    async def notebook_cell():
        return rlm.completion("x", "a question")

    with scripted("FINAL(x)") as rlm:
        assert asyncio.run(notebook_cell()) == "x"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_acompletion_works_on_any_loop(backend):
    async def main():
        async with scripted(cell("FINAL(context)")) as rlm:
            return await rlm.acompletion("x", "a question")

    assert anyio.run(main, backend=backend) == "x"


def test_acompletion_never_blocks_the_loop():
    async def main():
        with blockbuster_ctx():
            async with scripted(cell("FINAL(len(context))")) as rlm:
                return await rlm.acompletion("x" * 3_000_000, "a question")

    assert asyncio.run(main()) == "3000000"


def test_a_cancelled_acompletion_ends_its_cell_and_leaves_the_object_usable():
    async def main():
        async with RLM_REPL(
            client=ScriptedClient(root=[cell("import time; time.sleep(60)"), "FINAL(x)"])
        ) as rlm:
            started = time.monotonic()
            with trio.move_on_after(1) as scope:
                await rlm.acompletion("x", "a question")
            assert scope.cancelled_caught
            assert time.monotonic() - started < 30, "the cell was waited for"
            return await rlm.acompletion("x", "a question")

    assert trio.run(main) == "x"


def test_costs_add_up_over_completions_until_reset():
    with always("FINAL(x)") as rlm:
        for _ in range(3):
            rlm.completion("x", "a question")
        assert rlm.cost_summary()["calls"] == 3
        rlm.reset()
        assert rlm.cost_summary()["calls"] == 0


def test_a_closed_object_says_so():
    rlm = scripted("FINAL(x)")
    rlm.close()
    rlm.close()
    with pytest.raises(RuntimeError, match="closed"):
        rlm.completion("x", "a question")


def test_no_thread_is_left_after_close():
    before = set(threading.enumerate())
    complete("x", "FINAL(x)")
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(timeout=10)  # anyio's idle workers end a moment after their loop
    assert not any(thread.is_alive() for thread in left)


def test_the_name_of_a_file_instead_of_the_file_is_told(tmp_path, monkeypatch):
    (tmp_path / "contract.txt").write_text("the contract")
    monkeypatch.chdir(tmp_path)
    with RLM_REPL(client=ScriptedClient(lambda call: "FINAL(done)")) as rlm:
        with pytest.warns(UserWarning, match="is the text 'contract.txt'"):
            answer = rlm.completion("contract.txt", "Who may terminate?")
        (warning,) = answer.warnings
        assert warning.endswith("pass pathlib.Path('contract.txt') to read it")
        with pytest.warns(UserWarning, match="is the text 'contract.txt'"):
            rlm.session("contract.txt").close()
        assert rlm.completion(tmp_path / "contract.txt", "Who may terminate?").warnings == ()


def test_after_close_it_says_what_was_closed_and_what_to_do():
    rlm = RLM_REPL(client=ScriptedClient(lambda call: "FINAL(done)"))
    rlm.close()
    for use in (
        lambda: rlm.completion("x", "?"),
        lambda: rlm.session("x"),
        lambda: list(rlm.stream("x", "?")),
    ):
        with pytest.raises(
            RuntimeError, match="this RLM_REPL was closed: make a new one, or keep it open with"
        ):
            use()


def test_a_query_in_the_place_of_the_context_is_warned_about():
    with RLM_REPL(client=ScriptedClient(lambda call: "FINAL(done)")) as rlm:
        with pytest.warns(UserWarning, match="are they swapped"):
            answer = rlm.completion("Who may terminate?", "The tenant may. " * 1_000)
        assert "the context has 18 characters and the query 16,000" in answer.warnings[0]
        assert rlm.completion("The tenant may. " * 1_000, "Who may?").warnings == ()


def test_an_option_that_is_given_to_a_method_is_pointed_to_the_constructor():
    with RLM_REPL(client="offline") as rlm, pytest.raises(TypeError, match=r"RLM_REPL\(\.\.\.\)") as caught:
        rlm.completion("a text", "a question", model="gpt-5")
    assert str(caught.value).startswith("completion() has no keyword model= (it has: context=, query=)")
