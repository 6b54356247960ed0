"""The guest, ways to launch it, and the host's side of it."""

from __future__ import annotations
