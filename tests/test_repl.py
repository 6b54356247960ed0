from __future__ import annotations

import pytest

from rlm import REPLEnv, ScriptedClient, Sub_RLM
from rlm.errors import BadRequest, ContextError, SessionClosed
from rlm.values import Variable


def upper(call):
    text = call.messages[-1].content
    return BadRequest("the endpoint says no") if text == "bad" else text.upper()


def repl(**options):
    return REPLEnv(client=ScriptedClient(upper), **options)


def test_code_prints_and_leaves_variables():
    with repl(context_str="a b c") as env:
        result = env.code_execution("words = context.split()\nprint(len(words))")
        assert dict(result.locals) == {"words": ["a", "b", "c"]}
    assert result.stdout == "3\n"
    assert result.stderr == ""
    assert result.execution_time >= 0


def test_an_exception_is_told_in_stderr_and_keeps_what_was_done():
    with repl() as env:
        result = env.code_execution("x = 1\n1 / 0")
        assert "ZeroDivisionError" in result.stderr
        assert env.code_execution("print(x)").stdout == "1\n"


def test_a_value_that_cannot_cross_is_described():
    with repl() as env:
        result = env.code_execution("import re\npattern = re.compile('a')")
        assert isinstance(result.locals["pattern"], Variable)
        assert result.locals["pattern"].type_name == "Pattern"


def test_variables_are_fetched_when_they_are_looked_at_and_then_kept(monkeypatch):
    with repl() as env:
        fetched = []
        fetch = env._session.fetch
        monkeypatch.setattr(env._session, "fetch", lambda name: fetched.append(name) or fetch(name))
        result = env.code_execution("for n in range(300): globals()[f'v{n}'] = n")
        assert fetched == []
        assert len(result.locals) == 301
        assert "v7" in result.locals
        assert "context" not in result.locals
        assert [result.locals["v7"], result.locals["v7"]] == [7, 7]
        assert fetched == ["v7"]
        with pytest.raises(KeyError):
            result.locals["no such name"]
        env.code_execution("del v8")
        assert isinstance(result.locals["v8"], Variable)
    assert result.locals["v7"] == 7
    with pytest.raises(SessionClosed):
        result.locals["v9"]


def test_a_value_too_large_to_cross_is_described():
    with repl() as env:
        result = env.code_execution("big = ['x' * 30_000_000 for _ in range(3)]")
        assert isinstance(result.locals["big"], Variable)
        assert env.code_execution("print(len(big))").stdout == "3\n"


def test_setup_code_runs_first():
    with repl(setup_code="x = 41") as env:
        assert env.code_execution("x + 1").stdout == "42\n"


def test_setup_code_that_fails_is_an_error():
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        repl(setup_code="1 / 0")


def test_a_context_may_be_plain_python_values():
    with repl(context_json={"a": [1]}) as env:
        assert env.code_execution("context['a']").stdout == "[1]\n"


def test_two_contexts_are_refused():
    with pytest.raises(ContextError, match="not both"):
        repl(context_str="a", context_json=[])


def test_a_batch_in_a_cell_keeps_its_order_and_tells_of_failures():
    with repl() as env:
        result = env.code_execution(
            "print([str(r) if r else 'failed' for r in llm_batch(['a', 'bad', 'c'])])"
        )
    assert "['A', 'failed', 'C']" in result.stdout
    assert "the endpoint says no" in result.stdout + result.stderr


def test_a_sub_model_answers_a_prompt_or_messages():
    with Sub_RLM("m", client=ScriptedClient(upper)) as model:
        assert model.completion("hello") == "HELLO"
        assert model.completion([{"role": "user", "content": "hello"}]) == "HELLO"
        assert model.completion({"role": "user", "content": "hello"}) == "HELLO"


@pytest.mark.parametrize(
    "prompt", [5, None, [{"role": "tool", "content": "x"}], [{"role": "user", "content": None}], ["text"]]
)
def test_what_is_no_prompt_is_never_sent(prompt):
    with Sub_RLM("m", client=ScriptedClient(upper)) as model:
        with pytest.raises(TypeError, match=r"messages|a message"):
            model.completion(prompt)
        with pytest.raises(TypeError, match=r"messages|a message"):
            model.batch_completion([prompt])
        assert model._rlm.client.calls == []


def test_a_text_is_no_batch():
    with Sub_RLM("m", client=ScriptedClient(upper)) as model, pytest.raises(TypeError, match="in a list"):
        model.batch_completion("abc")


def test_a_batch_of_a_sub_model_keeps_its_order_and_a_failure_its_slot():
    model = Sub_RLM("m", client=ScriptedClient(upper))
    answers = model.batch_completion(["a", "bad", "c"], max_concurrent=2)
    model.close()
    assert [bool(answer) for answer in answers] == [True, False, True]
    assert "the endpoint says no" in answers[1]
    assert isinstance(answers[1].error, BadRequest)


def test_after_close_each_says_what_it_was():
    environment = REPLEnv(context_str="x", client=ScriptedClient(["a"]))
    environment.close()
    with pytest.raises(SessionClosed, match="this REPLEnv was closed: make a new one"):
        environment.code_execution("1")
    model = Sub_RLM(client=ScriptedClient(["a"]))
    model.close()
    for ask in (lambda: model.completion("x"), lambda: model.batch_completion(["x"])):
        with pytest.raises(RuntimeError, match="this Sub_RLM was closed: make a new one"):
            ask()
