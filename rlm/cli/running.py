"""Options → an `RLM_REPL` with a display, and an answer → stdout."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlm.cli.failures import PARTIAL, State, complain
from rlm.display.text import count, money, visible

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rlm.cli.options import RunOptions
    from rlm.clients.base import Client
    from rlm.events import Emit, Event
    from rlm.metering.prices import Price
    from rlm.rlm_repl import RLM_REPL
    from rlm.values import Answer

__all__ = ["OFFLINE", "Choice", "budget_of", "choose", "load_env_file", "open_rlm", "show_answer", "spent"]

OFFLINE = "offline"


class Choice:
    """Which client and which models a command line means; `note` is what the user should be told about it."""

    def __init__(
        self, *, offline: bool, model: str, recursive_model: str, base_url: str | None, note: str = ""
    ) -> None:
        self.offline = offline
        self.model = model
        self.recursive_model = recursive_model
        self.base_url = base_url
        self.note = note


def choose(options: RunOptions, environment: Mapping[str, str]) -> Choice:
    """Choose the client: what was asked for, else OpenAI or an endpoint where there is one, else offline.

    Raises:
        click.UsageError: what was asked for cannot be.
    """
    key = environment.get("OPENAI_API_KEY", "").strip()
    if options.base_url is not None and not options.base_url.strip():
        raise click.UsageError("--base-url is empty: name an endpoint, such as http://localhost:11434/v1")
    base_url = (options.base_url or environment.get("OPENAI_BASE_URL", "")).strip() or None
    if len(options.child_model) >= (options.max_depth or 1):
        needed = len(options.child_model) + 1
        raise click.UsageError(
            f"no child run would be as deep as {options.child_model[-1]!r}: add --max-depth {needed}"
        )
    named = {options.model, options.recursive_model} - {None}
    if named and OFFLINE in named and named != {OFFLINE}:
        raise click.UsageError("the offline client answers for both roles: name it for both, or for none")
    if options.client == "openai" and not (key or base_url):
        raise click.UsageError("no key and no endpoint: set OPENAI_API_KEY, or name one with --base-url")
    if options.client == OFFLINE or (options.client is None and OFFLINE in named):
        return Choice(offline=True, model=OFFLINE, recursive_model=OFFLINE, base_url=None)
    if not (key or base_url):
        if named:
            raise click.UsageError(
                f"no key and no endpoint to ask {min(map(str, named))!r}: set OPENAI_API_KEY, or use --base-url"
            )
        note = "no OPENAI_API_KEY and no --base-url: the offline client answers with quotes; no language model is used"
        return Choice(offline=True, model=OFFLINE, recursive_model=OFFLINE, base_url=None, note=note)
    model, recursive_model = _models(options, own_endpoint=base_url is not None)
    return Choice(offline=False, model=model, recursive_model=recursive_model, base_url=base_url)


def _models(options: RunOptions, *, own_endpoint: bool) -> tuple[str, str]:
    """Both models; where an endpoint of one's own is told one, it is meant for both roles."""
    from rlm.settings import RunSettings

    defaults = RunSettings()
    model = options.model or (own_endpoint and options.recursive_model) or defaults.model
    recursive_model = options.recursive_model or (own_endpoint and options.model) or defaults.recursive_model
    return model, recursive_model


def load_env_file(folder: Path) -> None:
    """Take the `OPENAI_…` variables of `.env` in the folder, where the environment has none of its own.

    Only these, and only from this folder: a file that comes with somebody's data must not set `PATH`. For the same
    reason an endpoint from the file is never sent a key from elsewhere.

    What is taken is said, and so is a file that cannot be read.
    """
    path = folder / ".env"
    if not path.is_file():
        return
    from dotenv import dotenv_values

    try:
        values = dict(dotenv_values(path, interpolate=False))
    except (OSError, UnicodeDecodeError) as error:
        complain(f"{path}: is not used, because it cannot be read: {error}")
        return
    foreign_key = "OPENAI_API_KEY" in os.environ and "OPENAI_API_KEY" not in values
    if foreign_key and values.pop("OPENAI_BASE_URL", None) and "OPENAI_BASE_URL" not in os.environ:
        complain(
            f"{path}: its OPENAI_BASE_URL is not used, because your OPENAI_API_KEY is not from there; use --base-url"
        )
    taken = {name: value for name, value in values.items() if value and name.startswith("OPENAI_")}
    taken = {name: value for name, value in taken.items() if name not in os.environ}
    os.environ.update(taken)
    if taken:
        complain(f"from {path}: {', '.join(sorted(taken))}")


