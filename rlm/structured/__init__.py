"""Answers as data: schemas, packs of items in one prompt, and the mapping of items to answers."""

from __future__ import annotations
