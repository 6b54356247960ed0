"""Tools for tests of programs that use this package: a scripted client and checks of launchers."""

from __future__ import annotations
