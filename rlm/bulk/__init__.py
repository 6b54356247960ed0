"""Whole data sets: rows in, packed calls, rows out."""

from __future__ import annotations
