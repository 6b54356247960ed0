from __future__ import annotations

from itertools import pairwise

import pytest

from rlm.engine.conversation import AskRoot, Conversation, RunCell
from rlm.settings import RunSettings
from rlm.values import CellResult, Final, Reply


def drive(conversation, question, outcomes, *, note=""):
    """Answer the conversation's steps from a list of replies (str) and cell results; return steps and conclusion."""
    steps, given = [], iter(outcomes)
    asking = conversation.ask(question, note=note)
    outcome = None
    while True:
        try:
            step = asking.send(outcome)
        except StopIteration as stop:
            assert list(given) == [], "the conversation ended before its script"
            return steps, stop.value
        steps.append(step)
        outcome = next(given)
        if isinstance(outcome, str):
            assert isinstance(step, AskRoot), step
            outcome = Reply(text=outcome)
        else:
            assert isinstance(step, RunCell), step


def new_conversation(**settings):
    return Conversation(RunSettings(**settings), "`context` is a str of 12 characters.")


def cell(code="print(1)"):
    return f"I will look.\n```repl\n{code}\n```\n"


def final(value):
    return CellResult(final=Final(value, "FINAL"))


def user_messages(steps):
    last = [step for step in steps if isinstance(step, AskRoot)][-1]
    return [message.content for message in last.messages if message.role == "user"]


def test_an_answer_outside_code_ends_the_dialogue_with_its_text():
    steps, conclusion = drive(new_conversation(), "Who?", ["FINAL(Ada)"])
    assert (conclusion.value, conclusion.status, conclusion.turns) == ("Ada", "ok", 1)
    assert len(steps) == 1


def test_the_first_message_holds_the_question_and_the_description_of_the_context():
    steps, _ = drive(new_conversation(), "Who?", ["FINAL(Ada)"])
    assert user_messages(steps) == ["Question:\nWho?\n\nContext:\n`context` is a str of 12 characters."]


def test_what_a_cell_printed_is_in_the_next_request():
    steps, _ = drive(new_conversation(), "Who?", [cell(), CellResult(stdout="forty-two\n"), "FINAL(Ada)"])
    assert "forty-two" in user_messages(steps)[-1]


def test_a_value_given_in_a_cell_is_the_answer_as_it_is():
    _, conclusion = drive(new_conversation(), "Who?", [cell(), final({"n": 1})])
    assert conclusion.value == {"n": 1}


def test_code_in_the_same_reply_runs_before_the_answer_counts():
    steps, conclusion = drive(new_conversation(), "Who?", [cell("x = 1") + "FINAL(Ada)", CellResult()])
    assert [type(step) for step in steps] == [AskRoot, RunCell]
    assert conclusion.value == "Ada"


def test_an_answer_does_not_count_when_the_code_before_it_failed():
    failed = CellResult(outcome="raised", error="NameError: x")
    steps, conclusion = drive(new_conversation(), "Who?", [cell() + "FINAL(Ada)", failed, "FINAL(Grace)"])
    assert conclusion.value == "Grace"
    assert "does not count" in user_messages(steps)[-1]
    assert "NameError: x" in user_messages(steps)[-1]


def test_on_the_last_turn_an_answer_counts_even_when_its_code_failed():
    failed = CellResult(outcome="raised", error="NameError: x")
    _, conclusion = drive(new_conversation(max_iterations=1), "Who?", [cell() + "FINAL(Ada)", failed])
    assert (conclusion.value, conclusion.status) == ("Ada", "ok")


def test_a_variable_is_read_through_a_cell_of_its_own():
    steps, conclusion = drive(new_conversation(), "Who?", ["FINAL_VAR(result)", final([1, 2])])
    assert steps[-1].code == "FINAL_VAR('result')"
    assert conclusion.value == [1, 2]


def test_a_variable_that_does_not_exist_is_told_and_the_dialogue_goes_on():
    missing = CellResult(outcome="raised", error="NameError: there is no variable 'result'")
    steps, conclusion = drive(new_conversation(), "Who?", ["FINAL_VAR(result)", missing, "FINAL(Ada)"])
    assert "there is no variable" in user_messages(steps)[-1]
    assert conclusion.value == "Ada"


def test_blocks_after_one_that_failed_do_not_run():
    failed = CellResult(outcome="raised", error="boom")
    steps, _ = drive(new_conversation(), "Who?", [cell("a") + cell("b") + cell("c"), failed, "FINAL(x)"])
    assert [step.code.strip() for step in steps if isinstance(step, RunCell)] == ["a"]
    assert "[2 later blocks of the same reply did not run.]" in user_messages(steps)[-1]


