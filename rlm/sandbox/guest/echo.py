"""Output of a cell inside the guest: its streams, the echo of a trailing expression, previews of variables."""

from __future__ import annotations

import contextlib
import io
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _ast as ast
    from typing import Any

__all__ = [
    "NoInput",
    "Shown",
    "describe",
    "flush",
    "is_echoed",
    "of_length",
    "preview",
    "show",
    "streams_of_process",
]


PREVIEW_CHARS = 200
ECHO_CHARS = 200_000


class NoInput(io.TextIOBase):
    """The stdin of a cell, which is always at its end."""

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]  # noqa: ARG002
        """Raise `EOFError` with what to do instead: `input()` reads lines."""
        raise EOFError("a cell cannot read input: no one is there to type; the data is in `context`")

    def read(self, size: int | None = -1, /) -> str:  # noqa: ARG002
        """Return no text, as at the end of a file."""
        return ""

    def readable(self) -> bool:
        """Return True."""
        return True


class Shown(str):  # noqa: SLOT000 - there is one at a time
    """A text that is echoed without quotes."""

    def __repr__(self) -> str:
        return str.__str__(self)


def streams_of_process() -> tuple[io.TextIOBase, io.TextIOBase]:
    """Return new text files on descriptors 1 and 2: a cell may have closed or replaced the old ones."""
    stdout, stderr = (
        io.TextIOWrapper(
            io.BufferedWriter(io.FileIO(descriptor, "w", closefd=False)),
            "utf-8",
            "backslashreplace",  # a lone surrogate has no UTF-8
            line_buffering=True,
        )
        for descriptor in (1, 2)
    )
    return stdout, stderr


def flush(stream: Any) -> None:
    """Write the buffered output, if the stream still can."""
    with contextlib.suppress(Exception):  # a cell may have closed it, or put anything in its place
        stream.flush()


def show(value: Any) -> None:
    """Print the value of a trailing expression, as the REPL does; of a very long text, its head and tail."""
    if value is None:
        return
    text = _head_and_tail(value) if type(value) in (str, bytes) and len(value) > ECHO_CHARS else repr(value)
    print(text)  # noqa: T201 - the cell's own output
    sys.modules["__main__"].__dict__["_"] = value


def _head_and_tail(value: Any) -> str:
    """Return both ends of a long text and its length; `repr` of all of it would copy it."""
    half = ECHO_CHARS // 4
    return f"{value[:half]!r}\n… ({len(value):,} in all) …\n{value[-half:]!r}"


def is_echoed(last: ast.Expr, code: str) -> bool:
    """Return False if a `;` follows the trailing expression."""
    lines = code.encode("utf-8", "surrogatepass").splitlines()
    if last.end_lineno is None or last.end_col_offset is None:
        return True
    rest = lines[last.end_lineno - 1][last.end_col_offset :] if last.end_lineno <= len(lines) else b""
    return not rest.lstrip(b" \t)").startswith(b";")


def describe(name: str, value: Any, *, safe: bool) -> tuple[str, str, int | None, str]:
    """Return name, type, length and preview of a variable; with `safe`, call no code of the value's own class."""
    kind = type(value)
    length = len(value) if kind in SIZED else None
    if length is None and not safe:
        try:
            measured = len(value)
            length = measured if type(measured) is int else None
        except Exception:  # noqa: BLE001 - a cell's class may do anything in __len__
            length = None
    return (
        name[:PREVIEW_CHARS],
        str(type.__getattribute__(kind, "__name__"))[:PREVIEW_CHARS],
        length,
        preview(value, safe=safe),
    )


SIZED = frozenset({str, bytes, bytearray, list, tuple, dict, set, frozenset})


def preview(value: Any, *, safe: bool) -> str:
    """Return the head of a value's `repr` without building all of it; with `safe`, call no code of its own class."""
    import reprlib

    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = PREVIEW_CHARS
    try:
        if type(value) in (str, bytes, bytearray):
            text = repr(value[:PREVIEW_CHARS])
        elif safe and type(value) not in (int, float, bool, complex, type(None)):
            text = object.__repr__(value)
        else:
            text = short.repr(value)
        return str.__str__(text)[:PREVIEW_CHARS]
    except Exception as error:  # noqa: BLE001 - a cell's class may do anything in __repr__
        return f"<its repr raised {type(error).__name__}>"


def of_length(length: int | None) -> str:
    """Return the words for a length in a listing."""
    return "" if length is None else f" of {length:,}"
