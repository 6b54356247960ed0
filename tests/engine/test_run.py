"""What a run makes of limits, child runs and odd answers; with a scripted model and real guests."""

from __future__ import annotations

import time

import pytest

from rlm import RLM_REPL, ScriptedClient
from rlm.errors import BadRequest, BudgetExceeded, GuestStartFailed, Refused, UnknownModel
from rlm.events import AnswerGiven, RunFailed, RunStarted
from rlm.sandbox.launchers import Launcher
from rlm.scheduler.budget import Budget
from rlm.values import Call, Message


def cell(code):
    return f"```repl\n{code}\n```"


def complete(*replies, root=None, sub=lambda call: call.messages[-1].content.upper(), **settings):
    client = ScriptedClient(root=root or list(replies), sub=sub)
    with RLM_REPL(client=client, **settings) as rlm:
        return rlm.completion("x", "a question")


def by_depth(*replies):
    """A root script that gives the reply of its depth, whatever it is asked."""
    return lambda call: replies[call.depth]


# --- Limits -----------------------------------------------------------------------------------------------------


def test_a_budget_reached_within_a_cell_keeps_the_draft_of_that_cell():
    code = "done = []\nfor n in range(9):\n    done.append(llm_query(f'p{n}'))\n    answer['content'] = done"
    answer = complete(cell(code), budget=Budget(calls=5))
    assert (answer.value, answer.status) == (["P0", "P1", "P2", "P3"], "budget")


def test_a_cell_that_hears_of_the_limit_may_still_give_its_answer():
    code = "try:\n    llm_query('a'); llm_query('b')\nexcept LLMError as e:\n    FINAL(f'so far: a ({e})')"
    answer = complete(cell(code), budget=Budget(calls=2))
    assert answer.status == "budget"
    assert answer.startswith("so far: a")


def test_a_deadline_within_a_call_keeps_the_draft_of_that_cell():
    async def slow(call):
        import anyio

        await anyio.sleep(60)

    code = "answer['content'] = 'so far'\nllm_query('a')"
    started = time.monotonic()
    answer = complete(cell(code), sub=slow, timeout_s=3.0)
    assert (answer, answer.status) == ("so far", "timeout")
    assert time.monotonic() - started < 30, "the call was waited for"


def test_every_call_after_the_limit_fails_at_once():
    code = "for n in range(1000):\n    try:\n        llm_query('a')\n    except LLMError:\n        pass\nFINAL(n)"
    answer = complete(cell(code), budget=Budget(calls=3))
    assert (answer.value, answer.status, answer.usage.calls) == (999, "budget", 3)


def test_a_budget_reached_within_a_batch_costs_only_the_slots_that_were_not_paid():
    code = "slots = llm_batch([f'p{n}' for n in range(9)], max_concurrent=2)\nanswer['content'] = [*map(str, slots)]"
    answer = complete(cell(code), budget=Budget(calls=5))
    assert answer.status == "budget"
    assert answer.value[:4] == ["P0", "P1", "P2", "P3"]
    assert all("BudgetExceeded" in slot for slot in answer.value[4:])


def test_a_budget_reached_within_a_map_costs_only_the_items_that_were_not_paid():
    code = "FINAL([slot or slot.kind for slot in llm_map(list('abcdef'), 'upper', per_call=1, max_concurrent=1)])"
    answer = complete(cell(code), budget=Budget(calls=4), sub=lambda call: "A")
    assert (answer.value, answer.status) == (["A"] * 3 + ["BudgetExceeded"] * 3, "budget")


def test_a_budget_reached_by_one_child_run_costs_no_answer_of_another():
    parent = cell(
        "FINAL([slot or slot.kind for slot in rlm_batch([('q', n) for n in 'abcd'], max_concurrent=1)])"
    )
    answer = complete(root=by_depth(parent, cell("FINAL(context)")), max_depth=2, budget=Budget(calls=3))
    assert (answer.value, answer.status) == (["a", "b", "BudgetExceeded", "BudgetExceeded"], "budget")


