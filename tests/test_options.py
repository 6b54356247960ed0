"""The keywords of `RLM_REPL` are the options of its settings, with one definition of each."""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest

from rlm import RLM_REPL, ScriptedClient, Sub_RLM, settings
from rlm.errors import SettingsError
from rlm.options import OF_THE_SANDBOX, OF_THE_SCHEDULER, RunOptions, models_of
from rlm.settings import RunSettings, SandboxSettings, SchedulerSettings, options_of

HOMES = {
    **dict.fromkeys(OF_THE_SCHEDULER, SchedulerSettings),
    **dict.fromkeys(OF_THE_SANDBOX, SandboxSettings),
}


def make(**options):
    return RLM_REPL(client=ScriptedClient(["FINAL(1)"]), **options)


@pytest.mark.parametrize("kind", [RunSettings, SandboxSettings, SchedulerSettings])
def test_every_option_has_a_type_a_default_and_help(kind):
    for option in options_of(kind):
        assert option.help.endswith("."), option.name
        assert option.help[0].isupper(), option.name
        assert option.default == getattr(kind(), option.name)
        assert f"{option.name}: {option.help}" in kind.__doc__


@pytest.mark.parametrize("name", RunOptions.__annotations__)
def test_a_keyword_of_the_facade_is_an_option_with_the_same_type(name):
    of_settings = next(part.type for part in fields(HOMES.get(name, RunSettings)) if part.name == name)
    of_facade = RunOptions.__annotations__[name].__forward_arg__
    if name == "child_models":
        assert (of_settings, of_facade) == ("tuple[str, ...]", "Sequence[str]")
    else:
        assert of_facade == of_settings + (" | None" if name in HOMES else "")


def test_every_option_of_a_run_can_be_given_to_the_facade():
    given = {*RunOptions.__annotations__, *inspect.signature(RLM_REPL).parameters}
    assert {part.name for part in fields(RunSettings)} <= given


def test_the_facade_has_the_defaults_of_the_settings_where_it_repeats_them():
    parameters = inspect.signature(RLM_REPL).parameters
    for name in ("max_iterations", "max_depth"):
        assert parameters[name].default == getattr(RunSettings(), name)


def test_options_reach_the_settings_that_they_belong_to():
    with make(max_concurrent=3, cell_timeout_s=5, shown_output_chars=100, child_models=["a"]) as rlm:
        assert rlm.settings.scheduler.max_concurrent == 3
        assert rlm.settings.sandbox.cell_timeout_s == 5
        assert rlm.settings.shown_output_chars == 100
        assert rlm.settings.child_models == ("a",)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_concurrency", "max_concurrency= is called max_concurrent= here"),
        ("max_childs", "did you mean max_children="),
        ("zzz", "RLM_REPL has no option zzz=$"),
    ],
)
def test_an_unknown_option_is_refused_and_the_right_one_named(name, hint):
    with pytest.raises(TypeError, match=hint):
        make(**{name: 3})


def test_an_option_is_given_once():
    with pytest.raises(SettingsError, match="cell_timeout_s=5 and sandbox=SandboxSettings"):
        make(cell_timeout_s=5, sandbox=SandboxSettings())
    with pytest.raises(SettingsError, match="cache='on' and scheduler=SchedulerSettings"):
        make(cache="on", scheduler=SchedulerSettings())


@pytest.mark.parametrize(
    ("given", "environment", "own_endpoint", "expected"),
    [
        ((None, None), {}, False, ("gpt-5", "gpt-5-nano")),
        (("a", None), {}, False, ("a", "gpt-5-nano")),
        (("a", None), {}, True, ("a", "a")),
        ((None, None), {}, True, ("gpt-5", "gpt-5-nano")),
        ((None, "b"), {}, True, ("b", "b")),
        ((None, "b"), {}, False, ("gpt-5", "b")),
        ((None, None), {"RLM_MODEL": ""}, False, ("gpt-5", "gpt-5-nano")),
        ((None, None), {"RLM_MODEL": "e"}, False, ("e", "gpt-5-nano")),
        ((None, None), {"RLM_MODEL": "e"}, True, ("e", "e")),
        (("a", None), {"RLM_MODEL": "e", "RLM_RECURSIVE_MODEL": "f"}, True, ("a", "f")),
        (("a", "b"), {"RLM_MODEL": "e", "RLM_RECURSIVE_MODEL": "f"}, False, ("a", "b")),
    ],
)
def test_models_come_from_the_call_the_environment_or_the_defaults(
    given, environment, own_endpoint, expected, monkeypatch
):
    for name in ("RLM_MODEL", "RLM_RECURSIVE_MODEL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert models_of(*given, own_endpoint=own_endpoint) == expected


@pytest.mark.parametrize("name", ["RLM", "RLMRepl", "RLMClient"])
def test_the_name_of_another_distributions_class_is_answered_with_ours(name):
    with pytest.raises(ImportError, match="from rlm import RLM_REPL"):
        exec(f"from rlm import {name}")


def test_the_keyword_of_other_libraries_for_the_question_is_answered_with_ours():
    with make() as rlm, pytest.raises(TypeError, match="question= is called query= here"):
        rlm.completion("text", question="what?")


@pytest.mark.parametrize("name", ["completion", "session", "ask_model", "ask_models", "bare_session"])
def test_a_blocking_method_has_the_signature_and_text_of_its_async_twin(name):
    blocking, twin = getattr(RLM_REPL, name), getattr(RLM_REPL, f"a{name}")
    assert inspect.signature(blocking) == inspect.signature(twin)
    assert blocking.__doc__ == twin.__doc__
    assert (blocking.__name__, inspect.iscoroutinefunction(blocking)) == (name, False)
    assert inspect.iscoroutinefunction(twin)


def test_the_docstring_of_settings_is_complete_without_repeating_itself():
    assert settings.RunSettings.__doc__.count("max_iterations:") == 1


@pytest.mark.parametrize("name", RunOptions.__annotations__)
def test_the_docstring_of_the_facade_has_each_option_with_help_type_and_default(name):
    (option,) = (option for option in options_of(HOMES.get(name, RunSettings)) if option.name == name)
    line = f"    {name}: {option.help} ({option.type}, default {option.default!r})"
    assert RLM_REPL.__doc__.splitlines().count(line) == 1


def test_environments_and_sub_models_use_the_model_of_the_environment(monkeypatch):
    monkeypatch.setenv("RLM_RECURSIVE_MODEL", "small")
    with Sub_RLM(client=ScriptedClient(str)) as sub, Sub_RLM("mine", client=ScriptedClient(str)) as named:
        assert (sub.model, named.model) == ("small", "mine")
