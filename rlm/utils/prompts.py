"""The import path and names of rlm-minimal; the words live in `rlm.engine.prompts`."""

from __future__ import annotations

from rlm.engine.prompts import DEFAULT_QUESTION, system_prompt
from rlm.settings import RunSettings

__all__ = ["DEFAULT_QUERY", "build_system_prompt", "system_prompt"]

DEFAULT_QUERY = DEFAULT_QUESTION
"""What is asked where a completion is given no query."""


def build_system_prompt() -> list[dict[str, str]]:
    """The messages a run with default settings begins with, as rlm-minimal gives them: one, of the system."""
    return [{"role": "system", "content": system_prompt(RunSettings())}]
