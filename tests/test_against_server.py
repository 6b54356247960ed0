"""Whole runs against a real HTTP server, with faults: what is counted, what is lost, what is asked twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from openai_server import OpenAIServer, dropped, failed, rate_limited, reply

from rlm import RLM_REPL, REPLEnv, Sub_RLM
from rlm.errors import AuthenticationFailed, UnknownModel
from rlm.events import CallRetried, CallWrote


def cell(code):
    return f"```repl\n{code}\n```"


def fault(number):
    """10 % of the requests are told to wait, 5 % fail, 2 % break off before the answer."""
    if number % 10 == 3:
        return rate_limited(retry_after=0.05)
    if number % 20 == 7:
        return failed(500)
    if number % 50 == 11:
        return dropped("headers")
    return None


def answering(request):
    """The root model by what it is asked, sub-models in capitals."""
    last = request.prompt
    if request.body["model"] == "small":
        return reply(last.upper())
    question = request.body["messages"][1]["content"]
    if "piece" in question:
        return reply(cell("FINAL('+'.join(llm_batch([context + str(n) for n in range(5)])))"))
    return reply(cell("FINAL(rlm_batch([('the piece', letter) for letter in 'abc']))"))


def with_faults(answer, *, kinds=("429", "500", "dropped")):
    def respond(request):
        response = fault(request.number)
        kind = "dropped" if response is not None and response.drop else str(response and response.status)
        return response if response is not None and kind in kinds else answer(request)

    return respond


def open_rlm(server, **settings):
    return RLM_REPL("big", "small", base_url=server.base_url, api_key="sk-test", max_depth=2, **settings)


def test_the_ledger_equals_the_servers_own_count_with_children_retries_and_batches():
    with (
        OpenAIServer(with_faults(answering, kinds=("429", "500"))) as server,
        open_rlm(server) as rlm,
    ):
        answer = rlm.completion("context", "a question")
        summary = rlm.cost_summary()
    assert answer.value == ["+".join(f"{letter}{n}".upper() for n in range(5)) for letter in "abc"]
    assert answer.usage.calls == 1 + 3 + 15
    assert server.requests > answer.usage.calls
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (
        server.input_tokens,
        server.output_tokens,
    )
    assert not answer.usage.estimated
    assert summary["by_model"]["small"]["calls"] == 15
    assert summary["by_depth"]["1"]["calls"] == 3 + 15


def test_no_answer_is_lost_to_faults_and_none_is_asked_twice_without_need():
    prompts = [f"prompt {number}" for number in range(500)]
    with OpenAIServer(with_faults(lambda request: reply(request.prompt.upper()))) as server:
        model = Sub_RLM("small", base_url=server.base_url, api_key="sk-test")
        answers = model.batch_completion(prompts, max_concurrent=50)
        model.close()
    assert answers == [prompt.upper() for prompt in prompts]
    faults = sum(fault(number) is not None for number in range(server.requests))
    assert server.requests == len(prompts) + faults


def test_ten_batches_from_several_threads_lose_no_answer():
    def batch(number):
        return model.batch_completion([f"{number}.{index}" for index in range(20)])

    with OpenAIServer() as server, ThreadPoolExecutor(4) as threads:
        model = Sub_RLM("small", base_url=server.base_url, api_key="sk-test")
        batches = list(threads.map(batch, range(10)))
        model.close()
    assert batches == [[f"answer to {number}.{index}" for index in range(20)] for number in range(10)]


def test_ten_batches_of_one_cell_lose_no_answer():
    code = (
        "print(sum(bool(answer) for _ in range(10) for answer in llm_batch([f'{_}.{n}' for n in range(20)])))"
    )
    with (
        OpenAIServer() as server,
        REPLEnv("small", base_url=server.base_url, api_key="sk-test") as repl,
    ):
        assert repl.code_execution(code).stdout == "200\n"


def test_a_server_that_bears_only_twenty_at_once_gets_all_answers_out():
    prompts = [f"prompt {number}" for number in range(200)]
    with OpenAIServer(latency_s=0.02, max_concurrent=20) as server:
        model = Sub_RLM("small", base_url=server.base_url, api_key="sk-test")
        answers = model.batch_completion(prompts, max_concurrent=100)
        model.close()
    assert all(answers)


def test_the_root_models_words_stream_from_the_server():
    with (
        OpenAIServer(lambda request: reply("FINAL(a long answer of many words)")) as server,
        open_rlm(server) as rlm,
    ):
        events = list(rlm.stream("context", "a question"))
    words = [event.text for event in events if isinstance(event, CallWrote)]
    assert len(words) > 1
    assert "".join(words) == "FINAL(a long answer of many words)"
    assert not events[-1].answer.usage.estimated


def test_a_root_call_that_fails_is_asked_again_and_told():
    events = []
    plan = [failed(503), rate_limited(retry_after=0.05)]
    with (
        OpenAIServer(lambda request: reply("FINAL(x)"), plan=plan) as server,
        open_rlm(server, on_event=events.append) as rlm,
    ):
        assert rlm.completion("context", "a question") == "x"
    assert [event.attempt for event in events if isinstance(event, CallRetried)] == [1, 2]


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (failed(401, "Incorrect API key provided: sk-test", code="invalid_api_key"), AuthenticationFailed),
        (failed(404, "The model `big` does not exist", code="model_not_found"), UnknownModel),
    ],
)
def test_what_asking_again_cannot_cure_is_raised_at_once_without_the_key(response, error):
    with (
        OpenAIServer(lambda request: response) as server,
        open_rlm(server) as rlm,
        pytest.raises(error) as raised,
    ):
        rlm.completion("context", "a question")
    assert server.requests == 1
    assert "sk-test" not in str(raised.value)
