"""Recursive Language Models: ask questions of texts far longer than any prompt.

    from rlm import RLM_REPL

    answer = RLM_REPL(model="gpt-5", recursive_model="gpt-5-nano").completion(context, "Who signed, and when?")

Names are imported when they are first used: `import rlm` itself loads no library and reads no environment.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlm.clients.openai import AsyncOpenAIClient, OpenAIClient
    from rlm.errors import RLMError
    from rlm.metering.prices import Price
    from rlm.offline.client import OfflineClient
    from rlm.repl import REPLEnv, REPLResult, Sub_RLM
    from rlm.rlm_repl import RLM_REPL
    from rlm.scheduler.budget import Budget
    from rlm.session import RLMSession
    from rlm.settings import SandboxSettings, SchedulerSettings
    from rlm.testing.scripted import ScriptedClient
    from rlm.values import Answer

__version__ = "0.1.0"

__all__ = [
    "RLM_REPL",
    "Answer",
    "AsyncOpenAIClient",
    "Budget",
    "OfflineClient",
    "OpenAIClient",
    "Price",
    "REPLEnv",
    "REPLResult",
    "RLMError",
    "RLMSession",
    "SandboxSettings",
    "SchedulerSettings",
    "ScriptedClient",
    "Sub_RLM",
    "__version__",
]

_MODULES = {
    "Answer": "rlm.values",
    "AsyncOpenAIClient": "rlm.clients.openai",
    "Budget": "rlm.scheduler.budget",
    "OfflineClient": "rlm.offline.client",
    "OpenAIClient": "rlm.clients.openai",
    "Price": "rlm.metering.prices",
    "REPLEnv": "rlm.repl",
    "REPLResult": "rlm.repl",
    "RLMError": "rlm.errors",
    "RLMSession": "rlm.session",
    "RLM_REPL": "rlm.rlm_repl",
    "SandboxSettings": "rlm.settings",
    "SchedulerSettings": "rlm.settings",
    "ScriptedClient": "rlm.testing.scripted",
    "Sub_RLM": "rlm.repl",
}


_ELSEWHERE = {"RLM", "Rlm", "RLMClient", "RLMRepl", "RLM_Repl", "RecursiveLanguageModel"}
"""Names under which other distributions export their main class."""


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if name in _ELSEWHERE:
        raise ImportError(f"{name} is called RLM_REPL here: from rlm import RLM_REPL")
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
