# ruff: noqa: ASYNC240, PTH123, PTH208 - tests look at /proc and folders as the kernel shows them
from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import time
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from rlm.errors import BadReply, ContextError, GuestDied, HostCallRefused, LimitReached, SessionClosed
from rlm.sandbox.session import open_session
from rlm.settings import SandboxSettings

pytestmark = pytest.mark.anyio

QUICK = SandboxSettings(cell_timeout_s=0.5, memory_bytes=512 << 20, answer_bytes=1 << 20, output_chars=1000)


async def upper(call):
    """A host whose model shouts, and refuses what says so."""
    arguments = call.arguments
    match call.name:
        case "llm_query":
            if arguments["prompt"] == "fail":
                raise BadReply("no such luck")
            return arguments["prompt"].upper()
        case "llm_batch":
            return [
                {"error": "no such luck", "kind": "BadReply"}
                if prompt == "fail"
                else {"text": prompt.upper()}
                for prompt in arguments["prompts"]
            ]
        case "rlm_query":
            return arguments["context"]
        case "rlm_batch":
            return [{"value": (item["question"], item["context"])} for item in arguments["items"]]
    raise HostCallRefused(f"no {call.name} here")


@pytest.fixture
async def session():
    session = await open_session(QUICK)
    await session.load("a text")
    yield session
    await session.aclose()


async def run(session, code, serve=upper, **options):
    return await session.run(code, serve=serve, **options)


async def out(session, code, serve=upper):
    """What a cell that must end well printed."""
    result = await run(session, code, serve)
    assert (result.outcome, result.error) == ("ok", ""), result
    return result.stdout


# --- a real REPL ---------------------------------------------------------------------------------------------


async def test_functions_see_later_globals_and_global_works(session):
    await run(session, "def f():\n    global n\n    n = later + 1\nlater = 1\nf()\nlater = 5\nf()")
    assert await out(session, "n") == "6\n"


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("1 == 1", "True\n"),
        ("'text'", "'text'\n"),
        ("None", ""),
        ("1;", ""),
        ("(1)  # ; comment", "1\n"),
        ("(1) ; # comment", ""),
        ("x = 1", ""),
        ("1\n2", "2\n"),
        ("for i in range(2): i", ""),
        ("'é' ;", ""),
        ("", ""),
        ("# only a comment", ""),
    ],
)
async def test_the_value_of_a_trailing_expression_is_shown(session, code, shown):
    assert await out(session, code) == shown


async def test_a_failing_cell_runs_once_and_keeps_what_it_did(session):
    result = await run(session, "seen = []\nseen.append(1)\nseen.append(1 / 0)")
    assert result.outcome == "raised"
    assert await out(session, "seen") == "[1]\n"


async def test_a_traceback_names_cell_line_and_source_and_nothing_of_ours(session):
    await run(session, "def f(x):\n    return 1 / x")
    result = await run(
        session, "try:\n    f(0)\nexcept ZeroDivisionError as e:\n    raise ValueError('wrapped') from e"
    )
    assert 'File "<cell 1>", line 2, in f' in result.error
    assert 'File "<cell 2>", line 4, in <module>' in result.error
    assert "return 1 / x" in result.error
    assert "guest" not in result.error
    assert "wrapped" in result.error


async def test_an_error_of_a_call_shows_the_cells_frames_only(session):
    result = await run(session, "llm_query('fail')")
    assert result.error.splitlines()[-1] == "LLMError: no such luck"
    assert "guest" not in result.error


async def test_a_syntax_error_shows_as_python_shows_it(session):
    result = await run(session, "x = (1,\ny = 2")
    assert result.outcome == "raised"
    assert 'File "<cell 1>", line 1' in result.error
    assert "SyntaxError: '(' was never closed" in result.error


async def test_classes_pickle_type_hints_and_source_work(session):
    await run(
        session,
        "import dataclasses, pickle, typing, inspect\n@dataclasses.dataclass\nclass P:\n    x: 'Q'\nclass Q: pass\ndef f():\n    return 1",
    )
    assert await out(session, "pickle.loads(pickle.dumps(P(1)))") == "P(x=1)\n"
    assert "Q" in await out(session, "typing.get_type_hints(P)")
    assert await out(session, "print(inspect.getsource(f))") == "def f():\n    return 1\n"


