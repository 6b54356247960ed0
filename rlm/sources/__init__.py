"""Files as contexts."""

from __future__ import annotations

from rlm.sources.files import ReadListener, file_name_warning, load, read_files, read_text
from rlm.sources.text import decode

__all__ = ["ReadListener", "decode", "file_name_warning", "load", "read_files", "read_text"]
