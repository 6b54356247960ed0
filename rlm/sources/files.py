"""Paths → context.

A path becomes the text of its file. Several paths become a dict from name to text, a dict of paths a dict of texts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from io import IOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rlm.errors import ContextError
from rlm.sources.text import decode_pieces

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["ReadListener", "file_name_warning", "load", "read_files", "read_text"]

ReadListener: TypeAlias = Callable[[str, int, int], None]
"""Called in the reading thread after each piece: name of the file, bytes read of it, its size in bytes (0 for a pipe)."""

_PIECE_BYTES = 1 << 22
_LONGEST_PATH = 1_000
_LIKE_A_FILE_NAME = re.compile(
    r"[^\s\0]([^\n\r\0]{0,250}[^\s\0])?\.(txt|md|rst|csv|tsv|jsonl?|ya?ml|xml|html?|log|tex|py|pdf|docx?|xlsx?|parquet)",
    re.IGNORECASE,
)


def load(context: Any, on_read: ReadListener | None = None) -> Any:
    """Return a path, or a list or dict of paths, as the text of the files; return any other context unchanged.

    Only `pathlib.Path` objects are paths: a str is always text.

    Raises:
        ContextError: a file is missing, a folder, unreadable or not text; paths are mixed with other values; or the
            context is an open file.
    """
    if isinstance(context, Path):
        return read_text(context, on_read=on_read)
    if isinstance(context, IOBase):
        raise ContextError("the context is an open file: pass its text, file.read(), or its pathlib.Path")
    if not isinstance(context, (list, tuple, dict)):
        return context
    items = list(context.values() if isinstance(context, dict) else context)
    paths = [item for item in items if isinstance(item, Path)]
    if not paths:
        return context
    if len(paths) < len(items):
        other = next(item for item in items if not isinstance(item, Path))
        raise ContextError(
            f"the context has paths, such as {str(paths[0])!r}, next to a {type(other).__name__}: pass only paths, or "
            "read them first, with path.read_text()"
        )
    if isinstance(context, dict):
        return {name: read_text(path, on_read=on_read) for name, path in context.items()}
    return read_files(paths, on_read=on_read)


def read_files(
    paths: Sequence[Path], encoding: str | None = None, on_read: ReadListener | None = None
) -> str | dict[str, str]:
    """Return one file as its text; several as a dict from file name (whole path if names repeat) to text."""
    if len(paths) == 1:
        return read_text(paths[0], encoding, on_read)
    names = [path.name for path in paths]
    labels = names if len(set(names)) == len(names) else [str(path) for path in paths]
    return {label: read_text(path, encoding, on_read) for label, path in zip(labels, paths, strict=True)}


def read_text(path: Path, encoding: str | None = None, on_read: ReadListener | None = None) -> str:
    """Return the text of a file, in UTF-8 or what its byte order mark says, unless `encoding` names another.

    Raises:
        ContextError: it cannot be read, or is not text.
    """
    try:
        return decode_pieces(_pieces(path, on_read), str(path), encoding)
    except FileNotFoundError:
        raise ContextError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise ContextError(f"{path}: is a folder; name the files in it, such as {path}/*.txt") from None
    except OSError as error:
        raise ContextError(f"{path}: cannot be read: {error.strerror}") from error


def file_name_warning(context: Any) -> str:
    """Return a warning about a context that is only the name of a file, or a list of such names; '' for any other."""
    if isinstance(context, (list, tuple)):
        if not context or not all(map(_is_file, context)):
            return ""
        example = f"pathlib.Path({context[0]!r})"
        return f"the context is {len(context):,} names of files, not their contents: pass [{example}, …] to read them"
    if _is_file(context):
        return (
            f"the context is the text {context!r}, not the content of the file with that name: pass "
            f"pathlib.Path({context!r}) to read it"
        )
    if isinstance(context, str) and _LIKE_A_FILE_NAME.fullmatch(context):
        return (
            f"the context is the text {context!r}, which looks like the name of a file, but {Path.cwd()} has no such "
            "file: pass a pathlib.Path to read one"
        )
    return ""


def _pieces(path: Path, on_read: ReadListener | None) -> Iterator[bytes]:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        done = 0
        while piece := file.read(_PIECE_BYTES):
            yield piece
            done += len(piece)
            if on_read is not None:
                on_read(str(path), done, size)


def _is_file(name: object) -> bool:
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_PATH:
        return False
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # such as a name with NUL
        return False
