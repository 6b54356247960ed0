"""Recursive Language Models: ask questions of texts far longer than any prompt."""

from __future__ import annotations

__version__ = "0.1.0"
