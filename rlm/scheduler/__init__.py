"""One place through which every call of a run tree goes; one file per concern."""

from __future__ import annotations