async def test_a_future_import_holds_for_later_cells(session):
    await run(session, "from __future__ import annotations")
    assert await out(session, "def f(x: Undefined): pass\nf.__annotations__") == "{'x': 'Undefined'}\n"


async def test_await_at_the_top_and_calls_from_threads_of_the_loop(session):
    code = "import asyncio\nr = await asyncio.gather(*[asyncio.to_thread(llm_query, c) for c in 'abc'])\nr"
    assert await out(session, code) == "['A', 'B', 'C']\n"


async def test_input_says_why_there_is_none(session):
    result = await run(session, "input('name? ')")
    assert "EOFError: a cell cannot read input" in result.error


async def test_exit_and_quit_end_the_cell_and_say_how_to_answer(session):
    for name in ("exit", "quit"):
        result = await run(session, f"x = 1\n{name}()\nx = 2")
        assert (result.outcome, result.error) == ("ok", "")
        assert "FINAL(value)" in result.stdout
        assert "FINAL(value)" in await out(session, name)
    assert await out(session, "x") == "1\n"


@pytest.mark.parametrize("code", ["help(documented)", "?documented", "documented?"])
async def test_help_and_a_question_mark_show_the_documentation(session, code):
    await run(session, "def documented():\n    'Say what this does.'")
    assert "Say what this does." in (await run(session, code)).stdout


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("if True:\n\u00a0\u00a0\u00a0\u00a0print(1)", "1\n"),
        ("\ufeffprint(1)", "1\n"),
        ("print(\u200b1)", "1\n"),
        ("len('a\u00a0\u200b')", "3\n"),
    ],
)
async def test_spaces_that_only_look_like_spaces_are_read_as_spaces(session, code, shown):
    assert await out(session, code) == shown


async def test_there_is_an_event_loop_after_an_await_at_the_top_level(session):
    await run(session, "import asyncio\nawait asyncio.sleep(0)")
    assert (
        await run(session, "asyncio.get_event_loop().run_until_complete(asyncio.sleep(0, 5))")
    ).error == ""


async def test_an_exit_keeps_the_state(session):
    result = await run(session, "x = 7\nimport sys\nsys.exit()")
    assert (result.outcome, result.state) == ("exited", "kept")
    assert await out(session, "x") == "7\n"


async def test_open_files_generators_and_dice_survive_cells(session):
    await run(
        session, "import random\nrandom.seed(1)\ng = (i for i in range(9))\nnext(g)\nf = open('f', 'w+')"
    )
    assert await out(session, "next(g), f.write('ab'), random.random()") == "(1, 2, 0.13436424411240122)\n"
    assert await out(session, "f.seek(0), f.read(), random.random()") == "(0, 'ab', 0.8474337369372327)\n"


async def test_dice_are_as_before_after_a_cell_that_died(session):
    await run(session, "import random\nrandom.seed(1)\nrandom.random()")
    await run(session, "random.random()\nimport os\nos._exit(1)")
    assert await out(session, "random.random()") == "0.8474337369372327\n"


async def test_what_a_cell_left_running_is_gone_for_the_next(session):
    await run(
        session,
        "import os, threading, time\nt = threading.Thread(target=time.sleep, args=(9,))\nt.start()\npid = os.fork() or time.sleep(99)",
    )
    assert await out(session, "threading.active_count(), t.is_alive()") == "(1, False)\n"
    assert (
        await out(session, "try:\n  os.waitpid(pid, os.WNOHANG)\nexcept ChildProcessError: print('gone')")
        == "gone\n"
    )


# --- names ---------------------------------------------------------------------------------------------------


async def test_reserved_names_come_back(session):
    await run(session, "llm_query = FINAL = SHOW_VARS = context = 1\ndel llm_batch, LLMError\nanswer = None")
    assert await out(session, "callable(llm_query), callable(llm_batch), context, answer") == (
        "(True, True, 'a text', {'content': '', 'ready': False})\n"
    )


