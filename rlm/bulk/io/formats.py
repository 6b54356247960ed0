"""Rows from and to files: CSV, TSV, JSONL and JSON with the standard library, Parquet and Excel by `tables.py`.

A new format is a name in `FORMATS`, a check in `require`, and a reader and a writer, here or in `tables.py`.

A `Source` can be read several times, each time from the start, a few rows at a time, so that a file of any size
fits into memory. A file is written under a temporary name and renamed when it is complete.
"""

from __future__ import annotations

import csv
import fcntl
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Final

from rlm.bulk.io.rows import Row, Source, Writer, refuse_repeated
from rlm.errors import InputError, MissingExtra, OutputError

__all__ = [
    "FileSource",
    "ListSource",
    "as_source",
    "create",
    "format_of",
    "require",
]

LARGEST_FIELD: Final = 1 << 28
FORMATS: Final = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".xlsx": "excel",
}


@dataclass(frozen=True, slots=True)
class ListSource:
    """Source of rows in memory."""

    records: Sequence[Row]
    name: str = "the rows"

    def rows(self) -> Iterator[Row]:
        """Return an iterator over the rows."""
        return iter(self.records)


@dataclass(frozen=True, slots=True)
class FileSource:
    """Source of the rows of a file, whose name determines the format."""

    path: Path
    encoding: str = "utf-8-sig"

    @property
    def name(self) -> str:
        """Return the path of the file."""
        return str(self.path)

    def stamp(self) -> tuple[int, int, int]:
        """Return inode, size in bytes and modification time in ns: they differ if the file has changed.

        Raises:
            InputError: the file cannot be read.
        """
        try:
            status = self.path.stat()
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror or error}") from error
        return status.st_ino, status.st_size, status.st_mtime_ns

    def rows(self) -> Iterator[Row]:
        """Yield the rows from the start.

        Raises:
            InputError: the file or one of its rows cannot be read.
            MissingExtra: the format needs a package that is not installed.
        """
        kind = format_of(self.path)
        if self.path.exists() and not self.path.is_file():
            raise InputError(
                f"{self.path} is not a regular file, and rows are read more than once: save them as a file"
            )
        try:
            match kind:
                case "csv" | "tsv":
                    yield from _csv_rows(self.path, self.encoding, "," if kind == "csv" else "\t")
                case "jsonl":
                    yield from _jsonl_rows(self.path, self.encoding)
                case "json":
                    yield from _json_rows(self.path, self.encoding)
                case _:
                    from rlm.bulk.io import tables

                    yield from tables.READERS[kind](self.path)
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.path} is not {self.encoding.removesuffix('-sig').upper()}: {error.reason} near byte "
                f"{error.start:,}; name its encoding, such as latin-1 or cp1252"
            ) from error
        except (LookupError, UnicodeError) as error:
            raise InputError(
                f"{self.path} cannot be read with the encoding {self.encoding!r}: {error}"
            ) from error


def as_source(rows: Any, *, encoding: str = "utf-8-sig") -> Source:
    """Return a source of the rows of a path, an iterable of mappings, or a data frame of pandas or polars.

    Raises:
        InputError: `rows` is none of these.
    """
    if isinstance(rows, (FileSource, ListSource)):
        return rows
    if isinstance(rows, (str, os.PathLike)):
        path = Path(rows)
        format_of(path)
        return FileSource(path, encoding)
    if hasattr(rows, "to_dicts"):  # polars
        return ListSource(rows.to_dicts(), "the data frame")
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):  # pandas
        refuse_repeated([str(name) for name in rows.columns], "the data frame")
        records = rows.to_dict("records")
        return ListSource(
            [{str(name): _or_none(value) for name, value in row.items()} for row in records], "the data frame"
        )
    if isinstance(rows, Iterable):
        records = list(rows)
        for number, row in enumerate(records, 1):
            if not isinstance(row, Mapping):
                raise InputError(
                    f"row {number} is a {type(row).__name__}, and must be a mapping of field names to values"
                )
            for name in row:
                if not isinstance(name, str):
                    raise InputError(f"row {number} has a field named {name!r}: field names must be str")
        return ListSource([dict(row) for row in records])
    raise InputError(
        f"rows come from a path, an iterable of mappings or a data frame, not {type(rows).__name__}"
    )


def _or_none(value: Any) -> Any:
    """Return a value of pandas, or None for its missing values NaN, NaT and NA."""
    is_missing = type(value).__name__ in {"NaTType", "NAType"} or (
        isinstance(value, float) and math.isnan(value)
    )
    return None if is_missing else value


def format_of(path: Path) -> str:
    """Return the format of a file by its name.

    Raises:
        InputError: the extension is unknown.
    """
    try:
        return FORMATS[path.suffix.lower()]
    except KeyError:
        known = ", ".join(FORMATS)
        raise InputError(f"{path}: its format is not known from its name; names end in {known}") from None


def require(path: Path) -> None:
    """Raise an error unless files of this name can be read and written here.

    Raises:
        InputError: the extension is unknown.
        MissingExtra: the format needs a package that is not installed.
    """
    needed = {"parquet": "pyarrow", "excel": "openpyxl"}.get(format_of(path))
    if needed is not None and find_spec(needed) is None:
        raise MissingExtra(f"{path.suffix} files", "tables")


