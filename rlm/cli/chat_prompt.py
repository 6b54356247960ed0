"""Read the lines of `rlm chat` from a prompt on a terminal, or from stdin. The only module that uses prompt_toolkit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlm.cli.chat_inputs import is_unfinished

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["can_prompt", "lines_of_stdin", "lines_of_terminal"]

HINT = "(Ctrl-D or /quit leaves)"


def can_prompt() -> bool:
    """Return True if a person can be prompted: stdin and stderr are terminals."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def lines_of_stdin() -> Iterator[str]:
    """Yield each line of stdin; none if stdin is closed."""
    for line in sys.stdin or ():
        yield line.rstrip("\r\n")


def lines_of_terminal() -> Iterator[str]:
    """Yield each input, which may have several lines, until Ctrl-D. Ctrl-C discards the input that is being typed."""
    session = _prompt_session()
    while True:
        try:
            text: str = session.prompt()
        except KeyboardInterrupt:
            sys.stderr.write(f"{HINT}\n")
        except EOFError:
            return
        else:
            yield text


def _prompt_session() -> Any:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import create_output

    return PromptSession(
        "rlm> ",
        multiline=True,
        prompt_continuation="...  ",
        key_bindings=_key_bindings(),
        history=_history(),
        enable_history_search=True,
        output=create_output(stdout=sys.stderr),  # stdout is for answers
        color_depth=_color_depth(),
    )


def _key_bindings() -> Any:
    from prompt_toolkit.filters import is_searching
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()

    @bindings.add("enter", filter=~is_searching)
    def _(event: Any) -> None:
        buffer = event.current_buffer
        if buffer.document.is_cursor_at_the_end and is_unfinished(buffer.text):
            line = buffer.document.current_line
            deeper = "    " if line.rstrip().endswith(":") else ""
            indentation = line[: len(line) - len(line.lstrip())]
            buffer.insert_text(f"\n{indentation}{deeper}")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def _history() -> Any:
    """Return the history file of this user, or a history in memory if the file cannot be written."""
    import platformdirs
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    folder = Path(platformdirs.user_state_dir("rlm-cells", appauthor=False))
    path = folder / "chat_history"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


def _color_depth() -> Any:
    import os

    from prompt_toolkit.output import ColorDepth

    return ColorDepth.DEPTH_1_BIT if os.environ.get("NO_COLOR") else None
