"""Modules of a few lines that keep the import paths of rlm-minimal."""

from __future__ import annotations
