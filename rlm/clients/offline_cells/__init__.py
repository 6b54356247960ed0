"""The cells that the offline client writes, one file each: what follows the line `# The cell:` is sent.

What stands above that line is for linters and type checkers only: `given` declares the names that a cell finds
in the guest, and the values that the client assigns on top of it.
"""

from __future__ import annotations

__all__: list[str] = []
