"""Cells that the offline client writes, one file each: the text after the line `# The cell:` is sent.

The text above that line serves linters and type checkers, and these files are never imported: `given.pyi` declares the
names that exist in the guest and the variables that the client assigns at the top of a cell.
"""

from __future__ import annotations

__all__: list[str] = []
