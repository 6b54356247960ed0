from __future__ import annotations

import asyncio

import anyio
import pytest

from rlm import RLM_REPL, ScriptedClient
from rlm.errors import BadRequest, SessionClosed


def cell(code):
    return f"```repl\n{code}\n```"


def scripted(*replies):
    return RLM_REPL(
        client=ScriptedClient(root=list(replies), sub=lambda call: call.messages[-1].content.upper())
    )


def last_request(rlm):
    return "\n".join(message.content for message in rlm.client.calls[-1].messages)


def test_variables_and_the_conversation_carry_on():
    with (
        scripted(cell("x = 20"), "FINAL(first)", cell("FINAL(x + 1)")) as rlm,
        rlm.session("text") as session,
    ):
        assert session.ask("one?") == "first"
        assert session.ask("two?").value == 21
        assert "one?" in last_request(rlm)
        assert session.answers == ["first", "21"]


def test_an_answer_does_not_leak_into_the_next_question():
    ready = cell("answer['content'] = 'old'; answer['ready'] = True")
    with scripted(ready, cell("print(answer)"), "FINAL(new)") as rlm, rlm.session("text") as session:
        assert session.ask("one?") == "old"
        assert session.ask("two?") == "new"
        assert "old" not in rlm.client.calls[-1].messages[-1].content


def test_a_draft_does_not_leak_into_the_next_question():
    replies = [cell("answer['content'] = 'old draft'"), "FINAL(x)"] + [cell("pass")] * 2
    client = ScriptedClient(root=replies)
    with RLM_REPL(client=client, max_iterations=2) as rlm, rlm.session("text") as session:
        session.ask("one?")
        assert session.ask("two?") == ""


def test_the_user_runs_python_in_the_same_namespace():
    with scripted(cell("FINAL(mine + 1)")) as rlm, rlm.session("text") as session:
        result = session.run("mine = len(context)\nprint(llm_query('hi'))\nmine")
        assert result.stdout == "HI\n4\n"
        assert session.ask("one?").value == 5
        assert "mine = len(context)" in last_request(rlm)


def test_a_cell_of_the_user_that_was_undone_is_not_told():
    with scripted("FINAL(x)") as rlm, rlm.session("text") as session:
        session.run("import os; os._exit(1)")
        session.ask("one?")
        assert "_exit" not in last_request(rlm)


def test_the_user_can_look_at_variables_and_fetch_them():
    with scripted() as rlm, rlm.session("text") as session:
        session.run("numbers = [1, 2, 3]\ndef f(): pass")
        described = {variable.name: variable for variable in session.variables()}
        assert described["numbers"].type_name == "list"
        assert described["numbers"].length == 3
        assert session.fetch("numbers") == [1, 2, 3]


def test_an_error_of_one_question_leaves_the_session_usable():
    with scripted(cell("x = 1"), BadRequest("no"), cell("FINAL(x)")) as rlm, rlm.session("text") as session:
        with pytest.raises(BadRequest):
            session.ask("one?")
        assert session.ask("two?").value == 1


def test_a_cancelled_question_keeps_everything():
    async def main():
        replies = [cell("x = 1"), cell("x = 2\nimport time\ntime.sleep(60)"), cell("FINAL(x)")]
        async with scripted(*replies) as rlm, await rlm.asession("text") as session:
            with anyio.move_on_after(1.5):
                await session.aask("one?")
            return (await session.aask("two?")).value

    assert asyncio.run(main()) == 1


def test_a_second_question_waits_for_the_first():
    async def main():
        async with (
            scripted(cell("x = 1"), "FINAL(a)", "FINAL(b)") as rlm,
            await rlm.asession("text") as session,
        ):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(session.aask, "one?")
                tasks.start_soon(session.aask, "two?")
            return session.answers

    assert asyncio.run(main()) == ["a", "b"]


def test_usage_is_that_of_the_question():
    with scripted("FINAL(a)", "FINAL(b)") as rlm, rlm.session("text") as session:
        assert session.ask("one?").usage.calls == 1
        assert session.ask("two?").usage.calls == 1
        assert rlm.cost_summary()["calls"] == 2


def test_a_closed_session_says_so():
    with scripted() as rlm:
        session = rlm.session("text")
        session.close()
        session.close()
        with pytest.raises(SessionClosed):
            session.ask("one?")
