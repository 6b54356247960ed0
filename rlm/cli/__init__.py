"""The `rlm` command."""

from __future__ import annotations
