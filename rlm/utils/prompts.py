"""Import path and names of rlm-minimal for the prompts of `rlm.engine.prompts`."""

from __future__ import annotations

from rlm.engine.prompts import DEFAULT_QUESTION, system_prompt
from rlm.settings import RunSettings

__all__ = ["DEFAULT_QUERY", "build_system_prompt", "system_prompt"]

DEFAULT_QUERY = DEFAULT_QUESTION
"""The question of a completion without a query."""


def build_system_prompt() -> list[dict[str, str]]:
    """Return the first messages of a run with default settings, in the form of rlm-minimal: one system message."""
    return [{"role": "system", "content": system_prompt(RunSettings())}]
