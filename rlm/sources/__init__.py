"""Files as contexts."""

from __future__ import annotations

from rlm.sources.files import decode, load, name_of_a_file, read_files, read_text

__all__ = ["decode", "load", "name_of_a_file", "read_files", "read_text"]