@pytest.mark.parametrize(
    "ask",
    [
        "llm_batch(['quick', 'slow'])",
        "llm_map(['quick', 'slow'], '', per_call=1)",
        "rlm_batch([('quick', ''), ('slow', '')])",
    ],
)
def test_a_deadline_within_a_call_for_many_keeps_the_answers_there_are(ask):
    async def sometimes_slow(call):
        import anyio

        if "slow" in call.messages[-1].content:
            await anyio.sleep(60)
        return "done"

    code = f"FINAL([slot or slot.kind for slot in {ask}])"
    answer = complete(cell(code), sub=sometimes_slow, timeout_s=3.0)
    assert (answer.value, answer.status) == (["done", "DeadlineExceeded"], "timeout")


def test_many_calls_of_a_script_that_a_budget_stops_keep_their_replies():
    with RLM_REPL(client=ScriptedClient(sub=lambda call: "done"), budget=Budget(calls=2)) as rlm:
        calls = [Call(model="m", messages=(Message("user", str(n)),)) for n in range(4)]
        with pytest.raises(BudgetExceeded) as caught:
            rlm.ask_models(calls, max_concurrent=1)
    *replies, third, fourth = caught.value.partial
    assert [reply.text for reply in replies] == ["done", "done"]
    assert third is fourth is caught.value


def test_a_limit_in_a_child_run_ends_the_whole_tree():
    parent = cell("answer['content'] = 'so far'\ntry:\n    rlm_query('q', 'c')\nexcept LLMError:\n    pass")
    child = cell("llm_query('a'); llm_query('b'); llm_query('c')")
    answer = complete(root=by_depth(parent, child), max_depth=2, budget=Budget(calls=4))
    assert (answer, answer.status) == ("so far", "budget")
    assert "4" in answer.limit


# --- Child runs -------------------------------------------------------------------------------------------------


def test_a_child_run_that_does_not_finish_is_an_error_in_the_cell():
    parent = cell("try:\n    FINAL(rlm_query('q', 'c'))\nexcept LLMError as error:\n    FINAL(str(error))")
    child = cell("answer['content'] = 'half of it'")
    answer = complete(root=by_depth(parent, child), max_depth=2, max_iterations=2)
    assert "no answer within 2 turns" in answer
    assert "half of it" in answer


def test_a_child_run_that_does_not_finish_leaves_a_failed_slot():
    parent = cell("FINAL([bool(slot) for slot in rlm_batch([('q', 'c'), ('q', 'd')])])")
    child = cell("if context == 'd': FINAL('fine')")
    answer = complete(root=by_depth(parent, child), max_depth=2, max_iterations=1)
    assert answer.value == [False, True]


def test_one_context_too_long_for_a_plain_call_fails_alone():
    code = cell("FINAL([bool(slot) for slot in rlm_batch([('a', 'x'), ('b', 'y' * 2000)])])")
    assert complete(code, sub_context_chars=1_000).value == [True, False]


def test_children_of_children_get_their_guests_without_a_deadlock():
    fan_out = cell("FINAL(rlm_batch([(str(n), n) for n in range(4)], max_concurrent=4))")
    script = by_depth(fan_out, fan_out, cell("FINAL(context)"))
    client = ScriptedClient(root=script)
    with RLM_REPL(client=client, max_depth=3, max_children=2) as rlm:
        assert rlm.completion("x", "q").value == [[0, 1, 2, 3]] * 4


def test_each_depth_has_the_root_model_it_was_given_and_the_last_one_holds_below():
    deeper = cell("FINAL(rlm_query('q', 'c'))")
    client = ScriptedClient(root=by_depth(deeper, deeper, deeper, cell("FINAL(context)")))
    with RLM_REPL("big", client=client, max_depth=4, child_models=["middle", "small"]) as rlm:
        rlm.completion("x", "q")
    assert [call.model for call in client.calls] == ["big", "middle", "small", "small"]


def test_a_model_that_a_cell_names_for_a_child_run_comes_before_that_of_its_depth():
    parent, child = cell("FINAL(rlm_query('q', 'c', model='chosen'))"), cell("FINAL(context)")
    client = ScriptedClient(root=by_depth(parent, child))
    with RLM_REPL(client=client, max_depth=2, child_models=["middle"]) as rlm:
        rlm.completion("x", "q")
    assert client.calls[-1].model == "chosen"


def test_a_child_run_has_as_many_turns_as_children_may_have():
    parent = cell("FINAL([bool(slot) for slot in rlm_batch(['q'])])")
    client = ScriptedClient(root=by_depth(parent, cell("pass")))
    with RLM_REPL(client=client, max_depth=2, max_iterations=5, child_iterations=3) as rlm:
        assert rlm.completion("x", "q").value == [False]
    assert [call.depth for call in client.calls] == [0, 1, 1, 1]


