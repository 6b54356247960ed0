"""One run: the dialogue with the root model and what its cells ask for."""

from __future__ import annotations
