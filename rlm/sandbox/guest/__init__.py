"""The far side: everything that runs in the guest.

Standard library only, and never an import of the package around it: the host reads these files as text and sends
them over the pipe, so the machine that runs the guest needs `python3` and nothing else. The host itself imports
`frames`, `values` and a few more, so that both sides speak through the same code. Read `frames` first; it is the protocol.
"""

from __future__ import annotations