@pytest.mark.parametrize(
    "spoil",
    [
        "context.append(4)",
        "context[0]['k'].clear()",
        "context = None",
        "del context[0]",
        "context[1] += b'x'",
        "context[0]['k'][0] = context",
    ],
)
async def test_a_mutated_context_comes_back(session, spoil):
    await session.load([{"k": [1, 2]}, bytearray(b"ab"), (3, [4])])
    assert (await run(session, spoil)).outcome == "ok"
    assert await out(session, "context") == "[{'k': [1, 2]}, bytearray(b'ab'), (3, [4])]\n"


async def test_variables_are_the_users_with_bounded_previews(session):
    await run(session, "_x = 'y' * 10**6\nn = 3\nclass E:\n    def __repr__(self): raise SystemExit\ne = E()")
    variables = {variable.name: variable for variable in await session.variables()}
    assert set(variables) == {"_x", "n", "E", "e"}
    assert (variables["_x"].type_name, variables["_x"].length) == ("str", 10**6)
    assert len(variables["_x"].preview) <= 200
    assert variables["n"].preview == "3"


async def test_a_repr_that_hangs_costs_a_preview_and_not_the_session(session):
    await run(session, "class E:\n    def __repr__(self):\n        while True: pass\ne = E()\nn = 3")
    variables = {variable.name: variable.preview for variable in await session.variables()}
    assert variables["n"] == "3"
    assert "E object" in variables["e"]
    assert await out(session, "n") == "3\n"


async def test_show_vars_lists_the_users_names(session):
    await run(session, "docs = ['a', 'b']\ndef helper(): pass")
    assert (await out(session, "SHOW_VARS()")).startswith("docs: list of 2 = ['a', 'b']\nhelper: function")


async def test_fetch_gives_values_and_says_why_not(session):
    await run(session, "v = {1: (2, {3})}\nf = open")
    assert await session.fetch("v") == {1: (2, {3})}
    with pytest.raises(KeyError, match="the variables are: v, f"):
        await session.fetch("w")
    with pytest.raises(ContextError, match="f: a value of type"):
        await session.fetch("f")


async def test_reset_goes_back_to_the_state_after_load(session):
    await run(session, "x = 1\nimport builtins\nbuiltins.print = None")
    await session.reset()
    assert await out(session, "print('x' in dir(), context)") == "False a text\n"
    assert await session.variables() == ()


# --- answers -------------------------------------------------------------------------------------------------


async def final(session, code):
    result = await run(session, code)
    return result.final and (result.final.value, result.final.source)


async def test_final_and_final_var_and_answer_give_values(session):
    assert await final(session, "FINAL({'a': (1,)})") == ({"a": (1,)}, "FINAL")
    assert await final(session, "r = 'x'\nFINAL_VAR('r')") == ("x", "FINAL_VAR")
    assert await final(session, "answer.update(content=5, ready=True)") == (5, "answer")
    assert await final(session, "answer = {'content': 6, 'ready': True}") == (6, "answer")
    assert await final(session, "answer['ready'] = True; answer['content'] = 7") == (7, "answer")
    assert await final(session, "1 + 1") is None


async def test_the_last_call_of_final_counts_and_more_than_answer(session):
    code = "FINAL(1)\nFINAL(2)\nanswer.update(content=3, ready=True)\nprint('the cell goes on')"
    assert await final(session, code) == (2, "FINAL")


async def test_a_cell_that_raises_after_final_still_gave_it(session):
    result = await run(session, "FINAL(1)\n1 / 0")
    assert (result.outcome, result.final.value) == ("raised", 1)


async def test_final_takes_the_value_as_it_is_at_that_moment(session):
    assert await final(session, "x = [1]\nFINAL(x)\nx.append(2)") == ([1], "FINAL")


async def test_final_var_of_a_missing_name_lists_those_there_are(session):
    await run(session, "result = 1")
    missing = await run(session, "FINAL_VAR('reslut')")
    assert "NameError: FINAL_VAR: there is no variable 'reslut'; the variables are: result" in missing.error


