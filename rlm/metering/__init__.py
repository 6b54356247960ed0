"""Tokens, prices, and upper bounds of what a call can cost."""

from __future__ import annotations
