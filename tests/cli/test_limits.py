"""Budgets, prices, the cache and the sandbox from the command line, in real processes."""

from __future__ import annotations

import json

import pytest
from cli.test_commands import complaint, rlm
from click.testing import CliRunner
from openai_server import OpenAIServer, Response, reply

from rlm.cli import command

BATCH = (
    "```repl\nanswer['content'] = 'a draft'\nprint(llm_batch([f'part {n % 10}' for n in range(100)])[0])\n```"
)


def answers(request):
    """The root model makes one batch, and then answers; sub-models say ok."""
    if "part" in request.prompt and len(request.body["messages"]) == 1:
        return "ok"
    return "FINAL(three rents)" if len(request.body["messages"]) > 2 else BATCH


@pytest.fixture
def server():
    with OpenAIServer(answers) as server:
        yield server


@pytest.fixture
def ask(tmp_path, server):
    (tmp_path / "a.txt").write_text("A tenant who leaves early must pay a fee of three rents.\n" * 50)

    def ask(*arguments, **environment):
        common = ("ask", "a.txt", "-q", "What fee?", "-m", "made-up", "--base-url", server.base_url)
        return rlm(*common, *arguments, folder=tmp_path, **environment)

    return ask


def test_progress_in_a_pipe_is_a_few_plain_lines(ask, server):
    done = ask()
    assert (done.returncode, done.stdout) == (0, b"three rents\n")
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 4, lines
    assert "turn 1: cell 1 ok, 10 calls for 100 prompts, printed 'ok'" in lines[2]
    assert "answered: 2 turns, 12 calls" in lines[3]
    assert any(body.get("stream") for body in server.bodies), "the root model's reply came as a stream"


def test_what_ended_a_run_is_told_once(tmp_path):
    (tmp_path / "a.txt").write_text("A fee of three rents.")
    with OpenAIServer(lambda _request: Response(401, {"error": {"message": "no such key"}})) as refusing:
        common = ("-m", "made-up", "--base-url", refusing.base_url)
        done = rlm("ask", "a.txt", "-q", "What fee?", *common, folder=tmp_path)
    assert done.returncode == 5
    lines = done.stderr.decode().splitlines()
    assert lines[-2].endswith("s] failed")
    assert [line.startswith("rlm: ") for line in lines if "no such key" in line] == [True]


def test_json_has_the_costs_by_model_and_depth(ask, server):
    done = ask("--json", "--quiet", "-M", "small", "--price", "made-up=1,2", "--price", "small=0.1,0.2")
    summary = json.loads(done.stdout)["cost_summary"]
    assert (summary["calls"], summary["total_tokens"]) == (
        server.requests,
        server.input_tokens + server.output_tokens,
    )
    assert {name: spent["calls"] for name, spent in summary["by_model"].items()} == {
        "made-up": 2,
        "small": 10,
    }
    assert {name: spent["calls"] for name, spent in summary["by_depth"].items()} == {"0": 12}
    small = summary["by_model"]["small"]
    dollars = (small["input_tokens"] * 0.1 + small["output_tokens"] * 0.2) / 1_000_000
    assert small["cost_usd"] == pytest.approx(dollars)
    assert summary["cost_usd"] == pytest.approx(sum(m["cost_usd"] for m in summary["by_model"].values()))


