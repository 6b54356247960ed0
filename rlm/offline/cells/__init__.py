"""The cells that the offline client writes, one file each: what follows the line `# The cell:` is sent.

What stands above that line is for linters and type checkers, and these files are never imported: `given.pyi`
declares the names that a cell finds in the guest and the values that the client assigns at its top.
"""

from __future__ import annotations

__all__: list[str] = []