@pytest.mark.parametrize(
    "code", ["FINAL([1, {'a': print}])", "answer.update(content=[1, {'a': print}], ready=True)"]
)
async def test_an_answer_that_cannot_cross_says_what_and_where(session, code):
    result = await run(session, code)
    assert (result.outcome, result.final) == ("raised", None)
    assert "cannot be sent between guest and host" in result.error
    assert "answer[1]['a']" in result.error


WIDE = SandboxSettings(cell_timeout_s=30, memory_bytes=2 << 30)


@pytest.mark.parametrize(
    "content",
    [
        "[{'id': i, 'name': 'n', 'ok': True} for i in range(300_000)]",
        "[0] * 2_100_000",
        "[[]] * 10 + [{k * (2**61 - 1) for k in range(1_500)}]",
        "['\\U0001F600' * (40 << 20)]",
        "object()",
    ],
)
async def test_a_draft_that_cannot_cross_costs_only_itself(content):
    session = await open_session(WIDE)
    await session.load("a text")
    first = await run(session, f"answer['content'] = {content}\nmine = 1")
    assert (first.outcome, first.state) == ("ok", "kept")
    given = await run(session, "FINAL(mine)")
    assert (given.outcome, given.final.value) == ("ok", 1)
    await session.aclose()


async def test_an_answer_that_cannot_cross_raises_at_final_with_the_limit():
    session = await open_session(WIDE)
    await session.load("a text")
    for value in ("[0] * 2_000_000", "[{}] * 500_000", "['\\U0001F600' * (40 << 20)]"):
        result = await run(
            session, f"try: FINAL({value})\nexcept ValueError as e: print('limit:', e)\nFINAL('short')"
        )
        assert "limit: FINAL: the answer is " in result.stdout
        assert ("2,000,000 values" in result.stdout) or ("bytes" in result.stdout)
        assert (result.outcome, result.final.value) == ("ok", "short")
    deepest = await run(session, "x = 1\nfor _ in range(250): x = [x]\nFINAL(x)")
    assert deepest.outcome == "ok"
    assert deepest.final is not None
    await session.aclose()


async def test_arguments_that_cannot_cross_raise_in_the_cell():
    session = await open_session(WIDE)
    await session.load("a text")
    shown = await out(session, "try: llm_map([0] * 2_100_000, 'i')\nexcept TypeError as e: print(e)")
    assert "2,000,000 values" in shown
    await session.aclose()


async def test_a_traceback_is_cut_in_the_middle(session):
    result = await run(session, "raise ValueError('y' * (5 << 20) + 'the end')")
    assert result.outcome == "raised"
    assert len(result.error) < 25_000
    assert "characters cut" in result.error
    assert result.error.endswith("the end")


async def test_a_draft_is_reported_until_a_new_question_begins(session):
    await run(session, "answer['content'] = 'so far'")
    assert (await run(session, "1")).draft == "so far"
    await session.clear_answer()
    assert (await run(session, "1")).draft == ""


async def test_a_fresh_answer_is_not_lost_with_a_cell_that_died(session):
    await run(session, "answer['content'] = 'stale'")
    await session.clear_answer()
    await run(session, "import os; os._exit(1)")
    assert (await run(session, "1")).draft == ""


# --- calls ---------------------------------------------------------------------------------------------------


async def test_a_failed_call_raises_llm_error_in_the_cell(session):
    assert (
        await out(session, "try:\n    llm_query('fail')\nexcept LLMError as e:\n    print('caught', e)")
        == "caught no such luck\n"
    )


async def test_a_failing_slot_of_a_batch_is_false_and_reported(session):
    result = await run(
        session,
        "r = llm_batch(['a', 'fail', 'b', 'fail'])\n[bool(x) for x in r], r[1], r[1].error, isinstance(r[1], str)",
    )
    assert (
        result.stdout
        == "([True, False, True, False], '[failed: BadReply: no such luck]', 'no such luck', True)\n"
    )
    assert result.stderr == "llm_batch: 2 of 4 failed: BadReply: no such luck (2 times)\n"