def test_a_child_run_that_takes_too_long_fails_alone():
    parent = cell("FINAL([slot or slot.error for slot in rlm_batch([('q', 'slow'), ('q', 'quick')])])")
    child = cell("FINAL(llm_query('a') if context == 'slow' else context)")

    async def slow(call):
        import anyio

        await anyio.sleep(60)

    answer = complete(root=by_depth(parent, child), sub=slow, max_depth=2, child_timeout_s=3.0)
    assert answer.status == "ok"
    assert "longer than 3 s" in answer.value[0]
    assert answer.value[1] == "quick"


def test_children_of_a_child_run_are_within_its_time_and_it_fails_for_them():
    parent = cell("FINAL([slot or slot.error for slot in rlm_batch([('q', 'slow'), ('q', 'quick')])])")
    child = cell("answer['content'] = 'half'\nFINAL(rlm_query('q', 'd') if context == 'slow' else context)")

    async def slow(call):
        import anyio

        await anyio.sleep(60)

    roots = by_depth(parent, child, cell("llm_query('a')"))
    answer = complete(root=roots, sub=slow, max_depth=3, child_timeout_s=3.0)
    assert answer.status == "ok"
    assert "longer than 3 s" in answer.value[0]
    assert "half" in answer.value[0]
    assert answer.value[1] == "quick"


def test_the_wall_clock_of_the_whole_ends_child_runs_that_have_a_longer_one():
    parent = cell("answer['content'] = 'so far'\nrlm_query('q', 'c')")

    async def slow(call):
        import anyio

        await anyio.sleep(60)

    roots = by_depth(parent, cell("llm_query('a')"))
    answer = complete(root=roots, sub=slow, max_depth=2, timeout_s=3.0, child_timeout_s=50.0)
    assert (answer, answer.status) == ("so far", "timeout")


async def never(call):
    import anyio

    await anyio.sleep(60)


def test_the_wall_clock_of_a_child_run_is_no_limit_of_the_root_run_that_raises():
    parent = cell("FINAL([slot or slot.error for slot in rlm_batch([('q', 'slow'), ('q', 'quick')])])")
    child = cell("FINAL(llm_query('a') if context == 'slow' else context)")
    answer = complete(
        root=by_depth(parent, child), sub=never, max_depth=2, child_timeout_s=3.0, on_limit="raise"
    )
    assert answer.status == "ok"
    assert "longer than 3 s" in answer.value[0]
    assert answer.value[1] == "quick"


def test_the_wall_time_of_a_budget_that_runs_out_in_a_child_run_is_the_limit_of_the_whole():
    parent = cell("found = []\nanswer['content'] = 'so far'\nfound = rlm_batch(['q'])\nFINAL('done')")
    answer = complete(
        root=by_depth(parent, cell("llm_query('a')")), sub=never, max_depth=2, budget=Budget(seconds=3.0)
    )
    assert (answer, answer.status) == ("so far", "timeout")


def test_the_wall_clock_of_a_child_run_runs_while_its_guest_takes_the_context():
    parent = cell("FINAL([slot.error for slot in rlm_batch([('q', [None] * 1_900_000)])])")
    started = time.monotonic()
    answer = complete(root=by_depth(parent, cell("1")), max_depth=2, child_timeout_s=0.05)
    assert "longer than 0.05 s" in answer.value[0]
    assert time.monotonic() - started < 30


# --- Guests -----------------------------------------------------------------------------------------------------


def counting(starts, *, broken_from=99):
    """Starts guests as the local one does and leaves a line for each in `starts`; those from a number on fail."""
    script = (
        f'echo x >> "$0"; [ $(wc -l < "$0") -lt {broken_from} ] || {{ echo oh dear >&2; exit 3; }}; exec "$@"'
    )
    return Launcher(name="counting", prefix=("sh", "-c", script, str(starts)))


def test_the_guest_of_a_child_run_starts_while_its_root_model_writes(tmp_path):
    starts = tmp_path / "starts"

    async def root(call):
        import anyio

        if call.depth == 0:
            return cell("FINAL(rlm_query('q', 'c'))")
        with anyio.fail_after(30):
            while starts.read_text().count("x") < 2:  # noqa: ASYNC110 - there is nothing to wait on
                await anyio.sleep(0.01)
        return cell("FINAL(context)")

    assert complete(root=root, max_depth=2, launcher=counting(starts)) == "c"


