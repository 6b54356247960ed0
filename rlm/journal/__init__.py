"""The append-only journal: the file, its records, and the journal of runs."""

from __future__ import annotations
