from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from rlm import RLM_REPL, errors
from rlm.cli import command
from rlm.cli.endpoint import load_env_file, with_client
from rlm.cli.failures import State, report

KEY = {"OPENAI_API_KEY": "sk-test"}
URL = {"OPENAI_BASE_URL": "http://localhost:1/v1"}


def settings_for(keywords, environment, *, is_interactive=False):
    with RLM_REPL(**with_client(keywords, environment, is_interactive=is_interactive)) as rlm:
        return rlm.settings


@pytest.mark.parametrize(
    ("keywords", "environment", "models"),
    [
        ({}, KEY, ("gpt-5", "gpt-5-nano")),
        ({"model": "a"}, KEY, ("a", "gpt-5-nano")),
        ({"model": "a"}, URL, ("a", "a")),
        ({"recursive_model": "b"}, URL, ("b", "b")),
        ({"model": "a", "recursive_model": "b"}, URL, ("a", "b")),
        ({"base_url": "http://localhost:1/v1", "model": "a"}, KEY, ("a", "a")),
        ({"client": "offline"}, {}, ("offline", "offline")),
        ({"client": "offline"}, KEY, ("offline", "offline")),
        ({"client": "offline", "model": "a"}, KEY, ("offline", "offline")),
        ({"model": "offline"}, KEY, ("offline", "offline")),
    ],
)
def test_the_options_and_the_environment_choose_client_and_models(keywords, environment, models, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")  # the client reads the environment of the process
    settings = settings_for(keywords, environment)
    assert (settings.model, settings.recursive_model) == models


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({}, "no key and no endpoint: set OPENAI_API_KEY, .* --client offline answers by rules"),
        ({"client": "openai"}, "OPENAI_API_KEY"),
        ({"model": "gpt-5"}, "no key and no endpoint to ask 'gpt-5'"),
        ({"model": "offline", "recursive_model": "gpt-5"}, "both roles"),
        ({"child_models": ("a",)}, "--child-model a: no child run is that deep without --max-depth 2"),
        (
            {"child_models": ("a", "b"), "max_depth": 2},
            "--child-model b: no child run is that deep without --max-depth 3",
        ),
    ],
)
def test_options_that_cannot_work_are_a_usage_error(keywords, words):
    with pytest.raises(click.UsageError, match=words):
        with_client(keywords, {}, is_interactive=False)


def test_without_a_key_rules_answer_only_a_person_at_a_terminal_and_say_so(capsys):
    assert with_client({}, {}, is_interactive=True) == {"client": "offline"}
    assert "NO LANGUAGE MODEL" in capsys.readouterr().err
    assert with_client({"client": "offline"}, {}, is_interactive=True) == {"client": "offline"}
    assert not capsys.readouterr().err
    with pytest.raises(click.UsageError, match="no key and no endpoint to ask 'gpt-5'"):
        with_client({"model": "gpt-5"}, {}, is_interactive=True)


@pytest.fixture
def environment(monkeypatch, tmp_path):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return tmp_path / ".env"


def test_the_env_file_gives_only_what_openai_needs_and_overrides_nothing(environment, monkeypatch):
    import os

    environment.write_text("OPENAI_API_KEY=from-file\nOPENAI_BASE_URL=http://x/v1\nLD_PRELOAD=evil.so\n")
    load_env_file(environment.parent)
    assert (os.environ["OPENAI_API_KEY"], os.environ["OPENAI_BASE_URL"]) == ("from-file", "http://x/v1")
    assert os.environ.get("LD_PRELOAD") != "evil.so"
    monkeypatch.setenv("OPENAI_API_KEY", "mine")
    load_env_file(environment.parent)
    assert os.environ["OPENAI_API_KEY"] == "mine"


def test_an_endpoint_from_a_file_never_gets_a_key_from_elsewhere(environment, monkeypatch, capsys):
    import os

    monkeypatch.setenv("OPENAI_API_KEY", "mine")
    environment.write_text("OPENAI_BASE_URL=http://attacker/v1\n")
    load_env_file(environment.parent)
    assert "OPENAI_BASE_URL" not in os.environ
    assert "is not used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.SettingsError("x"), 2),
        (errors.ContextError("x"), 2),
        (errors.MissingExtra("x", "tables"), 2),
        (click.UsageError("x"), 2),
        (errors.GuestStartFailed("x"), 1),
        (errors.ProtocolViolation("x"), 1),
        (ZeroDivisionError("x"), 1),
        (errors.BudgetExceeded("x", name="calls", limit=1, spent=1), 3),
        (errors.UnknownModel("x"), 5),
        (errors.ConnectionFailed("x"), 5),
        (errors.InputError("x"), 2),
        (errors.OutputError("x"), 2),
        (errors.SchemaError("x"), 2),
        (errors.JobStopped("x"), 1),
        (errors.JobStopped("x", cause=errors.BudgetExceeded("x", name="calls", limit=1, spent=1)), 3),
        (errors.JobStopped("x", cause=errors.QuotaExhausted("x")), 5),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_error_is_one_line_and_its_documented_code(error, code, capsys):
    assert report(error, State()) == code
    assert capsys.readouterr().err.count("\n") == (0 if code == 130 else 1)


@pytest.mark.parametrize("name", ["ask", "chat", "demo", "map", "count", "split", "doctor"])
def test_the_help_of_every_command_has_examples(name):
    result = CliRunner().invoke(command, [name, "--help"])
    assert result.exit_code == 0
    assert result.output.count(f"rlm {name}") >= 2
