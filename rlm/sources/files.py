"""Files → context.

A path becomes the text of its file: only a byte order mark is dropped, and a carriage return stays one. Several
paths become a dict from name to text, a dict of paths one of texts.
"""

from __future__ import annotations

import codecs
from io import IOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlm.errors import ContextError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["decode", "load", "name_of_a_file", "read_files", "read_text"]

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

_LONGEST_PATH = 1_000

_OTHER_FORMATS = (
    (b"%PDF-", "a PDF", "pdftotext"),
    (b"PK\x03\x04", "a zip archive or an office document", "unzip, or pandoc -t plain"),
    (b"\x1f\x8b", "compressed", "gunzip"),
)


def load(context: Any) -> Any:
    """A path, or a list or dict of paths, as the text it stands for; any other context as it is.

    Only `pathlib.Path` objects are paths: a str is always text.

    Raises:
        ContextError: a file is missing, a folder, unreadable or not text; paths are among other things; or the
            context is an open file.
    """
    if isinstance(context, Path):
        return read_text(context)
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
        return {name: read_text(path) for name, path in context.items()}
    return read_files(paths)


def name_of_a_file(context: Any) -> str:
    """What to say of a context that is only the name of a file, or a list of such names; '' of any other."""
    names = context if isinstance(context, (list, tuple)) else [context]
    if not names or not all(map(_names_a_file, names)):
        return ""
    paths = f"pathlib.Path({names[0]!r})"
    if names is context:
        return f"the context is {len(names):,} names of files, and not what is in them: pass [{paths}, …] to read them"
    return f"the context is the text {context!r}, and not what is in the file of that name: pass {paths} to read it"


def read_files(paths: Sequence[Path], encoding: str | None = None) -> str | dict[str, str]:
    """One file as its text; several as a dict from file name (the whole path where names repeat) to text."""
    if len(paths) == 1:
        return read_text(paths[0], encoding)
    names = [path.name for path in paths]
    labels = names if len(set(names)) == len(names) else [str(path) for path in paths]
    return {label: read_text(path, encoding) for label, path in zip(labels, paths, strict=True)}


def read_text(path: Path, encoding: str | None = None) -> str:
    """The text of a file, in UTF-8 or in what its byte order mark says, unless `encoding` names another."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ContextError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise ContextError(f"{path}: is a folder; name the files in it, such as {path}/*.txt") from None
    except OSError as error:
        raise ContextError(f"{path}: cannot be read: {error.strerror}") from error
    return decode(data, str(path), encoding)


def decode(data: bytes, name: str, encoding: str | None = None) -> str:
    """Bytes as text, or a ContextError that names where they came from and where they stop being text."""
    for mark, kind, tool in _OTHER_FORMATS:
        if data.startswith(mark):
            raise ContextError(
                f"{name}: is {kind}, and only plain text can be read: turn it into text with {tool}"
            )
    encoding = encoding or _marked_encoding(data) or "utf-8"
    try:
        text = data.decode(encoding)
    except LookupError:
        raise ContextError(
            f"{name}: there is no encoding {encoding!r}; try utf-8, latin-1 or cp1252"
        ) from None
    except UnicodeDecodeError as error:
        raise ContextError(
            f"{name}: not {encoding} text (byte {error.start:,}); if it is text, name its encoding, such as latin-1 "
            "(rlm ask --encoding latin-1, or path.read_text(encoding='latin-1'))"
        ) from None
    if "\0" in text[:8_192]:
        raise ContextError(f"{name}: looks like a binary file (it holds NUL); turn it into text first")
    return text


def _names_a_file(name: object) -> bool:
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_PATH:
        return False
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # no name that a file could have
        return False


def _marked_encoding(data: bytes) -> str | None:
    return next((name for mark, name in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), None)
