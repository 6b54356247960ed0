"""The well-known import path of the OpenAI clients."""

from __future__ import annotations

from rlm.clients.openai import AsyncOpenAIClient, OpenAIClient

__all__ = ["AsyncOpenAIClient", "OpenAIClient"]