def test_a_child_run_whose_guest_does_not_start_ends_the_call_to_its_root_model(tmp_path):
    ended = []

    async def root(call):
        import anyio

        if call.depth == 0:
            return cell("FINAL([slot.error for slot in rlm_batch([('q', 'c')])])")
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(call.depth)

    answer = complete(root=root, max_depth=2, launcher=counting(tmp_path / "starts", broken_from=2))
    assert "the child run could not start" in answer.value[0]
    assert "oh dear" in answer.value[0]
    assert ended == [1]


def test_where_no_guest_starts_nobody_is_asked(tmp_path):
    client = ScriptedClient(["never given"])
    with (
        RLM_REPL(client=client, launcher=counting(tmp_path / "starts", broken_from=1)) as rlm,
        pytest.raises(GuestStartFailed, match="oh dear"),
    ):
        rlm.completion("x", "a question")
    assert client.calls == []


# --- Answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["10**5000", "[10**5000]", "{'n': -(10**5000)}"])
def test_a_value_that_python_does_not_write_out_is_still_an_answer(value):
    answer = complete(cell(f"FINAL({value})"))
    assert answer.status == "ok"
    assert answer.value == eval(value)


@pytest.mark.parametrize("reply", [cell("answer = 'Paris'") + "\nFINAL_VAR(answer)", "answer"])
def test_an_answer_that_was_rebound_is_its_content(reply):
    replies = [reply] if "FINAL_VAR" in reply else [cell("answer = 'Paris'"), "FINAL_VAR(answer)"]
    assert complete(*replies) == "Paris"


def test_an_answer_that_was_rebound_is_a_draft():
    answer = complete(cell("answer = 'Paris'"), max_iterations=1)
    assert (answer, answer.status) == ("Paris", "partial")


def test_a_dict_of_ones_own_named_answer_is_the_whole_answer():
    assert complete(cell("answer = {'city': 'Paris'}") + "\nFINAL_VAR(answer)").value == {"city": "Paris"}


def test_the_output_told_counts_what_was_really_cut():
    client = ScriptedClient(root=[cell("print('x' * 5_000_000)"), "FINAL(x)"])
    with RLM_REPL(client=client) as rlm:
        rlm.completion("x", "q")
    assert "4,980,001 characters cut" in client.calls[-1].messages[-1].content


# --- Sessions ---------------------------------------------------------------------------------------------------


def last_message(client):
    return client.calls[-1].messages[-1].content


def test_the_next_question_knows_what_the_last_turn_printed_and_answered():
    client = ScriptedClient(root=[cell("print('seen')\nFINAL('Ada')"), "FINAL(x)"])
    with RLM_REPL(client=client) as rlm, rlm.session("text") as session:
        session.ask("Who?")
        session.ask("When?")
    assert "seen" in last_message(client)
    assert "The answer you gave:\nAda" in last_message(client)


# --- Events -----------------------------------------------------------------------------------------------------


def heard(client, context="x"):
    events = []
    with RLM_REPL(client=client, on_event=events.append) as rlm, pytest.raises(Exception):  # noqa: B017, PT011
        rlm.completion(context, "q")
    return events


def broken(call):
    raise KeyError("a bug in a client")


@pytest.mark.parametrize(
    ("client", "context"), [(ScriptedClient(broken), "x"), (ScriptedClient(["FINAL(x)"]), [object()])]
)
def test_a_run_that_fails_for_any_reason_begins_and_ends_in_events(client, context):
    events = heard(client, context)
    assert isinstance(events[0], RunStarted)
    assert isinstance(events[-1], RunFailed)


def test_a_run_that_is_limited_ends_with_its_answer_in_events():
    events = []
    client = ScriptedClient(root=[cell("llm_query('a')")] * 3, sub=lambda call: "s")
    with RLM_REPL(client=client, on_event=events.append, budget=Budget(calls=2)) as rlm:
        rlm.completion("x", "q")
    assert isinstance(events[-1], AnswerGiven)


def some_fail(call):
    text = call.messages[-1].content
    return {"a": Refused("declined"), "b": BadRequest("no")}.get(text, text.upper())