async def test_a_batch_takes_any_iterable_and_an_empty_one_asks_nobody(session):
    async def nobody(call):
        raise AssertionError("an empty batch was sent")

    assert (
        await out(session, "llm_batch(c for c in 'ab'), llm_query_batched({'x'})") == "(['A', 'B'], ['X'])\n"
    )
    assert await out(session, "llm_batch([]), rlm_batch([])", nobody) == "([], [])\n"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("llm_query(3)", "llm_query: prompt must be a str, not int: 3"),
        ("llm_query('a', model=3)", "llm_query: model must be"),
        ("llm_batch('abc')", "prompts must be a list of str, not one str; for one prompt use llm_query"),
        ("llm_batch(['a', None])", "prompts[1] must be a str, not NoneType"),
        ("llm_batch(['a'], 0)", "max_concurrent must be an int of at least 1"),
        ("llm_batch(3)", "prompts must be a list, not int"),
        ("rlm_batch(['a', 3])", "items[1] must be a pair (question, context), not 3"),
        ("rlm_query('q', {'f': print})", "rlm_query: ['context']['f']: a value of type"),
    ],
)
async def test_wrong_arguments_are_named_before_any_call(session, code, message):
    async def nobody(call):
        raise AssertionError("the call was made")

    result = await run(session, code, nobody)
    assert message in result.error


async def test_child_runs_take_and_give_any_value(session):
    assert await out(session, "rlm_query('q', {1: (b'x', None)})") == "{1: (b'x', None)}\n"
    assert (
        await out(session, "rlm_batch([('q', 1), {'question': 'r', 'context': 2}, 's'])")
        == "[('q', 1), ('r', 2), ('s', None)]\n"
    )


async def test_threads_of_a_cell_call_at_once(session):
    together = anyio.Event()
    waiting = 0

    async def all_at_once(call):
        nonlocal waiting
        waiting += 1
        if waiting == 20:
            together.set()
        await together.wait()
        return call.arguments["prompt"]

    code = "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(20) as pool:\n    print(''.join(pool.map(llm_query, 'abcdefghijklmnopqrst')))"
    with anyio.fail_after(20):
        assert await out(session, code, all_at_once) == "abcdefghijklmnopqrst\n"


async def test_two_thousand_calls_from_fifty_threads_lose_nothing():
    session = await open_session(SandboxSettings(cell_timeout_s=30))
    code = "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(50) as pool:\n    r = list(pool.map(llm_query, map(str, range(2000))))\nr == list(map(str, range(2000)))"
    assert await out(session, code) == "True\n"
    await session.aclose()


async def test_an_error_of_the_handler_ends_the_cell_and_is_raised_as_itself(session):
    async def no_money(call):
        raise LimitReached("spent", name="dollars", limit=1, spent=1)

    await run(session, "x = 1")
    with pytest.raises(LimitReached, match="spent"):
        await run(session, "x = 2\nllm_query('a')", no_money)
    assert await out(session, "x") == "1\n"


async def test_calls_of_what_a_cell_left_running_are_refused(session):
    code = "import threading, time\ndef late():\n    time.sleep(0.05)\n    llm_query('a')\nthreading.Thread(target=late).start()"
    assert (await run(session, code)).outcome == "ok"
    assert await out(session, "llm_query('b')") == "'B'\n"


# --- limits, death, cancellation -----------------------------------------------------------------------------


async def test_time_waiting_for_calls_does_not_count(session):
    async def slow(call):
        await anyio.sleep(0.8)
        return "late"

    result = await run(session, "llm_query('a')", slow)
    assert (result.outcome, result.stdout) == ("ok", "'late'\n")
    assert result.compute_time < 0.5 < result.execution_time


async def test_work_counts_even_while_a_call_waits(session):
    async def never(call):
        await anyio.sleep_forever()

    code = "import threading\nthreading.Thread(target=llm_query, args=('a',)).start()\nwhile True: pass"
    with anyio.fail_after(10):
        assert (await run(session, code, never)).outcome == "timeout"


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("while True: pass", "timeout"),
        ("import os; os._exit(3)", "exited"),
        ("import os; os.abort()", "crashed"),
        ("' ' * (1 << 40)", "memory"),
    ],
)
async def test_a_cell_that_dies_costs_only_itself(session, code, outcome):
    await run(session, "x = 1")
    result = await run(session, f"x = 2\nprint('said')\n{code}")
    assert (result.outcome, result.state, result.stdout) == (outcome, "rolled back", "said\n")
    assert result.error
    assert await out(session, "x") == "1\n"