@contextmanager
def create(path: Path, fields: Sequence[str]) -> Iterator[Writer]:
    """Open a writer for a file, which replaces `path` when the block ends without an error.

    Raises:
        OutputError: the file cannot be written.
        MissingExtra: its format needs a package that is not installed.
    """
    kind = format_of(path)
    path = path.resolve()  # so that a symbolic link is kept and its target replaced
    partial = path.with_name(f".{path.name}.partial")
    try:
        with _exclusive(partial):
            try:
                writer = _WRITERS[kind](partial, fields)
                try:
                    yield writer
                finally:
                    writer.close()
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


@contextmanager
def _exclusive(partial: Path) -> Iterator[None]:
    """Create the file and lock it against other jobs; not every writer opens it before it is closed.

    Raises:
        OutputError: another job holds the lock.
    """
    partial.touch()
    with partial.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"another job is writing {partial}: wait for it, or name another output"
            ) from error
        yield


# Reading -------------------------------------------------------------------------------------------------------


def _csv_rows(path: Path, encoding: str, delimiter: str) -> Iterator[Row]:
    if csv.field_size_limit() < LARGEST_FIELD:
        csv.field_size_limit(LARGEST_FIELD)
    with path.open(encoding=encoding, newline="") as file:
        lines = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(lines, None)
            if not header:
                raise InputError(f"{path} is empty: its first line must be the column names")
            refuse_repeated(header, str(path))
            width = len(header)
            for values in lines:
                if len(values) != width:
                    if not values:
                        continue
                    raise InputError(
                        f"{path}, line {lines.line_num}: {len(values)} values for {width} columns; "
                        "put quotes around a value with a delimiter or a line break"
                    )
                yield dict(zip(header, values, strict=True))
        except csv.Error as error:
            raise InputError(f"{path}, line {lines.line_num}: broken CSV: {error}") from error


def _jsonl_rows(path: Path, encoding: str) -> Iterator[Row]:
    with path.open(encoding=encoding) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {number}: broken JSON: {error}") from error
            yield _as_row(row, f"{path}, line {number}")


def _json_rows(path: Path, encoding: str) -> Iterator[Row]:
    text = path.read_text(encoding=encoding)
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: broken JSON: {error}") from error
    if not isinstance(rows, list):
        raise InputError(f"{path} is not a list of objects; if it has one object per line, name it .jsonl")
    for number, row in enumerate(rows, 1):
        yield _as_row(row, f"{path}, item {number}")


def _as_row(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise InputError(f"{where}: a row must be a JSON object, not {type(row).__name__}")
    return row


# Writing -------------------------------------------------------------------------------------------------------


class _CsvWriter:
    def __init__(self, path: Path, fields: Sequence[str], delimiter: str = ",") -> None:
        self._fields = fields
        self._file: IO[str] = path.open("w", encoding="utf-8", newline="", errors="backslashreplace")
        self._lines = csv.writer(self._file, delimiter=delimiter, lineterminator="\n")
        self._lines.writerow(fields)

    def write(self, row: Mapping[str, Any]) -> None:
        self._lines.writerow([_cell(row.get(name)) for name in self._fields])

    def close(self) -> None:
        self._file.close()


class _JsonlWriter:
    def __init__(self, path: Path, _fields: Sequence[str]) -> None:
        self._file: IO[str] = path.open("w", encoding="utf-8", errors="backslashreplace")

    def write(self, row: Mapping[str, Any]) -> None:
        self._file.write(_json(row) + "\n")

    def close(self) -> None:
        self._file.close()


class _JsonWriter(_JsonlWriter):
    def __init__(self, path: Path, fields: Sequence[str]) -> None:
        super().__init__(path, fields)
        self._before = "[\n"

    def write(self, row: Mapping[str, Any]) -> None:
        self._file.write(self._before + _json(row))
        self._before = ",\n"

    def close(self) -> None:
        self._file.write("\n]\n" if self._before == ",\n" else "[]\n")
        super().close()


def _json(value: Any) -> str:
    """Return a value as JSON that every parser accepts: NaN and infinity become null."""
    try:
        return json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        return json.dumps(_without_nan(value), ensure_ascii=False, default=str)


def _without_nan(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {name: _without_nan(item) for name, item in value.items()}
        case list() | tuple():
            return [_without_nan(item) for item in value]
        case _:
            return value


def _cell(value: Any) -> Any:
    """Return a value for a CSV cell: empty for None, JSON for booleans, lists and objects."""
    match value:
        case None | str() | int() | float() if not isinstance(value, bool):
            return value
        case _:
            return json.dumps(value, ensure_ascii=False, default=str)


def _table_writer(kind: str) -> Callable[[Path, Sequence[str]], Writer]:
    def make(path: Path, fields: Sequence[str]) -> Writer:
        from rlm.bulk.io import tables

        return tables.WRITERS[kind](path, fields)

    return make


_WRITERS: Final[dict[str, Callable[[Path, Sequence[str]], Writer]]] = {
    "csv": _CsvWriter,
    "tsv": lambda path, fields: _CsvWriter(path, fields, "\t"),
    "jsonl": _JsonlWriter,
    "json": _JsonWriter,
    "parquet": _table_writer("parquet"),
    "excel": _table_writer("excel"),
}
