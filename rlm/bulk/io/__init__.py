"""Rows from and to files."""

from __future__ import annotations