def test_blocks_after_the_answer_do_not_run():
    steps, conclusion = drive(new_conversation(), "Who?", [cell("a") + cell("b"), final("first")])
    assert len(steps) == 2
    assert conclusion.value == "first"


def test_a_reply_with_neither_code_nor_answer_is_nudged_once():
    steps, conclusion = drive(new_conversation(), "Who?", ["Let me think.", "FINAL(Ada)"])
    assert "neither" in user_messages(steps)[-1]
    assert conclusion.value == "Ada"


def test_a_second_reply_of_prose_alone_is_a_partial_answer():
    _, conclusion = drive(new_conversation(), "Who?", ["Let me think.", "It is Ada."])
    assert (conclusion.value, conclusion.status) == ("It is Ada.", "partial")


def test_prose_between_cells_is_nudged_each_time():
    replies = ["Hm.", cell(), CellResult(), "Hm.", "FINAL(Ada)"]
    _, conclusion = drive(new_conversation(), "Who?", replies)
    assert conclusion.value == "Ada"


def test_thoughts_do_not_become_the_answer():
    _, conclusion = drive(new_conversation(), "Who?", ["Hm.", "<think>Maybe Bob?</think>It is Ada."])
    assert conclusion.value == "It is Ada."


def test_on_the_last_turn_a_draft_is_returned_as_partial():
    results = [cell(), CellResult(draft="so far: Ada"), cell(), CellResult()]
    _, conclusion = drive(new_conversation(max_iterations=2), "Who?", results)
    assert (conclusion.value, conclusion.status) == ("so far: Ada", "partial")
    assert conclusion.limit == "no answer within 2 turns"


def test_without_a_draft_the_limit_gives_an_empty_partial_answer():
    _, conclusion = drive(new_conversation(max_iterations=1), "Who?", [cell(), CellResult()])
    assert (conclusion.value, conclusion.status) == ("", "partial")


def test_the_last_turn_is_announced():
    steps, _ = drive(new_conversation(max_iterations=2), "Who?", [cell(), CellResult(), "FINAL(x)"])
    assert "This is your last reply" in user_messages(steps)[-1]


@pytest.mark.parametrize(
    ("outcome", "state", "told"),
    [
        ("timeout", "rolled back", "worked longer than its limit. Your variables are as they were before"),
        ("crashed", "lost", "Your variables are lost"),
        ("memory", "rolled back", "more memory"),
        ("exited", "rolled back", "ended the interpreter"),
    ],
)
def test_a_cell_that_died_is_told_with_what_became_of_the_variables(outcome, state, told):
    died = CellResult(outcome=outcome, state=state)
    steps, _ = drive(new_conversation(), "Who?", [cell(), died, "FINAL(x)"])
    assert told in user_messages(steps)[-1]


def test_every_request_extends_the_one_before_and_alternates():
    replies = ["Hm.", cell(), CellResult(stdout="1"), cell() + cell(), CellResult(), CellResult(), "FINAL(x)"]
    steps, _ = drive(new_conversation(), "Who?", replies)
    requests = [step.messages for step in steps if isinstance(step, AskRoot)]
    for earlier, later in pairwise(requests):
        assert later[: len(earlier)] == earlier
    assert [message.role for message in requests[-1]] == ["system"] + ["user", "assistant"] * 3 + ["user"]


def test_a_second_question_goes_on_with_the_same_transcript_and_a_fresh_draft():
    conversation = new_conversation(max_iterations=1)
    drive(conversation, "Who?", [cell(), CellResult(draft="stale")])
    steps, conclusion = drive(conversation, "When?", [cell(), CellResult()])
    assert "New question:\nWhen?" in user_messages(steps)[-1]
    assert conclusion.value == ""


@pytest.mark.parametrize("steps_before_the_stop", [1, 2])
def test_a_stopped_turn_is_closed_before_the_next_question(steps_before_the_stop):
    conversation = new_conversation()
    stopped = conversation.ask("Who?")
    next(stopped)
    if steps_before_the_stop == 2:
        stopped.send(Reply(text=cell()))
    stopped.close()
    steps, _ = drive(conversation, "When?", ["FINAL(x)"])
    roles = [message.role for message in steps[-1].messages]
    assert roles == ["system", "user", "assistant", "user"]


def test_what_the_user_ran_meanwhile_is_told_with_the_next_question():
    conversation = new_conversation()
    drive(conversation, "Who?", ["FINAL(x)"])
    steps, _ = drive(conversation, "When?", ["FINAL(y)"], note="Meanwhile the user ran: x = 1")
    assert user_messages(steps)[-1].startswith("Meanwhile the user ran: x = 1\n\nNew question:\nWhen?")
