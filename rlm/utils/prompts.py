"""The import path of rlm-minimal; the words live in `rlm.prompts`."""

from __future__ import annotations

from rlm.prompts import DEFAULT_QUESTION, first_message, system_prompt

__all__ = ["DEFAULT_QUESTION", "first_message", "system_prompt"]
