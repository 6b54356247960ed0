"""How to start a guest.

A guest needs `python3` and two pipes, so a launcher is only a command prefix: empty for a process of this machine, or `docker run -i …`, `bwrap …`, `ssh HOST`. The guest's code travels over the pipe.
"""

from __future__ import annotations

from rlm.sandbox.launchers.command import Launcher, local

__all__ = ["Launcher", "local"]
