"""`rlm config`, and the defaults that its file gives, as processes."""

from __future__ import annotations

import json

import pytest
from cli.test_commands import complaint, rlm
from openai_server import OpenAIServer


@pytest.fixture
def server():
    with OpenAIServer(lambda request: "FINAL(three rents)") as server:
        yield server


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.txt").write_text("A tenant who leaves early must pay a fee of three rents.\n" * 50)
    return tmp_path


@pytest.fixture
def run(folder):
    def run(*arguments, **environment):
        return rlm(*arguments, folder=folder, XDG_CONFIG_HOME=str(folder / "home"), **environment)

    return run


def models(done):
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    return answer["model"], answer["recursive_model"]


def test_a_default_is_set_shown_used_and_unset(run, server):
    assert run("config", "set", "base-url", server.base_url).returncode == 0
    assert run("config", "set", "recursive_model", "small").returncode == 0
    assert run("config", "set", "ask.model", "big").returncode == 0
    shown = run("config", "show").stdout.decode()
    assert 'recursive-model = "small"' in shown
    assert '[ask]\nmodel = "big"' in shown
    ask = ("ask", "a.txt", "-q", "?", "--json", "--quiet")
    assert models(run(*ask)) == ("big", "small")
    assert models(run(*ask, RLM_MODEL="named")) == ("named", "small")
    assert models(run(*ask, "-m", "said", RLM_MODEL="named")) == ("said", "small")
    assert run("config", "unset", "ask.model").returncode == 0
    assert models(run(*ask)) == ("small", "small")


def test_the_defaults_outside_a_table_are_those_of_ask_and_chat_alone(run, folder):
    run("config", "set", "max-iterations", "3")
    run("config", "set", "count.model", "own")
    (folder / "in.csv").write_text("n,text\n1,one\n")
    counted = run("count", "in.csv", "-p", "{{text}}", "--json", "--price", "1,2")
    assert list(json.loads(counted.stdout)["cost_usd"]) == ["own"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("set", "modle", "x"), "there is no option 'modle'. Did you mean"),
        (("set", "ask.budget", "much"), "budget = \"much\": 'much' is not a valid number"),
        (("set", "asks.budget", "1"), "there is no command 'asks'"),
        (("set", "api-key", "sk-secret"), "set keys in the environment"),
        (("unset", "model"), "model is not set in "),
    ],
)
def test_a_default_that_cannot_work_is_refused_and_not_written(run, arguments, words):
    done = run("config", *arguments)
    assert done.returncode == 2
    assert words in complaint(done)
    assert b"sk-secret" not in done.stderr
    assert b"does not exist" in run("config", "show").stdout


def test_a_value_with_leading_zeros_is_text(run):
    assert run("config", "set", "model", "007").returncode == 0
    assert b'model = "007"' in run("config", "show").stdout


def test_comments_of_the_file_stay_and_a_wrong_line_is_named(run, folder):
    path = folder / "home" / "rlm-cells" / "config.toml"
    assert run("config", "path").stdout.decode().strip() == str(path)
    path.parent.mkdir(parents=True)
    path.write_text("# mine\nmodel = 'a'  # for now\n\n[map]\nlimit = 5\n")
    run("config", "set", "model", "b")
    run("config", "set", "timeout", "60")
    assert path.read_text() == '# mine\nmodel = "b"\ntimeout = 60\n\n[map]\nlimit = 5\n'
    path.write_text("modl = 'a'\n")
    assert f"{path}: there is no option 'modl'" in complaint(run("ask", "a.txt", "-q", "?"))
