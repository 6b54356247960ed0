"""Formats that are not plain text, recognised by the first bytes of a file, and what to do with each."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["HEAD_BYTES", "Format", "format_of"]

HEAD_BYTES = 8_192
"""Size of the head by which a format is recognised, in bytes."""


@dataclass(frozen=True, slots=True)
class Format:
    """A file format: its name with an article, and the way to get text from it."""

    name: str
    remedy: str


_IMAGE = "describe it in text, or read it with OCR: tesseract FILE out"
_OFFICE = "pandoc -t plain FILE, or save it as text"
_SHEET = "save it as CSV; rlm map reads its rows"

# Patterns are matched at the start. A mark of letters alone may begin a text: it needs a NUL or another binary byte.
_FORMATS: tuple[tuple[bytes, Format], ...] = (
    (rb"%PDF-", Format("a PDF", "pdftotext FILE")),
    (rb"\x89PNG\r\n\x1a\n", Format("a PNG image", _IMAGE)),
    (rb"\xff\xd8\xff", Format("a JPEG image", _IMAGE)),
    (rb"GIF8[79]a.*\0", Format("a GIF image", _IMAGE)),
    (rb"RIFF.{4}WEBP", Format("a WebP image", _IMAGE)),
    (rb"(II\*\0|MM\0\*)", Format("a TIFF image", _IMAGE)),
    (rb"SQLite format 3\0", Format("an SQLite database", "sqlite3 -csv FILE 'select * from TABLE'")),
    (rb"PAR1[\x00-\x08\x0e-\x1f]", Format("a Parquet file", _SHEET)),
    (rb"PK\x03\x04.*word/", Format("a Word document", _OFFICE)),
    (rb"PK\x03\x04.*xl/", Format("an Excel workbook", _SHEET)),
    (rb"PK\x03\x04.*ppt/", Format("a PowerPoint presentation", "save it as text")),
    (rb"PK\x03\x04.*mimetypeapplication/epub", Format("an EPUB book", _OFFICE)),
    (rb"PK\x03\x04.*mimetypeapplication/vnd\.oasis", Format("an OpenDocument file", _OFFICE)),
    (rb"PK(\x03\x04|\x05\x06)", Format("a zip archive or an office document", "unzip FILE, or pandoc -t plain FILE")),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Format("an old Office document (.doc, .xls, .ppt)", "save it as text or CSV")),
    (rb"\x1f\x8b", Format("compressed with gzip", "gunzip FILE")),
    (rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)", Format("compressed with bzip2", "bunzip2 FILE")),
    (rb"\xfd7zXZ\0", Format("compressed with xz", "unxz FILE")),
    (rb"\x28\xb5\x2f\xfd", Format("compressed with zstd", "unzstd FILE")),
    (rb"7z\xbc\xaf\x27\x1c", Format("a 7z archive", "7z x FILE")),
    (rb".{257}ustar(\0|  \0)", Format("a tar archive", "tar xf FILE")),
    (rb"\x7fELF", Format("an ELF program or library", "strings FILE")),
    (rb"(ID3[\x02-\x04]\0|RIFF.{4}WAVE|OggS\0|fLaC\0)", Format("a sound file", "transcribe it")),
    (rb"\0.{3}ftyp[a-zA-Z0-9 ]{4}", Format("a video or image file (MP4, HEIC)", "transcribe or describe it")),
)  # fmt: skip


def format_of(head: bytes) -> Format | None:
    """Return the format that a file with this head has, or None for text and what is unknown."""
    for pattern, found in _FORMATS:
        if re.match(pattern, head, re.DOTALL):
            return found
    return None
