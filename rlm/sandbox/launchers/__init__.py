"""How to start a guest.

A guest needs `python3` and two pipes. So a launcher is no more than a command to put in front of it: nothing, for a
process on this machine, or `docker run -i …`, `bwrap …`, `ssh HOST`. The guest's code travels over the pipe.
"""

from __future__ import annotations

from rlm.sandbox.launchers.command import Launcher, local

__all__ = ["Launcher", "local"]
