"""Which client a command line means, and the `.env` file in the working directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import click

from rlm.cli.failures import complain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["OFFLINE", "load_env_file", "require_endpoint", "with_client"]

OFFLINE: Final = "offline"
SET_A_KEY: Final = "set OPENAI_API_KEY, or name an endpoint with --base-url"
BY_RULES: Final = "--client offline answers by rules, without a model"


def with_client(
    keywords: Mapping[str, Any], environment: Mapping[str, str], *, is_interactive: bool
) -> dict[str, Any]:
    """Return the keywords of `RLM_REPL` with the client that they and the environment mean.

    Without a key and an endpoint, the offline client answers if it was named; or if a person at a terminal, who sees the
    warning, named no model.

    Raises:
        click.UsageError: the keywords contradict each other, or there is neither key nor endpoint.
    """
    given = dict(keywords)
    client, base_url = given.pop("client", None), given.pop("base_url", None)
    if base_url is not None and not base_url.strip():
        raise click.UsageError("--base-url is empty: name an endpoint, such as http://localhost:11434/v1")
    base_url = (base_url or environment.get("OPENAI_BASE_URL", "")).strip()
    children = given.get("child_models", ())
    if len(children) >= given.get("max_depth", 1):
        needed = f"--max-depth {len(children) + 1}"
        raise click.UsageError(f"--child-model {children[-1]}: no child run is that deep without {needed}")
    named = {given.get("model"), given.get("recursive_model")} - {None}
    if OFFLINE in named and named != {OFFLINE}:
        raise click.UsageError("the offline client answers for both roles: name it for both, or for none")
    has_endpoint = bool(base_url or environment.get("OPENAI_API_KEY", "").strip())
    if client is None and not has_endpoint and not named and is_interactive:
        complain(
            f"NO LANGUAGE MODEL: no key and no endpoint. Rules answer, with quotes. For a model, {SET_A_KEY}."
        )
        client = OFFLINE
    if OFFLINE in {client, *named}:
        roles = {"model", "recursive_model", "child_models"}
        return {name: value for name, value in given.items() if name not in roles} | {"client": OFFLINE}
    if not has_endpoint:
        models = f" to ask {min(named)!r}" if named else ""
        raise click.UsageError(f"no key and no endpoint{models}: {SET_A_KEY}; {BY_RULES}")
    return given | {"base_url": base_url or None}


def require_endpoint(base_url: str | None) -> None:
    """Require a key or an endpoint, for a command that has no offline client.

    Raises:
        click.UsageError: there is neither.
    """
    if not (base_url or os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL")):
        raise click.UsageError(f"no key and no endpoint: {SET_A_KEY}")


def load_env_file(folder: Path) -> None:
    """Set the `OPENAI_…` variables of the folder's `.env` that the environment does not have, and print their names.

    Only these, and only from this folder: a file that comes with foreign data must not set `PATH`. For the same
    reason an endpoint from the file is never sent a key from elsewhere.
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
    new = {
        name: value
        for name, value in values.items()
        if value and name.startswith("OPENAI_") and name not in os.environ
    }
    os.environ.update(new)
    if new:
        complain(f"from {path}: {', '.join(sorted(new))}")
