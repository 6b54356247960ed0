"""Tools for tests of programs that use this package: a scripted client and checks of launchers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlm.testing.launcher_checks import LauncherCheck, check_launcher
    from rlm.testing.scripted import Script, ScriptedAnswer, ScriptedClient

__all__ = ["LauncherCheck", "Script", "ScriptedAnswer", "ScriptedClient", "check_launcher"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: a scripted client does not need the sandbox.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "launcher_checks" if name in {"LauncherCheck", "check_launcher"} else "scripted"
    return getattr(import_module(f"{__name__}.{module}"), name)
