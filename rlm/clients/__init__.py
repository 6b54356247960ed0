"""Clients of model providers: the protocol, OpenAI-compatible endpoints, and async functions."""

from __future__ import annotations