def test_prompts_that_failed_are_told_with_an_answer_that_does_not_show_it():
    code = "found = llm_batch(['a', 'b', 'c', 'a'])\ntry: llm_query('a')\nexcept LLMError: pass\nFINAL(llm_query('d'))"
    answer = complete(cell(code), sub=some_fail)
    assert answer == "D"
    assert answer.warnings == (
        "4 of 6 prompts to sub-models failed: Refused (3), BadRequest (1); the first: declined",
    )


def test_prompts_that_failed_in_a_child_run_are_told_once_and_by_the_root():
    parent = cell("FINAL(rlm_query('q', 'c'))")
    child = cell("FINAL(llm_batch(['a', 'c'])[1])")
    answer = complete(root=by_depth(parent, child), sub=some_fail, max_depth=2)
    assert (answer, answer.warnings) == (
        "C",
        ("1 of 3 prompts to sub-models failed: Refused (1); the first: declined",),
    )


def test_a_child_run_that_does_not_finish_is_told_by_either_way_to_start_it():
    parent = cell("try: rlm_query('q')\nexcept LLMError: rlm_batch(['q', 'q'])\nFINAL('done')")
    answer = complete(root=by_depth(parent, cell("pass")), max_depth=2, child_iterations=1)
    assert "3 of 3 prompts to sub-models failed: HostCallRefused (3)" in answer.warnings[0]


def test_a_value_that_looks_like_a_failed_slot_is_a_value():
    def value(call):
        return '{"error": "none", "kind": "fine"}'

    answer = complete(cell("FINAL(llm_query('x', schema='error: str, kind: str')['kind'])"), sub=value)
    assert (answer, answer.warnings) == ("fine", ())


@pytest.mark.parametrize("names", [("typo",), ("right", "typo")])
def test_a_model_of_child_runs_that_does_not_exist_fails_the_run_instead_of_its_answer(names):
    swallow = cell("try: FINAL(rlm_query('q', 'c'))\nexcept LLMError: FINAL('nothing found')")

    def root(call):
        return UnknownModel("there is no such model", model="typo") if call.model == "typo" else swallow

    with pytest.raises(UnknownModel):
        complete(root=root, max_depth=3, child_models=names)


def test_a_model_that_a_cell_named_for_a_child_run_and_nobody_knows_fails_that_child_alone():
    def root(call):
        if call.model == "invented":
            return UnknownModel("there is no such model", model="invented")
        return cell("try: rlm_query('q', 'c', model='invented')\nexcept LLMError: FINAL('without')")

    assert complete(root=root, max_depth=2, child_models=["right"]) == "without"


@pytest.mark.parametrize(
    "call",
    [
        "rlm_query('q', {10**5000: 1})",
        "rlm_query('q', {10**5000: 'x' * 100_000})",
        "rlm_query('q', {(1, 10**5000): 1})",
        "llm_map([[10**5000], {10**5000: 1}, {'a': (10**5000,)}], 'Label.')",
    ],
)
def test_an_int_that_is_too_long_to_write_out_is_no_end_of_a_run(call):
    answer = complete(root=by_depth(cell(f"{call}\nFINAL('went on')"), cell("FINAL(1)")), max_depth=2)
    assert (answer, answer.status) == ("went on", "ok")


def test_a_sub_model_that_does_not_exist_fails_the_run_instead_of_its_answer():
    def sub(call):
        return UnknownModel("there is no such model", model=call.model)

    client = ScriptedClient(root=[cell("FINAL(len(llm_batch(['a', 'b'])))")], sub=sub)
    with RLM_REPL(client=client) as rlm, pytest.raises(UnknownModel):
        rlm.completion("x", "q")


def test_a_model_that_a_cell_named_wrongly_is_the_cells_affair():
    def sub(call):
        return UnknownModel("there is no such model", model=call.model)

    code = "try:\n    llm_query('a', model='typo')\nexcept LLMError:\n    FINAL('told')"
    assert complete(cell(code), sub=sub) == "told"


def test_an_endpoint_of_ones_own_is_asked_for_the_one_model_it_was_told():
    with RLM_REPL(model="llama", base_url="http://127.0.0.1:9/v1") as rlm:
        assert rlm.settings.recursive_model == "llama"


def test_the_offline_client_can_be_named():
    with RLM_REPL(client="offline") as rlm:
        assert "1 time" in rlm.completion("Chapter one. The ark.", "How many times does ark occur?")
