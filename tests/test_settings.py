from __future__ import annotations

import math
from dataclasses import fields

import pytest

from rlm.errors import SettingsError
from rlm.settings import RunSettings, SandboxSettings, SchedulerSettings


def counts_of(kind):
    return [(kind, field.name) for field in fields(kind) if field.type in {"int", "int | Literal['auto']"}]


COUNTS = [
    *counts_of(RunSettings),
    *counts_of(SandboxSettings),
    *counts_of(SchedulerSettings),
    (SchedulerSettings, "max_concurrent"),
]
DURATIONS = [(SandboxSettings, "cell_timeout_s"), (SandboxSettings, "start_timeout_s")]
OPTIONAL = [(RunSettings, "child_timeout_s"), (RunSettings, "timeout_s"), (RunSettings, "child_iterations")]
MODELS = [(RunSettings, "model"), (RunSettings, "recursive_model")]


def test_the_defaults_work():
    assert RunSettings().sandbox == SandboxSettings()
    assert len(COUNTS) > 10


@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, math.inf, math.nan, True, None, "3"])
@pytest.mark.parametrize(("kind", "name"), COUNTS)
def test_a_count_is_a_whole_number_above_0(kind, name, value):
    with pytest.raises(SettingsError, match=f"{name}="):
        kind(**{name: value})


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, None, "3"])
@pytest.mark.parametrize(("kind", "name"), DURATIONS)
def test_a_limit_of_the_guest_in_seconds_is_a_number_that_ends(kind, name, value):
    with pytest.raises(SettingsError, match=f"{name}="):
        kind(**{name: value})


@pytest.mark.parametrize("value", [5, None, "", b"gpt"])
@pytest.mark.parametrize(("kind", "name"), MODELS)
def test_a_model_is_a_name(kind, name, value):
    with pytest.raises(SettingsError, match=f"{name} is"):
        kind(**{name: value})


def test_a_guest_that_could_never_start_is_refused():
    with pytest.raises(SettingsError, match="is above highest_tier"):
        SandboxSettings(minimum_tier="isolated", highest_tier="process")
    SandboxSettings(minimum_tier="confined", highest_tier="confined")


@pytest.mark.parametrize("value", [0, math.nan, "3"])
def test_the_wall_clock_is_a_number_above_0(value):
    with pytest.raises(SettingsError, match="timeout_s="):
        RunSettings(timeout_s=value)


@pytest.mark.parametrize("value", [0, -1, True, "3"])
@pytest.mark.parametrize(("kind", "name"), OPTIONAL)
def test_a_limit_that_may_be_absent_is_above_0_where_it_is_there(kind, name, value):
    with pytest.raises(SettingsError, match=f"{name}="):
        kind(**{name: value})


@pytest.mark.parametrize("models", [("",), ("gpt-5", None)])
def test_the_models_of_child_runs_are_names(models):
    with pytest.raises(SettingsError, match=r"child_models\["):
        RunSettings(child_models=models)


def test_one_name_is_not_the_models_of_child_runs():
    with pytest.raises(SettingsError, match="child_models='gpt-5'"):
        RunSettings(child_models="gpt-5")


@pytest.mark.parametrize(
    ("depth", "models"),
    [(1, ("a", "b")), (2, ("a", "b", "c")), (3, ("a", "b", "c", "d")), (9, ("a", "b", "c", "d"))],
)
def test_the_models_of_a_run_are_those_it_may_ask_each_once(depth, models):
    settings = RunSettings(model="a", recursive_model="b", child_models=("c", "d"), max_depth=depth)
    assert settings.models == models


def test_the_settings_of_a_child_run_are_those_of_its_depth():
    settings = RunSettings(
        model="big", child_models=("middle", "small"), max_iterations=9, child_iterations=4
    )
    assert [settings.for_child(depth).model for depth in (1, 2, 3)] == ["middle", "small", "small"]
    assert settings.for_child(1, "chosen").model == "chosen"
    assert settings.for_child(1).max_iterations == 4
    assert RunSettings(model="big").for_child(2) == RunSettings(model="big")
