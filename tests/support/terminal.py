"""A real terminal for tests: tmux, with its own server, driven by keys and read as a person reads it.

with Terminal([sys.executable, "-m", "rlm", "chat", "a.txt"], columns=80) as terminal:
    terminal.wait_for("rlm> ")
    terminal.type("What is this?", "Enter")
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
import uuid
from typing import TYPE_CHECKING, Self

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Terminal", "needs_tmux"]

needs_tmux = pytest.mark.skipif(
    shutil.which("tmux") is None, reason="tmux, the real terminal of this test, is missing"
)


class Terminal:
    """One program on a terminal of its own; when it ends, the screen shows `exit code N`."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        columns: int = 80,
        rows: int = 40,
        environment: Mapping[str, str] | None = None,
        folder: object = None,
    ) -> None:
        self._socket = f"rlm-test-{uuid.uuid4().hex[:12]}"
        settings = [f"{name}={value}" for name, value in (environment or {}).items()]
        unset = [argument for name in os.environ if name.startswith("OPENAI_") for argument in ("-u", name)]
        line = shlex.join(["env", *unset, "LC_ALL=C.UTF-8", *settings, *command])
        self._start = ["-f", os.devnull, "new-session", "-d", "-x", str(columns), "-y", str(rows)]
        self._start += ["-c", str(folder)] if folder else []
        self._start.append(f"{line}; code=$?; echo; echo exit code $code; sleep 60")

    def __enter__(self) -> Self:
        self._tmux(*self._start)
        return self

    def __exit__(self, *_: object) -> None:
        self._tmux("kill-server")

    def type(self, *keys: str) -> None:
        """Send keys: text, or a name such as Enter, C-c, M-Enter."""
        for key in keys:
            self._tmux("send-keys", key)

    def paste(self, text: str) -> None:
        """Paste as a terminal does, in brackets."""
        self._tmux("set-buffer", text)
        self._tmux("paste-buffer", "-p")

    def resize(self, columns: int, rows: int) -> None:
        self._tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def screen(self, *, history: bool = True) -> str:
        """What is to be seen, with what has scrolled away."""
        return self._tmux("capture-pane", "-p", "-J", *(["-S", "-2000"] if history else []))

    def wait_for(self, text: str, *, times: int = 1, seconds: float = 20.0) -> str:
        """The screen, as soon as it shows the text so often."""
        until = time.monotonic() + seconds
        while (screen := self.screen()).count(text) < times:
            assert time.monotonic() < until, f"no {text!r} within {seconds} s on\n{screen}"
            time.sleep(0.05)  # another process draws: there is nothing to wait on but its screen
        return screen

    def _tmux(self, *arguments: str) -> str:
        done = subprocess.run(
            ["tmux", "-L", self._socket, *arguments], check=False, capture_output=True, text=True
        )
        return done.stdout
