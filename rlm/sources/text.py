"""Bytes → text: UTF-8, what a byte order mark says, or a named encoding; anything else is one clear error.

Large data is decoded in pieces, so that other threads run in between and a caller can show progress.
"""

from __future__ import annotations

import codecs
from contextlib import suppress
from typing import TYPE_CHECKING

from rlm.errors import ContextError
from rlm.sources.binary_formats import HEAD_BYTES, format_of

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["decode", "decode_pieces"]

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16: its mark starts with the same two bytes
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_SAMPLE_BYTES = 1 << 20
_IS_ABOVE_ASCII = bytes(128) + b"\x01" * 128
_NOT_IN_CP1252 = b"\x81\x8d\x8f\x90\x9d"
_MOST_ACCENTS = 0.4
"""Share of bytes above ASCII up to which a text may be in a language with accents; others use two bytes a character."""


def decode(data: bytes, name: str, encoding: str | None = None) -> str:
    """Return bytes as text; `name` says in the error where they come from. See `decode_pieces`."""
    return decode_pieces([data], name, encoding)


def decode_pieces(pieces: Iterable[bytes], name: str, encoding: str | None = None) -> str:
    """Return the text of consecutive pieces of bytes; the first one holds the head of the file.

    Only a byte order mark is dropped. A carriage return stays one.

    Raises:
        ContextError: it is not text in this encoding; the message names the format or the byte, and what to do.
    """
    texts: list[str] = []
    decoder: codecs.IncrementalDecoder | None = None
    end = 0
    try:
        for piece in pieces:
            end += len(piece)
            if decoder is None:
                head = piece[:HEAD_BYTES]
                _refuse_other_formats(head, name)
                encoding = _encoding_of(head, encoding, name)
                decoder = codecs.getincrementaldecoder(encoding)()
                texts.append(decoder.decode(piece))
                _refuse_binary(texts[0], name)
            else:
                texts.append(decoder.decode(piece))
        if decoder is not None:
            texts.append(decoder.decode(b"", final=True))
    except UnicodeDecodeError as error:
        position = end - len(error.object) + error.start
        raise ContextError(
            f"{name}: not {encoding} text (byte {position:,}); {_other_encoding(error)}"
        ) from None
    return "".join(texts)


def _encoding_of(head: bytes, named: str | None, name: str) -> str:
    """Return the encoding that was named, else that of the byte order mark, else UTF-8."""
    marked = next((encoding for mark, encoding in _BYTE_ORDER_MARKS.items() if head.startswith(mark)), None)
    if named is None:
        if marked is None:
            _refuse_unmarked_utf_16(head, name)
        return marked or "utf-8"
    try:
        codec = codecs.lookup(named).name
        with suppress(UnicodeError):
            b"ab".decode(
                named
            )  # a LookupError for codecs of bytes, such as base64; Python does not look at b""
    except LookupError:
        raise ContextError(f"{name}: there is no encoding {named!r}; try utf-8, cp1252 or latin-1") from None
    if codec in {"utf-16", "utf-32"} and marked is None:
        return f"{codec}-le"  # the incremental decoder insists on a byte order mark
    return named


def _refuse_other_formats(head: bytes, name: str) -> None:
    found = format_of(head)
    if found is not None:
        raise ContextError(
            f"{name}: is {found.name}, and only plain text can be read; turn it into text first: {found.remedy}"
        )


def _refuse_binary(text: str, name: str) -> None:
    if "\0" in text[:HEAD_BYTES]:
        raise ContextError(f"{name}: looks like a binary file (it holds NUL bytes); turn it into text first")


def _refuse_unmarked_utf_16(head: bytes, name: str) -> None:
    """Refuse data in which most of every second byte, and no other byte, is NUL."""
    for encoding, high_bytes in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
        if head.count(0) == high_bytes.count(0) > len(high_bytes) / 2:
            raise ContextError(f"{name}: looks like UTF-16 without a byte order mark; {_name_it(encoding)}")


def _other_encoding(error: UnicodeDecodeError) -> str:
    """Suggest the encoding that the bytes around an error may have."""
    sample = error.object[max(0, error.start - _SAMPLE_BYTES) : error.start + _SAMPLE_BYTES]
    if b"\0" in sample:
        return "it looks like a binary file; turn it into text first"
    above_ascii = sum(sample.translate(_IS_ABOVE_ASCII))
    if above_ascii <= _MOST_ACCENTS * len(sample) and not any(byte in sample for byte in _NOT_IN_CP1252):
        return f"it may be cp1252; {_name_it('cp1252')}"
    return "if it is text, name its encoding, such as shift_jis, gb18030 or cp1251"


def _name_it(encoding: str) -> str:
    return f"name the encoding: rlm ask --encoding {encoding}, or path.read_text(encoding={encoding!r})"
