"""How to start a guest."""

from __future__ import annotations
