"""Events on a terminal."""

from __future__ import annotations
