"""Rows in and out of files: CSV, TSV, JSONL and JSON with the standard library, Parquet and Excel by `tables.py`.

A `Source` gives its rows again and again, each time from the start, a few at a time, so that a file of any size
fits. A `Writer` takes rows as they come. A file is written under another name and takes its own when it is whole.
"""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Final, Protocol, TypeAlias

from rlm.errors import InputError, MissingExtra, OutputError

__all__ = [
    "FileSource",
    "ListSource",
    "Row",
    "Source",
    "Writer",
    "as_source",
    "create",
    "format_of",
    "refuse_repeated",
    "require",
]

Row: TypeAlias = dict[str, Any]

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


class Source(Protocol):
    """Rows that can be read more than once."""

    @property
    def name(self) -> str:
        """What errors call it."""

    def rows(self) -> Iterator[Row]:
        """The rows from the start.

        Raises:
            InputError: a row cannot be read; the message says which.
        """


class Writer(Protocol):
    """Takes rows, one after the other."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row."""

    def close(self) -> None:
        """The last row was written."""


@dataclass(frozen=True, slots=True)
class ListSource:
    """Rows in memory."""

    records: Sequence[Row]
    name: str = "the rows"

    def rows(self) -> Iterator[Row]:
        """The rows."""
        return iter(self.records)


@dataclass(frozen=True, slots=True)
class FileSource:
    """Rows of a file, in the format that its name says."""

    path: Path
    encoding: str = "utf-8-sig"

    @property
    def name(self) -> str:
        """The file's name."""
        return str(self.path)

    def stamp(self) -> tuple[int, int, int]:
        """Something that is another when the file has changed.

        Raises:
            InputError: it is not there.
        """
        try:
            status = self.path.stat()
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror or error}") from error
        return status.st_ino, status.st_size, status.st_mtime_ns

    def rows(self) -> Iterator[Row]:
        """The rows from the start.

        Raises:
            InputError: the file cannot be read, or one of its rows.
            MissingExtra: the format needs a package that is not installed.
        """
        kind = format_of(self.path)
        if self.path.exists() and not self.path.is_file():
            raise InputError(f"{self.path} is no file, and rows are read more than once: write them into one")
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
    """Rows of a path, an iterable of mappings, or a data frame of pandas or polars.

    Raises:
        InputError: it is none of these.
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
                raise InputError(f"row {number} is a {type(row).__name__}, and not a mapping of fields")
            for name in row:
                if not isinstance(name, str):
                    raise InputError(f"row {number} has a field named {name!r}: the names of fields are text")
        return ListSource([dict(row) for row in records])
    raise InputError(
        f"rows come from a path, an iterable of mappings or a data frame, not {type(rows).__name__}"
    )


def _or_none(value: Any) -> Any:
    """A value of pandas, in which what is missing may be a NaN, a NaT or an NA."""
    is_missing = type(value).__name__ in {"NaTType", "NAType"} or (
        isinstance(value, float) and math.isnan(value)
    )
    return None if is_missing else value


def format_of(path: Path) -> str:
    """The format that a file's name says.

    Raises:
        InputError: it says none that is known.
    """
    try:
        return FORMATS[path.suffix.lower()]
    except KeyError:
        known = ", ".join(FORMATS)
        raise InputError(f"{path}: its name does not say what it is; names end in {known}") from None


def refuse_repeated(names: Iterable[str], where: str) -> None:
    """Make sure that no two columns have one name.

    Raises:
        InputError: two of them have.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{where} has two columns named {name!r}: rename one of them")
        seen.add(name)


def require(path: Path) -> None:
    """Make sure that files of this name can be read and written here.

    Raises:
        InputError: the name says no format.
        MissingExtra: the format needs a package that is not installed.
    """
    needed = {"parquet": "pyarrow", "excel": "openpyxl"}.get(format_of(path))
    if needed is not None and find_spec(needed) is None:
        raise MissingExtra(f"{path.suffix} files", "tables")


@contextmanager
def create(path: Path, fields: Sequence[str]) -> Iterator[Writer]:
    """A writer for a file, which is there, whole, when the block has ended without an error.

    Raises:
        OutputError: it cannot be written.
        MissingExtra: its format needs a package that is not installed.
    """
    kind = format_of(path)
    path = path.resolve()  # a link goes on to be one
    partial = path.with_name(f".{path.name}.partial")
    try:
        with _alone(partial):
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
def _alone(partial: Path) -> Iterator[None]:
    """Make the file, which not every writer opens before it is closed, and let nobody else write it.

    Raises:
        OutputError: somebody else does.
    """
    partial.touch()
    if sys.platform == "win32":  # where an open file can have no other name
        yield
        return
    import fcntl

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
                raise InputError(f"{path} is empty: it has not even a line of column names")
            refuse_repeated(header, str(path))
            width = len(header)
            for values in lines:
                if len(values) != width:
                    if not values:
                        continue
                    raise InputError(
                        f"{path}, line {lines.line_num}: {len(values)} values for {width} columns; "
                        "a value that holds the delimiter or a line break needs quotes around it"
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
        raise InputError(f"{path} holds no list of objects; one object a line is JSONL: name it so")
    for number, row in enumerate(rows, 1):
        yield _as_row(row, f"{path}, item {number}")


def _as_row(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise InputError(f"{where}: a row is an object of fields, not {type(row).__name__}")
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
    """As JSON that any reader takes: it knows no NaN, and no infinity."""
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
    """A value as CSV has it: nothing for null, JSON for what is no plain value."""
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
