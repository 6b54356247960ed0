"""Fill the reference pages from the code: `<!-- help: ask -->` becomes what `rlm ask --help` prints."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

HELP = re.compile(r"<!-- help:(?P<command>[ \w-]*)-->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each marker of a page by the text it names."""
    return HELP.sub(lambda found: help_of(found["command"].split()), markdown)


def help_of(command: list[str]) -> str:
    """Return the help of a command as a block of text."""
    printed = subprocess.run(
        [sys.executable, "-m", "rlm", *command, "--help"], capture_output=True, text=True, check=True
    ).stdout
    return f"```text\n{printed}```"
