"""`rlm doctor`: check this machine."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import textwrap
import time
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlm.cli.command import Command
from rlm.cli.failures import FAILED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm.sandbox.session import Isolation
    from rlm.values import HostCall

__all__ = ["Finding", "command", "examine"]

DISTRIBUTION = "rlm-cells"
VOCABULARY = "o200k_base"
PACKAGES = ("openai", "anyio", "tiktoken", "rich", "click")
EXTRAS = {
    "fast": ("aiohttp", "more calls per second"),
    "tables": ("pyarrow", "Parquet and Excel in rlm map"),
    "tokens": ("toktok", "tokens of OpenAI's models counted exactly, with nothing to fetch"),
}
_NARROWEST = 40
MARKS = {"ok": "ok  ", "note": "note", "bad": "BAD "}


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check: `state` is ok, note (works, less well) or bad (does not work)."""

    state: str
    what: str
    words: str


@click.command("doctor", cls=Command)
def command() -> int:
    """Check this machine: isolation, keys, packages.

    Starts a real guest and runs a cell in it. Keys are never shown. Exit code 0 if runs can work, else 1.

    \b
    Examples:
      rlm doctor
      rlm doctor | grep -v ^ok        what is missing
    """  # noqa: D301 - the backspace is click's mark for lines that keep their breaks
    from rlm.cli.endpoint import load_env_file

    load_env_file(Path.cwd())
    findings = []
    for finding in examine():
        findings.append(finding)
        _show(finding)
    broken = any(finding.state == "bad" for finding in findings)
    _show(
        Finding("bad", "in all", "runs cannot work here; see BAD above")
        if broken
        else Finding("ok", "in all", "runs work here; a note is something that could be better")
    )
    return FAILED if broken else 0


def _show(finding: Finding) -> None:
    """Print a finding as one line; on a terminal wrapped and indented."""
    from rlm.display.text import visible

    line = f"{MARKS[finding.state]}  {finding.what}: {visible(finding.words)}"
    if sys.stdout.isatty():
        columns = max(_NARROWEST, shutil.get_terminal_size().columns)
        line = textwrap.fill(line, columns - 1, subsequent_indent=" " * 6, break_on_hyphens=False)
    click.echo(line)


def examine() -> Iterator[Finding]:
    """Run all checks in order."""
    yield Finding(
        "ok", "python", f"{platform.python_version()} on {platform.platform(terse=True)} ({sys.executable})"
    )
    yield _versions()
    yield from _foreign_distributions()
    yield from _isolation()
    yield _key()
    yield _vocabulary()
    yield from _extras()


def _versions() -> Finding:
    from rlm import __version__

    versions = [f"{name} {metadata.version(name)}" for name in PACKAGES]
    return Finding("ok", "versions", ", ".join([f"{DISTRIBUTION} {__version__}", *versions]))


def _foreign_distributions() -> Iterator[Finding]:
    """Report other distributions that install a package `rlm`: they overwrite ours file by file."""
    owners = set(metadata.packages_distributions().get("rlm", ()))
    foreign = sorted(owners - {DISTRIBUTION})
    if foreign:
        remedy = f"pip uninstall {' '.join(foreign)} {DISTRIBUTION}, then install {DISTRIBUTION} again"
        yield Finding("bad", "package rlm", f"also installed by {', '.join(foreign)}: {remedy}")
    elif not any(metadata.distributions(name=DISTRIBUTION)):
        yield Finding("note", "package rlm", f"imported from {Path(__file__).parents[1]}, not installed")


def _isolation() -> Iterator[Finding]:
    from rlm._async.portal import lease
    from rlm.errors import GuestStartFailed
    from rlm.sandbox.launchers import local

    try:
        python = local().python
        with lease() as portal:
            isolation, seconds = portal.call(_open_a_guest)
    except GuestStartFailed as error:
        yield Finding("bad", "guest", str(error))
        return
    except Exception as error:  # noqa: BLE001 - the command reports any reason why a guest cannot work
        yield Finding("bad", "guest", f"{type(error).__name__}: {error}")
        return
    tier = isolation.tier
    state = "ok" if tier == "isolated" else "note"
    yield Finding(
        state,
        "guest",
        f"{tier}: {', '.join(isolation.levels) or 'no more than a process'}; first cell after {seconds:.2f} s",
    )
    if python != sys.executable:
        reason = f"{sys.executable or 'sys.executable'} is an application and not Python"
        yield Finding("note", "guest's python", f"{python} ({isolation.python}), because {reason}")
    for level, reason in isolation.missing.items():
        yield Finding("note", f"no {level}", reason)


async def _open_a_guest() -> tuple[Isolation, float]:
    """Start a guest and run a cell in it. Return its isolation, and the seconds until the cell was done."""
    from rlm.errors import GuestDied, HostCallRefused
    from rlm.sandbox.session import open_session

    async def refuse(host_call: HostCall) -> Any:
        raise HostCallRefused(f"no {host_call.name} here")

    started = time.perf_counter()
    session = await open_session()
    try:
        await session.load("text")
        result = await session.run("print(len(context))", serve=refuse)
        if result.stdout != "4\n":
            raise GuestDied(f"the first cell {result.outcome}: {result.error or result.stdout!r}")
        return session.isolation, time.perf_counter() - started
    finally:
        await session.aclose()


def _key() -> Finding:
    key = bool(os.environ.get("OPENAI_API_KEY", "").strip())
    base_url = os.environ.get("OPENAI_BASE_URL", "").strip()
    if key or base_url:
        known = "OPENAI_API_KEY is set" if key else "no OPENAI_API_KEY"
        state, answer = _endpoint()
        return Finding(state, "models", f"{known}; endpoint: {base_url or 'api.openai.com'}: {answer}")
    return Finding(
        "note",
        "models",
        "no key (OPENAI_API_KEY) and no endpoint (OPENAI_BASE_URL, --base-url): only rlm ask --client offline, "
        "without a language model",
    )


def _endpoint() -> tuple[str, str]:
    """Ask the endpoint of the environment for its models. Return the state of the finding, and its words."""
    import anyio

    from rlm.clients.openai import AsyncOpenAIClient
    from rlm.errors import RLMError
    from rlm.wording import counted

    async def ask() -> int:
        async with AsyncOpenAIClient() as client:
            return len(await client.available_models())

    try:
        return "ok", f"it answers, and lists {counted(anyio.run(ask), 'model')}"
    except RLMError as error:
        return "note", str(error)


def _vocabulary() -> Finding:
    """Say if tiktoken can count without the network. It is not called, because it would download the file."""
    from rlm.metering.tokens import cached_vocabulary

    path = cached_vocabulary(VOCABULARY)
    if path is not None and path.is_file():
        return Finding("ok", "tiktoken", "its vocabulary is on disk")
    if util.find_spec(EXTRAS["tokens"][0]) is not None:
        return Finding("ok", "tiktoken", "its vocabulary is not needed, because the extra tokens counts")
    where = "its cache is off" if path is None else f"its vocabulary is not in {path.parent}"
    return Finding("note", "tiktoken", f"tokens are estimated: {where}, and is never downloaded")


def _extras() -> Iterator[Finding]:
    for extra, (module, gives) in EXTRAS.items():
        if util.find_spec(module) is not None:
            yield Finding("ok", f"extra {extra}", gives)
        else:
            yield Finding(
                "note", f"extra {extra}", f"not installed ({gives}): pip install '{DISTRIBUTION}[{extra}]'"
            )
