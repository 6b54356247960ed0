"""From the keywords of `RLM_REPL(...)` to settings: what may be left out, given in short forms, or only once."""

from __future__ import annotations

import difflib
import inspect
import os
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

from rlm._async.twins import refuse_renamed
from rlm.clients.function import as_client
from rlm.clients.openai import AsyncOpenAIClient, is_like_a_key, warm_up
from rlm.errors import SettingsError
from rlm.journal.runs import RunJournal
from rlm.metering.prices import Price
from rlm.offline.client import OfflineClient
from rlm.scheduler.budget import Budget
from rlm.settings import RunSettings, SandboxSettings, SchedulerSettings, described, options_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rlm.clients.base import Client
    from rlm.clients.function import ClientFunction
    from rlm.events import Emit

__all__ = [
    "RunOptions",
    "budget_of",
    "given_client",
    "journal_at",
    "models_of",
    "openai_client",
    "prices_of",
    "require_listener",
    "require_no_key",
    "settings_of",
    "with_option_docs",
]

T = TypeVar("T")

OF_THE_SCHEDULER = ("max_concurrent", "cache")
OF_THE_SANDBOX = ("cell_timeout_s",)


class RunOptions(TypedDict, total=False):
    """Keywords of `RLM_REPL` that are options of its settings; `rlm.settings` says what each means, and its default."""

    max_concurrent: int | Literal["auto"] | None
    cache: Literal["off", "read", "on"] | None
    cell_timeout_s: float | None
    timeout_s: float | None
    on_limit: Literal["partial", "raise"]
    max_children: int
    child_models: Sequence[str]
    child_iterations: int | None
    child_timeout_s: float | None
    sub_context_chars: int
    shown_output_chars: int


def with_option_docs(cls: type[T]) -> type[T]:
    """Append the options of `RunOptions` to the docstring of a class that takes them as keywords."""
    homes: dict[str, type] = {
        **dict.fromkeys(OF_THE_SCHEDULER, SchedulerSettings),
        **dict.fromkeys(OF_THE_SANDBOX, SandboxSettings),
    }
    lines = [
        described(option)
        for name in RunOptions.__annotations__
        for option in options_of(homes.get(name, RunSettings))
        if option.name == name
    ]
    cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or ""), "", "Options:", *lines])
    return cls


def settings_of(
    models: tuple[str, str],
    given: Mapping[str, Any],
    *,
    sandbox: SandboxSettings | Literal["auto", "strict"],
    scheduler: SchedulerSettings | None,
    only_model: str | None,
) -> RunSettings:
    """Build the settings of a run from the keywords that were given.

    Args:
        models: the root model and the sub-model.
        given: options by name, those of `RunOptions` and of `RunSettings`; None stands for the default of an option that
            has a settings object of its own.
        sandbox: as for `RLM_REPL`.
        scheduler: as for `RLM_REPL`.
        only_model: the one model that the client has, if it has only one.

    Raises:
        TypeError: an option is unknown.
        SettingsError: a value cannot work, or is given twice.
    """
    options = dict(given)
    _require_known(options)
    of_the_scheduler = {name: options.pop(name, None) for name in OF_THE_SCHEDULER}
    of_the_sandbox = {name: options.pop(name, None) for name in OF_THE_SANDBOX}
    children = _names("child_models", options.pop("child_models", ()))
    require_no_key(**{f"child_models[{index}]": name for index, name in enumerate(children)})
    return RunSettings(
        **options,
        model=only_model or models[0],
        recursive_model=only_model or models[1],
        child_models=() if only_model else children,
        sandbox=_sandbox_settings(sandbox, _without_none(of_the_sandbox)),
        scheduler=_scheduler_settings(scheduler, _without_none(of_the_scheduler)),
    )


def models_of(model: str | None, recursive_model: str | None, *, own_endpoint: bool) -> tuple[str, str]:
    """Return the root model and the sub-model.

    A name that is not given is that of the environment (`RLM_MODEL`, `RLM_RECURSIVE_MODEL`), else the default. An
    endpoint of the user's own (`base_url=`) may have no other model than the one that is named: it gets both roles.
    """
    require_no_key(model=model, recursive_model=recursive_model)
    root = os.environ.get("RLM_MODEL") or None if model is None else model
    sub = os.environ.get("RLM_RECURSIVE_MODEL") or None if recursive_model is None else recursive_model
    if own_endpoint:
        root, sub = (sub if root is None else root), (root if sub is None else sub)
    require_no_key(RLM_MODEL=root, RLM_RECURSIVE_MODEL=sub)
    defaults = RunSettings()
    return defaults.model if root is None else root, defaults.recursive_model if sub is None else sub


