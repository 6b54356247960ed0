"""Fill the reference pages from the code: the help of commands, and the options of the settings classes."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

from rlm import settings

OPTIONS = re.compile(r"<!-- options: (?P<name>\w+) -->")
HELP = re.compile(r"<!-- help:(?P<command>[ \w-]*)-->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace `<!-- help: COMMAND -->` by what the command prints, and `<!-- options: NAME -->` by a table."""
    markdown = HELP.sub(lambda found: help_of(found["command"].split()), markdown)
    return OPTIONS.sub(lambda found: table_of(getattr(settings, found["name"])), markdown)


def help_of(command: list[str]) -> str:
    """Return the help of a command as a block of text."""
    printed = subprocess.run(
        [sys.executable, "-m", "rlm", *command, "--help"], capture_output=True, text=True, check=True
    ).stdout
    return f"```text\n{printed}```"


def table_of(kind: type) -> str:
    """Return the options of a settings class as a table."""
    rows = [
        f"| `{made.name}` | `{made.type.replace('|', 'or')}` | `{made.default!r}` | {made.help} |"
        for made in settings.options_of(kind)
    ]
    return "\n".join(["| option | type | default | meaning |", "| --- | --- | --- | --- |", *rows])
