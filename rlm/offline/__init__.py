"""The client that needs no model: rules over text, for trying out and for tests."""

from __future__ import annotations
