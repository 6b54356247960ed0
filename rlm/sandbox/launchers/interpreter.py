"""The Python that guests of this machine run on.

`sys.executable` may be an application with a Python inside (frozen by PyInstaller, uwsgi, an embedding program), or
empty. To start it would start the application again, so it is judged by its name and never tried. Another Python is
then searched for: where this one was installed, and on PATH.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from rlm.errors import GuestStartFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Interpreter", "is_python", "own_interpreter"]

LIBRARY_PATHS = (
    "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH", "NIX_LD", "NIX_LD_LIBRARY_PATH",
)  # fmt: skip
NAME = re.compile(r"python[0-9.]*[a-z]*(-[a-z0-9]+)?", re.IGNORECASE)
OLDEST, NEWEST_NAMED = 11, 20
TRIAL = "import sys; sys.exit(sys.version_info < (3, 11))"
TRIAL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python, and the variables that it needs.

    Attributes:
        path: its path or command.
        inherit: names of variables of this process to pass on, so that it finds its libraries.
        environment: variables to set.
    """

    path: str
    inherit: tuple[str, ...] = LIBRARY_PATHS
    environment: Mapping[str, str] = field(default_factory=dict)


def own_interpreter() -> Interpreter:
    """Return this process's interpreter, or another one if `sys.executable` is not Python.

    Raises:
        GuestStartFailed: there is no other one.
    """
    if is_python(sys.executable):
        needs_home = "PYTHONHOME" in os.environ and not sys.flags.ignore_environment
        return Interpreter(sys.executable, (*LIBRARY_PATHS, *(("PYTHONHOME",) if needs_home else ())))
    path = _other_python(sys.executable, os.environ.get("PATH", ""))
    if path is None:
        raise GuestStartFailed(
            f"{sys.executable or 'this program'} is an application and not Python, and no Python 3.11 or newer was "
            "found on PATH for the guest: install one, or pass launcher=local(python='/path/to/python3')"
        )
    # PyInstaller's start program replaces LD_LIBRARY_PATH, and keeps the user's own in a second variable.
    original = os.environ.get("LD_LIBRARY_PATH_ORIG")
    inherit = tuple(name for name in LIBRARY_PATHS if name != "LD_LIBRARY_PATH" or not _is_frozen())
    return Interpreter(path, inherit, {"LD_LIBRARY_PATH": original} if original else {})


def is_python(path: str) -> bool:
    """Return True if a path is named like an interpreter, and this process is no frozen application."""
    names = (os.path.basename(path), os.path.basename(os.path.realpath(path))) if path else ()  # noqa: PTH119
    return not _is_frozen() and any(NAME.fullmatch(name) for name in names)


def _is_frozen() -> bool:
    """Return True in an application made by PyInstaller, cx_Freeze, py2exe or Nuitka."""
    return bool(getattr(sys, "frozen", False)) or "__compiled__" in vars(sys.modules["__main__"])


@cache
def _other_python(application: str, path: str) -> str | None:
    """Return the first interpreter that starts and is new enough, or None."""
    return next((found for found in _candidates(application, path) if _starts(found)), None)


def _candidates(application: str, path: str) -> Iterator[str]:
    """Yield paths named like interpreters: of this installation first, then on PATH, this version first."""
    minor = sys.version_info.minor
    base: str = getattr(sys, "_base_executable", None) or ""
    own = [base, *(os.path.join(sys.base_prefix, "bin", name) for name in (f"python3.{minor}", "python3"))]  # noqa: PTH118
    versions = [minor, *(other for other in range(NEWEST_NAMED, OLDEST - 1, -1) if other != minor)]
    names = [f"python3.{version}" for version in versions[:1]] + ["python3"]
    names += [f"python3.{version}" for version in versions[1:]] + ["python"]
    on_path = (shutil.which(name, path=path) for name in names)
    for found in (*own, *on_path):
        if found and os.path.isfile(found) and NAME.fullmatch(os.path.basename(found)):  # noqa: PTH113, PTH119
            if application and os.path.exists(application) and os.path.samefile(found, application):  # noqa: PTH110, PTH121
                continue
            yield found


def _starts(path: str) -> bool:
    """Return True if a candidate runs and is Python 3.11 or newer."""
    try:
        trial = subprocess.run(  # noqa: S603 - a program named like an interpreter
            [path, "-I", "-S", "-c", TRIAL],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TRIAL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return trial.returncode == 0
