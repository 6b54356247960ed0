"""Launchers: the command that starts a guest, and the guest's code as its bootstrap reads it."""

from __future__ import annotations

import marshal  # noqa: TID251 - to write our own code down; the host reads none
import os
import shlex
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from importlib.util import MAGIC_NUMBER
from typing import TYPE_CHECKING

from rlm.errors import GuestStartFailed
from rlm.sandbox.launchers.interpreter import Interpreter, own_interpreter

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Launcher", "local"]

PASSED_ON = ("PATH", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ")
# In the order in which they are executed: each imports only those before it.
MODULES = (
    "values", "decoding", "frames", "shared_memory", "sketch", "libc", "procfs", "folders", "limits",
    "landlock", "seccomp", "users", "trials", "namespaces", "hardening", "failures", "channel", "api",
    "echo", "console", "repair", "repl", "descriptors", "worker", "pipes", "worker_process", "rehearsal",
    "cell_watch",
    "supervisor",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Launcher:
    """Command that starts a guest.

    Attributes:
        name: for messages and reports.
        prefix: the command that takes another command, as in `("docker", "run", "-i", "--rm", "--network",
            "none", "python:3.13-slim")`; empty for a process of this machine.
        python: the interpreter there, 3.11 or newer.
        environment: variables to set; of this process's own, only PATH, the locale and TZ are passed on.
        inherit: further variables to pass on by name, for a command that needs them (`HOME`, `SSH_AUTH_SOCK`).
        through_shell: the prefix hands the rest to a shell, as `ssh` does, so it must be quoted.
        shares_files: the guest sees this machine's files, so its scratch folder can be made here.
        keeps_descriptors: the guest inherits the descriptors that its command was started with, so contexts of child
            runs can be passed in shared memory.
    """

    name: str
    prefix: tuple[str, ...] = ()
    python: str = "python3"
    environment: Mapping[str, str] = field(default_factory=dict)
    inherit: tuple[str, ...] = ()
    through_shell: bool = False
    shares_files: bool = False
    keeps_descriptors: bool = False

    def command(self) -> list[str]:
        """Return the whole command that starts a guest."""
        # -I is -E, -s and -P. -E would ignore PYTHONHOME; no other variable of Python's is passed on.
        isolated = ("-s", "-P") if "PYTHONHOME" in self.variables() else ("-I",)
        start = [self.python, *isolated, "-S", "-u", "-c", guest_source("bootstrap")]
        if self.through_shell:
            start = [shlex.quote(word) for word in start]
        return [*self.prefix, *start]

    def variables(self) -> dict[str, str]:
        """Return the whole environment of that command."""
        passed = {name: os.environ[name] for name in (*PASSED_ON, *self.inherit) if name in os.environ}
        return {**passed, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **self.environment}


def local(*, python: str | None = None) -> Launcher:
    """Return the launcher of guests that are processes of this machine and confine themselves.

    Args:
        python: the interpreter of the guests; by default the one of this process, with the variables that it was
            started with to find its libraries.

    Raises:
        GuestStartFailed: this process is an application with a Python inside, and no other interpreter was found.
    """
    interpreter = own_interpreter() if python is None else Interpreter(python)
    return Launcher(
        name="local",
        python=interpreter.path,
        environment=interpreter.environment,
        inherit=interpreter.inherit,
        shares_files=True,
        keeps_descriptors=True,
    )


@cache
def guest_source(module: str) -> str:
    """Return the source of one module of the guest."""
    source = resources.files("rlm.sandbox.guest").joinpath(f"{module}.py")
    try:
        return source.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise GuestStartFailed(
            f"the guest's source {source} is missing: build the application with rlm's source files "
            "(PyInstaller: --collect-all rlm), or install rlm again"
        ) from None


@cache
def guest_code() -> bytes:
    """Return all modules of the guest, encoded as `bootstrap` reads them."""
    block = bytearray()
    for module in MODULES:
        source = guest_source(module)
        compiled = compile(source, f"<guest/{module}.py>", "exec", dont_inherit=True)
        for part in (module.encode(), source.encode(), marshal.dumps(compiled)):
            block += _sized(part)
    return _sized(MAGIC_NUMBER) + _sized(bytes(block))


def _sized(part: bytes) -> bytes:
    return len(part).to_bytes(4, "big") + part
