"""Read the context from FILE arguments or piped data."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rlm import sources
from rlm.cli.failures import complain
from rlm.display.status_line import StatusLine, reading_in_words
from rlm.errors import ContextError

if TYPE_CHECKING:
    from rlm.sources import ReadListener

__all__ = ["STDIN_NAME", "read_context"]

STDIN_NAME = "standard input"
LARGE_BYTES = 50_000_000
"""Size from which reading a file shows its progress."""
PIECE_BYTES = 1 << 22


def read_context(
    files: tuple[str, ...], encoding: str | None, *, may_read_stdin: bool = True, quiet: bool = False
) -> str | dict[str, str]:
    """Return the text of one file, or a dict from name to text of several. `-` is stdin, as are no files and a pipe.

    Raises:
        click.UsageError: there is nothing to read.
        ContextError: a file cannot be read or is not text, or all of them are empty or white space.
    """
    if not files:
        if not may_read_stdin or sys.stdin is None or sys.stdin.isatty():
            raise click.UsageError("no data: name a FILE, or pipe it in: cat log | rlm ask -q …")
        files = ("-",)
    if "-" in files and not may_read_stdin:
        raise click.UsageError(
            "`-` cannot be the data here, because questions are read from stdin: name a FILE"
        )
    if files.count("-") > 1:
        raise click.UsageError("`-` is named twice: stdin can be read once")
    for name in files:
        if name.startswith(("http://", "https://")):
            raise click.UsageError(
                f"{name}: is a web address; fetch its text first: curl -sL {name} | rlm ask -q …"
            )
    files = _each_once(files)
    line = StatusLine()
    try:
        context = _read(files, encoding, None if quiet else partial(_show_reading, line))
    finally:
        line.clear()
    texts = context if isinstance(context, dict) else {STDIN_NAME if files == ("-",) else files[0]: context}
    empty = [name for name, text in texts.items() if not text or text.isspace()]
    if len(empty) == len(texts):
        raise ContextError(f"{', '.join(empty)}: empty, so there is nothing to ask about")
    if empty:
        complain(f"note: {', '.join(empty)}: empty")
    return context


def _each_once(files: tuple[str, ...]) -> tuple[str, ...]:
    """Return the files without repetitions, also by another path; print a note for each."""
    first: dict[object, str] = {}
    for name in files:
        identity = name if name == "-" else _identity(Path(name))
        if identity not in first:
            first[identity] = name
            continue
        again = name if name == first[identity] else f"{name} is {first[identity]}, which"
        complain(f"note: {again} is named more than once, and read once")
    return tuple(first.values())


def _identity(path: Path) -> object:
    """Return a value that is equal for two paths to one file; the path itself if there is no such file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return path
    return found.st_dev, found.st_ino


def _show_reading(line: StatusLine, name: str, done: int, size: int) -> None:
    """Show how much of a large file was read."""
    if max(done, size) >= LARGE_BYTES:
        line.show(partial(reading_in_words, name, done, size))


def _read(files: tuple[str, ...], encoding: str | None, on_read: ReadListener | None) -> str | dict[str, str]:
    paths = [Path(name) for name in files if name != "-"]
    if len(paths) == len(files):
        return sources.read_files(paths, encoding, on_read)
    text = sources.decode(_bytes_of_stdin(on_read), STDIN_NAME, encoding)
    if not paths:
        return text
    rest = sources.read_files(paths, encoding, on_read)
    return {STDIN_NAME: text, **(rest if isinstance(rest, dict) else {paths[0].name: rest})}


def _bytes_of_stdin(on_read: ReadListener | None) -> bytes:
    data = bytearray()
    while piece := sys.stdin.buffer.read(PIECE_BYTES):
        data += piece
        if on_read is not None:
            on_read(STDIN_NAME, len(data), 0)
    return bytes(data)
