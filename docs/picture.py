"""Draw the picture of a run: run a command in a real terminal and write what it shows as an SVG.

    python docs/picture.py                       writes docs/pages/run.svg from `rlm demo`
    python docs/picture.py OUT.svg COMMAND...    any other command

Needs tmux. The colours are those of the terminal, the times those of this machine.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

COLUMNS, ROWS = 96, 200
DONE = "-- done --"


def main() -> None:
    """Write the picture that the command line asks for."""
    out, *command = sys.argv[1:] or [str(Path(__file__).with_name("pages") / "run.svg"), "rlm", "demo"]
    Path(out).write_text(picture_of(command), encoding="utf-8")


def picture_of(command: list[str]) -> str:
    """Return the SVG of a terminal in which the command has run."""
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    console.print(Text.assemble(("$ ", "bold green"), shlex.join(command)))
    console.print(Text.from_ansi(screen_after(command)))
    svg = console.export_svg(title="rlm", theme=MONOKAI)
    return re.sub(
        r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL
    )  # fonts from elsewhere: the reader's own will do


def screen_after(command: list[str], *, timeout_s: float = 120) -> str:
    """Return what the terminal shows after the command, with its colours as escape sequences."""
    session = f"rlm-picture-{os.getpid()}"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = (
        f"clear; PATH={shlex.quote(path)} {shlex.join(command)}; echo {shlex.quote(DONE)}; sleep {timeout_s}"
    )
    tmux("new-session", "-d", "-s", session, "-x", str(COLUMNS), "-y", str(ROWS), "sh", "-c", script)
    try:
        deadline = time.monotonic() + timeout_s
        while DONE not in (screen := tmux("capture-pane", "-e", "-p", "-t", session)):
            if time.monotonic() > deadline:
                sys.exit(f"the command did not end within {timeout_s:.0f} s")
            time.sleep(0.1)
        return screen.partition(DONE)[0].rstrip()
    finally:
        tmux("kill-session", "-t", session)


def tmux(*arguments: str) -> str:
    """Run tmux, and return what it prints."""
    return subprocess.run(["tmux", *arguments], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