def test_a_budget_in_calls_ends_the_run_with_its_draft_and_code_3(ask, server):
    done = ask("--budget-calls", "5", "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["answer"], answer["status"]) == (3, "a draft", "budget")
    assert (answer["usage"]["calls"], server.requests) == (5, 5)
    assert answer["cost_summary"]["budget"]["calls"] == 5
    assert b"5 of 5 calls" in done.stderr
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith("rlm: stopped: the budget of 5 calls is used up")
    assert last.endswith("the answer is partial")


@pytest.mark.parametrize(
    ("limit", "could"),
    [(("--budget", "0.000001", "--price", "made-up=1,1"), "$0.0"), (("--budget-tokens", "10"), "1")],
)
def test_a_budget_that_is_too_small_for_one_call_says_what_one_could_take(ask, server, limit, could):
    done = ask(*limit, "--quiet")
    assert (done.returncode, done.stdout, server.requests) == (3, b"", 0)
    said = complaint(done)
    assert "there is no partial answer" in said
    assert f"too small for a single call to made-up, which could take {could}" in said
    assert f"allow more than that ({limit[0]}, " in said


def test_a_budget_in_dollars_tells_what_is_spent_of_it(ask):
    done = ask("--budget", "5", "--price", "made-up=1,10")
    assert done.returncode == 0, done.stderr
    assert b" of $5.00, " in done.stderr


def test_a_budget_in_dollars_without_a_price_is_refused_with_the_remedy(ask, server):
    done = ask("--budget", "1")
    assert (done.returncode, server.requests) == (2, 0)
    assert "the price of 'made-up' is not known" in complaint(done)
    assert "--price made-up=INPUT,OUTPUT" in complaint(done)


def test_a_budget_in_dollars_needs_no_price_for_a_listed_model(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with OpenAIServer(plan=[reply("FINAL(cheap)")]) as server:
        done = rlm("ask", "a.txt", "-q", "?", "-m", "gpt-5-nano", "--budget", "0.50", "--base-url", server.base_url,
                   folder=tmp_path)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"cheap\n"), done.stderr


def test_the_offline_client_costs_nothing_so_any_budget_will_do(tmp_path):
    (tmp_path / "a.txt").write_text("A tenant who leaves early must pay a fee of three rents.\n" * 50)
    done = rlm("ask", "a.txt", "-q", "What fee must a tenant pay?", "--client", "offline", "--budget", "1",
               folder=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"$0.00 of $1.00" in done.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--price", "gpt-5"),
        ("--price", "gpt-5=1"),
        ("--price", "=1,2"),
        ("--price", "gpt-5=-1,2"),
        ("--price", "gpt-5=nan,2"),
        ("--price", "gpt-5=1,2,3"),
        ("--budget", "0"),
        ("--budget", "-1"),
        ("--budget", "lots"),
        ("--budget", "nan"),
        ("--budget", "inf"),
        ("--budget-tokens", "0"),
        ("--budget-calls", "1.5"),
        ("--cache", "maybe"),
        ("--sandbox", "none"),
        ("--cell-timeout", "0"),
    ],
)
def test_a_value_that_cannot_be_is_told_with_its_option(option, value):
    result = CliRunner().invoke(command, ["ask", "missing.txt", "-q", "?", f"{option}={value}"])
    assert (result.exit_code, option in result.output) == (2, True), result.output


@pytest.mark.slow
def test_the_cache_gives_the_same_answer_without_a_request(ask, server, tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    first = ask("--cache", "on", "--json", **environment)
    asked = server.requests
    second = ask("--cache", "read", "--json", **environment)
    assert json.loads(first.stdout)["answer"] == json.loads(second.stdout)["answer"] == "three rents"
    assert server.requests == asked
    assert json.loads(second.stdout)["cost_summary"]["stored_replies"] == asked
    ask("--cache", "off", **environment)
    assert server.requests == 2 * asked


def test_a_cell_that_works_too_long_is_stopped(ask, server):
    server._answer = lambda request: (
        reply("FINAL(on time)")
        if len(request.body["messages"]) > 2
        else reply("```repl\nwhile True: pass\n```")
    )
    done = ask("--cell-timeout", "0.5")
    assert (done.returncode, done.stdout) == (0, b"on time\n")
    assert b"cell 1 timed out" in done.stderr


def test_a_strict_sandbox_confines_or_refuses(ask):
    done = ask("--sandbox", "strict", "--quiet")
    assert (done.returncode, done.stdout) == (0, b"three rents\n") or (
        done.returncode == 1 and "confined" in complaint(done)
    )


def test_cost_in_a_chat_tells_the_budget_of_a_question(tmp_path):
    (tmp_path / "a.txt").write_text("A tenant who leaves early must pay a fee of three rents.\n" * 50)
    script = b"What fee must a tenant pay?\n/cost\n"
    limits = ("--budget", "2", "--budget-calls", "40")
    done = rlm("chat", "a.txt", "--client", "offline", "--quiet", *limits, folder=tmp_path, stdin=script)
    assert b"budget of each question: $2.00, 40 calls" in done.stdout
    done = rlm("chat", "a.txt", "--client", "offline", "--quiet", folder=tmp_path, stdin=b"/cost\n")
    assert b"0 calls, 0 tokens, $0.00\nbudget of each question: no limit\n" in done.stdout


def test_a_demo_with_a_budget_stops_where_it_ends(tmp_path):
    done = rlm("demo", "--budget-calls", "2", "--sandbox", "auto", "--cell-timeout", "30", folder=tmp_path)
    assert done.returncode == 3
    assert b"stopped: the budget of 2 calls is used up" in done.stderr
