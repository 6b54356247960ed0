"""All code that runs in the guest: the supervisor, the workers, and the protocol that the host speaks too.

Standard library only, and no import of the package around it: the host reads these files as text and sends them over
the pipe, so the machine that runs the guest needs `python3` and nothing else. The host imports the modules of the
protocol (`frames`, `values`, `decoding`) and a few that both sides need. Read `frames` first.
"""

from __future__ import annotations