async def test_a_cell_cancelled_at_any_moment_of_its_beginning_is_undone_at_once(session):
    await run(session, "kept = 41")
    for checkpoints in range(12):
        started = time.monotonic()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, session, "kept = 0\nwhile True: pass")
            for _ in range(checkpoints):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        assert time.monotonic() - started < 20, f"cancelled after {checkpoints} checkpoints"
    assert await out(session, "kept + 1") == "42\n"


async def test_a_cancelled_cell_is_undone_and_the_session_goes_on(session):
    async def never(call):
        await anyio.sleep_forever()

    await run(session, "x = 1")
    began = time.monotonic()
    with anyio.move_on_after(0.2) as scope:
        await run(session, "x = 2\nllm_query('a')", never)
    assert scope.cancelled_caught
    assert time.monotonic() - began < 20
    assert await out(session, "x") == "1\n"


async def test_a_guest_that_was_killed_is_replaced_and_the_loss_told(session):
    await run(session, "x = 1")
    session._guest._process.kill()
    result = await run(session, "x")
    assert result.state == "lost"
    assert await out(session, "context") == "'a text'\n"


async def test_calls_on_one_session_take_turns(session):
    seen = []

    async def add(name):
        seen.append(await out(session, f"{name} = 1\n{name!r}"))

    async with anyio.create_task_group() as tasks:
        for name in "abc":
            tasks.start_soon(add, name)
    assert sorted(seen) == ["'a'\n", "'b'\n", "'c'\n"]


# --- output --------------------------------------------------------------------------------------------------


async def test_long_output_keeps_head_and_tail_and_counts_the_rest(session):
    result = await run(session, "print('a' * 10_000 + 'z')")
    assert result.stdout_chars == 10_002
    assert result.stdout.startswith("a" * 500 + "\n… 9,002 characters cut …\n")
    assert result.stdout.endswith("aaz\n")


async def test_output_comes_as_it_is_printed(session):
    seen = []

    async def look(call):
        return str(seen)

    await run(
        session,
        "import sys\nprint('one')\nprint('two', file=sys.stderr)\nseen = llm_query('?')",
        look,
        on_output=lambda *piece: seen.append(piece),
    )
    assert sorted(seen) == [("stderr", "two\n"), ("stdout", "one\n")]
    assert "one" in await session.fetch("seen")


async def test_prints_and_raw_writes_keep_their_order(session):
    assert await out(session, "import os\nprint('a')\nos.write(1, b'b\\n');\nprint('c')") == "a\nb\nc\n"


# --- the context ---------------------------------------------------------------------------------------------


async def test_a_context_that_cannot_cross_is_named_with_its_place(session):
    with pytest.raises(ContextError, match=r"context\[3\]\['when'\]: a value of type .*object"):
        await session.load([0, 1, 2, {"when": object()}])
    assert await out(session, "context") == "'a text'\n"


async def test_a_large_text_arrives_whole_and_once(session):
    text = "é\r\n" + "x" * 3_000_000 + "\ud800漢😀" * 100_000
    await session.load(text)
    assert await out(session, "len(context), hash(context) == hash(context[:])") == f"({len(text)}, True)\n"
    assert await out(session, "context[3_000_002:3_000_006]") == "'x\\ud800漢😀'\n"


@pytest.mark.parametrize("length", [0, 1, 7_000, 7_300, 20_000, 29_126, 29_127, 29_128, 60_000])
async def test_a_context_of_any_size_is_taken_to_the_last_frame(session, length):
    """Where the last bytes fill a frame, an empty one ends the message."""
    for _ in range(2):
        await session.load(list(range(length)))
        assert await out(session, f"context == list(range({length}))") == "True\n"


async def test_without_a_context_cells_run_all_the_same():
    session = await open_session(QUICK)
    assert await out(session, "print(context)") == "None\n"
    await session.aclose()


