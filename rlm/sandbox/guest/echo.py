"""What a cell shows: its streams, the echo of a trailing expression, previews of values."""

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
    "preview",
    "show",
    "shows_its_value",
    "sized",
    "streams_of_process",
]


PREVIEW_CHARS = 200
ECHO_CHARS = 200_000


class NoInput(io.TextIOBase):
    """The stdin of a cell: nobody is there."""

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]  # noqa: ARG002
        """Refuse, with what to do instead."""
        raise EOFError("a cell cannot read input: nobody is there to type; the data is in `context`")

    def read(self, size: int | None = -1, /) -> str:  # noqa: ARG002
        """Nothing, as at the end of a file."""
        return ""

    def readable(self) -> bool:
        """It can be asked."""
        return True


class Shown(str):  # noqa: SLOT000 - there is one at a time
    """A text that a trailing expression shows as it is, without quotes."""

    def __repr__(self) -> str:
        return str.__str__(self)


def streams_of_process() -> tuple[io.TextIOBase, io.TextIOBase]:
    """New text files on descriptors 1 and 2."""
    one, two = (text_stream(io.FileIO(descriptor, "w", closefd=False)) for descriptor in (1, 2))
    return one, two


def text_stream(raw: io.RawIOBase) -> io.TextIOWrapper:
    """A text file, sent on at each line; a lone surrogate is shown by its number."""
    return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace", line_buffering=True)


def flush(stream: Any) -> None:
    """Push out what is waiting, where that can be done."""
    with contextlib.suppress(Exception):  # a cell may have closed it, or put anything in its place
        stream.flush()


def show(value: Any) -> None:
    """Echo the value of a trailing expression, as the REPL does; of a very long text, its head and tail."""
    if value is None:
        return
    text = preview_long(value) if type(value) in (str, bytes) and len(value) > ECHO_CHARS else repr(value)
    print(text)  # noqa: T201 - the cell's own output
    sys.modules["__main__"].__dict__["_"] = value


def preview_long(value: Any) -> str:
    """The head and tail of a long text, and its length, without ever making a copy of the whole."""
    half = ECHO_CHARS // 4
    return f"{value[:half]!r}\n… ({len(value):,} in all) …\n{value[-half:]!r}"


def shows_its_value(last: ast.Expr, code: str) -> bool:
    """Whether a trailing expression is echoed: not where a `;` follows it."""
    lines = code.encode("utf-8", "surrogatepass").splitlines()
    if last.end_lineno is None or last.end_col_offset is None:
        return True
    rest = lines[last.end_lineno - 1][last.end_col_offset :] if last.end_lineno <= len(lines) else b""
    return not rest.lstrip(b" \t)").startswith(b";")


def describe(name: str, value: Any, *, plain: bool) -> tuple[str, str, int | None, str]:
    """A variable's name, type, length and preview; `plain` calls no code of the value's own class."""
    kind = type(value)
    length = len(value) if kind in SIZED else None
    if length is None and not plain:
        try:
            measured = len(value)
            length = measured if type(measured) is int else None
        except Exception:  # noqa: BLE001 - a cell's class may do anything in __len__
            length = None
    return (
        name[:PREVIEW_CHARS],
        str(type.__getattribute__(kind, "__name__"))[:PREVIEW_CHARS],
        length,
        preview(value, plain=plain),
    )


SIZED = frozenset({str, bytes, bytearray, list, tuple, dict, set, frozenset})


def preview(value: Any, *, plain: bool) -> str:
    """The head of a value's repr, made without building the whole; `plain` calls no code of its own class."""
    import reprlib

    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = PREVIEW_CHARS
    try:
        if type(value) in (str, bytes, bytearray):
            text = repr(value[:PREVIEW_CHARS])
        elif plain and type(value) not in (int, float, bool, complex, type(None)):
            text = object.__repr__(value)
        else:
            text = short.repr(value)
        return str.__str__(text)[:PREVIEW_CHARS]
    except Exception as error:  # noqa: BLE001 - a cell's class may do anything in __repr__
        return f"<its repr raised {type(error).__name__}>"


def sized(length: int | None) -> str:
    """A length for a table."""
    return "" if length is None else f" of {length:,}"
