"""Import path of the OpenAI clients in rlm-minimal."""

from __future__ import annotations

from rlm.clients.openai import AsyncOpenAIClient, OpenAIClient

__all__ = ["AsyncOpenAIClient", "OpenAIClient"]
