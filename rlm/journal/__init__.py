"""Append-only journal: the file, events as records, and the journal of runs."""

from __future__ import annotations