# --- life ----------------------------------------------------------------------------------------------------


def children():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return file.read().split()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
async def test_many_sessions_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    await (await open_session(QUICK)).aclose()
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), threading.active_count(), len(children())
    for _ in range(10):
        session = await open_session(QUICK)
        await run(session, "open('file', 'w').write('x')\nimport os\nos.fork()")
        await session.aclose()
    gc.collect()
    await anyio.sleep(0.05)
    assert (len(os.listdir("/proc/self/fd")), threading.active_count(), len(children())) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("tier", ["process", "confined", "isolated"])
async def test_a_supervisor_that_is_killed_takes_a_busy_cell_with_it(tier):
    session = await open_session(SandboxSettings(highest_tier=tier, cell_timeout_s=60))
    supervisor = session._guest._process

    async def kill(call):
        below = descendants(supervisor.pid)
        assert len(below) >= 2
        supervisor.kill()
        with anyio.fail_after(5):
            while any(Path(f"/proc/{pid}").exists() and state(pid) != "Z" for pid in below):  # noqa: ASYNC110
                await anyio.sleep(0.01)
        return ""

    code = "import threading\nthreading.Thread(target=llm_query, args=('x',)).start()\nwhile True: pass"
    result = await run(session, code, kill)
    assert result.state == "lost"
    await session.aclose()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("what", ["load", "close"])
async def test_a_guest_that_does_not_read_any_more_can_be_left(what):
    session = await open_session()
    supervisor = session._guest._process.pid
    for pid in [supervisor, *descendants(supervisor)]:
        os.kill(pid, signal.SIGSTOP)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_load_in_vain, session)
            await anyio.sleep(0.2)  # the pipe is full
            if what == "load":
                tasks.cancel_scope.cancel()
            else:
                await session.aclose()
    await session.aclose()


async def _load_in_vain(session):
    with contextlib.suppress(GuestDied, SessionClosed):
        await session.load("x" * 50_000_000)
        pytest.fail("nobody has read it")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
async def test_a_guest_that_dies_while_it_loads_is_told_as_itself():
    session = await open_session()

    async def kill():
        await anyio.sleep(0.2)
        os.killpg(supervisor, signal.SIGKILL)

    supervisor = session._guest._process.pid
    for pid in [supervisor, *descendants(supervisor)]:
        os.kill(pid, signal.SIGSTOP)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kill)
        with pytest.raises(GuestDied):
            await session.load("x" * 50_000_000)
    await session.aclose()


def descendants(pid):
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found += [child, *descendants(child)]
    return found


def state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


async def test_closing_ends_a_cell_that_another_task_runs():
    session = await open_session(QUICK)
    called = anyio.Event()

    async def never(call):
        called.set()
        await anyio.sleep_forever()

    async def run_until_closed():
        with pytest.raises(SessionClosed):
            await run(session, "llm_query('a')", never)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_until_closed)
        await called.wait()
        await session.aclose()


async def test_an_error_of_the_output_handler_is_raised_as_itself(session):
    def broken(stream, text):
        raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="the terminal is gone"):
        await run(session, "x = 1\nprint(x)\nimport time\ntime.sleep(9)", on_output=broken)
    assert await out(session, "'x' in dir()") == "False\n"


async def test_a_closed_session_says_so_and_closes_again():
    session = await open_session(QUICK)
    await session.aclose()
    await session.aclose()
    with pytest.raises(SessionClosed):
        await run(session, "1")


async def test_a_session_may_be_used_from_task_to_task():
    box = []

    async def opener():
        box.append(await open_session(QUICK))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(opener)
    assert await out(box[0], "1") == "1\n"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(box[0].aclose)


@pytest.mark.skipif(sys.platform != "linux", reason="children are looked for in /proc")
async def test_a_guest_that_is_told_nothing_gets_ready_for_its_first_cell():
    session = await open_session(SandboxSettings(highest_tier="process"))
    with anyio.fail_after(20):
        while len(descendants(session._guest._process.pid)) < 2:  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(0.01)
    assert await out(session, "1") == "1\n"
    await session.aclose()