def require_no_key(**models: object) -> None:
    """Refuse an API key in place of a model: it would be printed and sent. rlm-minimal's first argument was the key.

    Raises:
        SettingsError: a name looks like a key.
    """
    for name, model in models.items():
        if isinstance(model, str) and is_like_a_key(model):
            raise SettingsError(
                f"{name}= was given what looks like an API key (not shown): pass it as api_key="
            )


def given_client(client: Client | ClientFunction | str | None) -> Client | None:
    """Return the client that was given: an object, an async function, or "offline"; None if none was.

    Raises:
        SettingsError: it is none of these.
    """
    if client is None:
        return None
    if not isinstance(client, str):
        return as_client(client)
    if client != "offline":
        raise SettingsError(
            "client= was given a text: 'offline' is the only client that has a name. Leave client= out to ask OpenAI "
            "or the endpoint at base_url=, or give an object with `async def complete(call)`"
        )
    return OfflineClient()


def openai_client(model: str, api_key: str | None, base_url: str | None) -> Client:
    """Make the default client; its library starts to load at once, to be ready for the first turn."""
    client = AsyncOpenAIClient(model, api_key=api_key, base_url=base_url)
    warm_up()
    return client


def budget_of(budget: Budget | float | None) -> Budget | None:
    """Return the budget; a number means dollars.

    Raises:
        SettingsError: it is neither.
    """
    if budget is None or isinstance(budget, Budget):
        return budget
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise SettingsError(
            f"budget={budget!r}: must be a number of dollars or a Budget, such as Budget(calls=100)"
        )
    return Budget(dollars=budget)


def prices_of(prices: Mapping[str, Price] | None, client: Client) -> dict[str, Price]:
    """Return the prices that go ahead of the built-in list: those given, and 0 for the offline client.

    Raises:
        SettingsError: one is not a `Price`.
    """
    for model, own in (prices or {}).items():
        if not isinstance(own, Price):
            raise SettingsError(
                f"prices[{model!r}]={own!r}: must be a Price, such as Price(input=0.05, output=0.4)"
            )
    free = {client.only_model: Price(input=0.0, output=0.0)} if isinstance(client, OfflineClient) else {}
    return free | dict(prices or {})


def require_listener(on_event: Emit) -> Emit:
    """Require a plain function of one event.

    Raises:
        SettingsError: it cannot be called, or has to be awaited.
    """
    listener: object = on_event  # may be anything at run time
    if not callable(listener) or any(map(inspect.iscoroutinefunction, (listener, type(listener).__call__))):
        raise SettingsError(
            f"on_event={on_event!r}: must be a plain function of one event, not a coroutine function"
        )
    return on_event


def journal_at(path: str | os.PathLike[str] | None) -> RunJournal | None:
    """Open the journal of runs at a path, if there is one.

    Raises:
        SettingsError: it is no path.
    """
    if path is None:
        return None
    if not isinstance(path, (str, os.PathLike)):
        raise SettingsError(f"journal={path!r}: must be the path of a file, such as 'runs.journal'")
    return RunJournal(path)


def _require_known(options: dict[str, Any]) -> None:
    refuse_renamed(options)
    known = {*RunOptions.__annotations__, *(part.name for part in fields(RunSettings))}
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}=?" if near else ""
            raise TypeError(f"RLM_REPL has no option {name}={hint}")


def _without_none(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _names(name: str, values: Sequence[str]) -> tuple[str, ...]:
    if isinstance(values, str):
        require_no_key(**{name: values})
        raise SettingsError(f"{name}={values!r} is a single str: give a list, such as {name}=[{values!r}]")
    return tuple(values)


def _scheduler_settings(scheduler: SchedulerSettings | None, options: dict[str, Any]) -> SchedulerSettings:
    if scheduler is None:
        return SchedulerSettings(**options)
    _require_given_once("scheduler=SchedulerSettings", options)
    return scheduler


def _sandbox_settings(
    sandbox: SandboxSettings | Literal["auto", "strict"], options: dict[str, Any]
) -> SandboxSettings:
    match sandbox:
        case SandboxSettings():
            _require_given_once("sandbox=SandboxSettings", options)
            return sandbox
        case "auto":
            return SandboxSettings(**options)
        case "strict":
            return SandboxSettings(**options, minimum_tier="confined")
        case _:
            raise SettingsError(f"sandbox={sandbox!r}: must be 'auto', 'strict' or a SandboxSettings")


def _require_given_once(settings: str, options: dict[str, Any]) -> None:
    for name, value in options.items():
        raise SettingsError(f"{name}={value!r} and {settings}: set it there, or leave one of them out")