@contextmanager
def open_rlm(options: RunOptions, *, also: Emit | None = None) -> Iterator[RLM_REPL]:
    """An `RLM_REPL` as the options say, with a display on stderr; `also` hears all events, too.

    On Ctrl-C says what was spent.

    Raises:
        click.UsageError: the options contradict each other, or a price is missing that a budget needs.
        ConnectionFailed: there is nobody at the endpoint.
    """
    load_env_file(Path.cwd())
    choice = choose(options, os.environ)
    if choice.note and not options.quiet:
        complain(choice.note)
    prices = _prices(options, choice)

    from rlm._async.portal import lease
    from rlm.clients.base import check_reachable
    from rlm.display import show_on_stderr
    from rlm.events import CallFailed
    from rlm.rlm_repl import RLM_REPL
    from rlm.scheduler.budget import Budget
    from rlm.settings import RunSettings

    display = None if options.quiet else show_on_stderr(verbosity=options.verbose)
    stopped_calls = 0

    def tell(event: Event) -> None:
        nonlocal stopped_calls
        stopped_calls += isinstance(event, CallFailed) and event.kind == "Cancelled"
        if display is not None:
            display(_without_last_words(event))
        if also is not None:
            also(event)

    defaults = RunSettings()
    with lease() as portal:
        client = _client(choice)
        portal.call(check_reachable, client)
        rlm = RLM_REPL(
            model=choice.model,
            recursive_model=choice.recursive_model,
            max_iterations=options.max_iterations or defaults.max_iterations,
            max_depth=options.max_depth or defaults.max_depth,
            child_models=options.child_model,
            max_concurrent=options.max_concurrent,
            timeout_s=options.timeout,
            budget=Budget(dollars=options.budget, tokens=options.budget_tokens, calls=options.budget_calls),
            prices=prices,
            cache=options.cache,
            sandbox=options.sandbox,
            cell_timeout_s=options.cell_timeout or defaults.sandbox.cell_timeout_s,
            base_url=choice.base_url,
            client=client,
            on_event=tell if display is not None or also is not None else None,
            journal=options.journal,
        )
        try:
            yield rlm
        except KeyboardInterrupt:
            if display is not None:
                display.close()
            complain(f"interrupted; spent: {spent(rlm, stopped_calls)}")
            raise
        finally:
            if display is not None:
                display.close()
            rlm.close()


def _without_last_words(event: Event) -> Event:
    """What ended a run is told by the command, with its exit code; a display that told it, too, would repeat it."""
    from rlm.events import RunFailed

    return replace(event, error="") if isinstance(event, RunFailed) and not event.depth else event


def _prices(options: RunOptions, choice: Choice) -> dict[str, Price]:
    """The prices that were given; with a budget in dollars there must be one for both models."""
    from rlm.metering.prices import Price, missing_price, price
    from rlm.values import Usage

    prices = dict(options.price)
    if choice.offline:
        prices.setdefault(OFFLINE, Price(input=0, output=0))
    for model in (choice.model, choice.recursive_model):
        if options.budget and price(model, Usage(), overrides=prices, endpoint=choice.base_url) is None:
            by_hand = f"--price {model}=INPUT,OUTPUT (dollars per million tokens)"
            raise click.UsageError(missing_price(model, by_hand=by_hand))
    return prices


def _client(choice: Choice) -> Client:
    if choice.offline:
        from rlm.offline.client import OfflineClient

        return OfflineClient()
    from rlm.clients.openai import AsyncOpenAIClient

    return AsyncOpenAIClient(choice.recursive_model, base_url=choice.base_url)


def spent(rlm: RLM_REPL, stopped_calls: int = 0) -> str:
    """What was spent so far, in words; with the calls that were stopped, which are not among those that were made."""
    summary = rlm.cost_summary()
    parts = [count(summary["calls"], "call"), count(summary["total_tokens"], "token")]
    if summary["cost_usd"] is not None:
        parts.append(money(summary["cost_usd"]))
    if summary["stored_replies"]:
        parts.append(f"{count(summary['stored_replies'], 'answer')} from the cache")
    words = ", ".join(parts)
    if stopped_calls:
        words += f"; stopped: {count(stopped_calls, 'more call')}"
    unsure = _amounts(summary["possibly_billed"])
    return words + (f"; stopped calls may be billed up to {unsure} more" if unsure else "")


def budget_of(rlm: RLM_REPL) -> str:
    """What a question may spend at most, in words, or that there is no limit."""
    budget = rlm.budget
    amounts = (
        _amounts({"cost_usd": budget.dollars, "tokens": budget.tokens, "calls": budget.calls})
        if budget
        else ""
    )
    return f"budget of each question: {amounts or 'no limit'}"


def _amounts(amounts: Mapping[str, Any]) -> str:
    """Those of dollars, tokens and calls that there are, in words."""
    parts = [money(amounts["cost_usd"])] if amounts["cost_usd"] else []
    parts += [count(amounts[name], name.removesuffix("s")) for name in ("tokens", "calls") if amounts[name]]
    return ", ".join(parts)


def show_answer(answer: Answer, rlm: RLM_REPL, *, as_json: bool = False, quiet: bool = False) -> int:
    """Print the answer on stdout, and on stderr why it is partial, if it is; gives the exit code.

    Where nothing was shown before, because it was to be `quiet`, its warnings are told, too.
    """
    code = 0 if answer.status == "ok" else PARTIAL
    context = click.get_current_context(silent=True)
    if context is not None and (state := context.find_object(State)) is not None:
        state.code = code
    if code:
        whole = "the answer is partial" if answer else "there is no partial answer"
        complain(f"stopped: {answer.limit or answer.status}; {whole}")
    for warning in answer.warnings if quiet and not as_json else ():
        complain(f"warning: {warning}")
    if as_json:
        click.echo(_as_json(answer, rlm))
    elif answer or not code:
        click.echo(visible(answer) if sys.stdout.isatty() else str(answer))
    return code


def _as_json(answer: Answer, rlm: RLM_REPL) -> str:
    try:
        json.dumps(answer.value, allow_nan=False)
        value = answer.value
    except (TypeError, ValueError, RecursionError):
        value = str(answer)
    fields = {
        "answer": str(answer),
        "value": value,
        "status": answer.status,
        "limit": answer.limit,
        "model": rlm.settings.model,
        "recursive_model": rlm.settings.recursive_model,
        "usage": {**asdict(answer.usage), "total_tokens": answer.usage.total_tokens},
        "cost_usd": answer.cost_usd,
        "cost_summary": rlm.cost_summary(),
        "turns": answer.turns,
        "seconds": round(answer.seconds, 3),
        "run_id": answer.run_id,
        "warnings": list(answer.warnings),
    }
    readable = (sys.stdout.encoding or "").lower().startswith("utf")
    return json.dumps(fields, ensure_ascii=not readable)
