"""Parquet and Excel, with the extra `[tables]`: the only module that imports pyarrow and openpyxl."""

from __future__ import annotations

import json
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from rlm.bulk.io.rows import refuse_repeated
from rlm.errors import InputError, MissingExtra, OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from rlm.bulk.io.rows import Row, Writer

__all__ = ["READERS", "WRITERS"]

ROWS_AT_ONCE: Final = 2_000
MOST_EXCEL_ROWS: Final = 1_048_576
MOST_EXCEL_CHARS: Final = 32_767


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra("Parquet", "tables") from error
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            refuse_repeated(names, str(path))
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} has values that no Python type can hold: {error}") from error


def _excel_rows(path: Path) -> Iterator[Row]:
    try:
        import openpyxl
    except ImportError as error:
        raise MissingExtra("Excel", "tables") from error
    from zipfile import BadZipFile

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (BadZipFile, KeyError, ValueError, AttributeError, TypeError) as error:  # what openpyxl may raise
        raise InputError(f"{path} cannot be read as Excel: {error}") from error
    try:
        if not hasattr(book.active, "iter_rows"):
            raise InputError(
                f"{path}: the active sheet is a chart without rows: make a sheet with rows the active one"
            )
        lines = book.active.iter_rows(values_only=True)
        header = [str(name) if name is not None else "" for name in next(lines, ())]
        while header and not header[-1]:
            header.pop()
        if not header:
            raise InputError(f"{path} is empty: the first line of its active sheet must be the column names")
        refuse_repeated(header, str(path))
        width = len(header)
        for number, values in enumerate(lines, 2):
            if any(value is not None for value in values[width:]):
                raise InputError(f"{path}, line {number}: a value in column {width + 1}, which has no name")
            if any(value is not None for value in values):
                yield dict(zip(header, [*values, *[None] * width], strict=False))
    finally:
        book.close()


class _ParquetWriter:
    """Writer of Parquet files in groups of rows; the first group determines the types of the columns.

    If a later value does not fit its column without loss, the file is rewritten with a wider type: float for whole
    numbers, a struct with more fields, and text otherwise.
    """

    def __init__(self, path: Path, fields: Sequence[str]) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise MissingExtra("Parquet", "tables") from error
        self._pa, self._pq = pa, pq
        self._unfit = (pa.ArrowException, TypeError, ValueError, OverflowError)
        self._path = path
        self._fields = list(fields)
        self._schema: Any = None
        self._writer: Any = None
        self._waiting: list[Mapping[str, Any]] = []

    def write(self, row: Mapping[str, Any]) -> None:
        self._waiting.append(row)
        if len(self._waiting) >= ROWS_AT_ONCE:
            self._write_group()

    def close(self) -> None:
        self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        rows, self._waiting = self._waiting, []
        columns = [[row.get(name) for row in rows] for name in self._fields]
        if self._writer is None:
            self._begin([self._kind_for(self._pa.null(), values) for values in columns])
        kinds = [
            self._kind_for(kind, values) for kind, values in zip(self._schema.types, columns, strict=True)
        ]
        if kinds != self._schema.types:
            self._rewrite(kinds)
        self._add(columns)

    def _begin(self, kinds: Sequence[Any]) -> None:
        self._schema = self._pa.schema(list(zip(self._fields, kinds, strict=True)))
        self._writer = self._pq.ParquetWriter(self._path, self._schema)

    def _rewrite(self, kinds: Sequence[Any]) -> None:
        """Rewrite the file with other types; columns whose written values do not fit become text."""
        self._writer.close()
        as_text = [
            kind if kind == before else self._pa.string()
            for kind, before in zip(kinds, self._schema.types, strict=True)
        ]
        narrow = self._path.with_name(f"{self._path.name}.narrow")
        self._path.replace(narrow)
        try:
            try:
                self._copy(narrow, kinds)
            except self._unfit:
                self._writer.close()
                self._copy(narrow, as_text)
        finally:
            narrow.unlink()

    def _copy(self, source: Path, kinds: Sequence[Any]) -> None:
        self._begin(kinds)
        with self._pq.ParquetFile(source) as file:
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
                self._add([column.to_pylist() for column in batch.columns])

    def _add(self, columns: Sequence[list[Any]]) -> None:
        arrays = [self._array(values, kind) for values, kind in zip(columns, self._schema.types, strict=True)]
        self._writer.write_table(self._pa.Table.from_arrays(arrays, schema=self._schema))

    def _array(self, values: list[Any], kind: Any) -> Any:
        if kind == self._pa.string():
            return self._pa.array([_text(value) for value in values], kind)
        return self._pa.array(values, kind)

    def _kind_for(self, before: Any, values: list[Any]) -> Any:
        """Return the type that holds the earlier values of a column and these."""
        nothing, text = self._pa.null(), self._pa.string()
        found = self._type_of(values)
        if before == text or found == nothing:
            return text if before == nothing else before
        if before in {nothing, found}:
            return found
        kind = self._wider(before, found)
        try:
            self._array(values, kind)
        except self._unfit:
            return text
        return kind

    def _type_of(self, values: list[Any]) -> Any:
        try:
            kind = self._pa.array(values).type
        except self._unfit:
            return self._pa.string()
        if self._pa.types.is_date(kind) and any(isinstance(value, datetime) for value in values):
            return self._pa.string()  # pyarrow would cut off their time
        return kind

    def _wider(self, one: Any, other: Any) -> Any:
        """Return a type that holds the values of both without loss, or text if there is none."""
        types, schema = self._pa.types, self._pa.schema
        exact = [types.is_decimal(one), types.is_decimal(other)]
        if any(exact) and not all(exact) and (types.is_floating(one) or types.is_floating(other)):
            return self._pa.string()
        try:
            both = [schema([("", one)]), schema([("", other)])]
            return self._pa.unify_schemas(both, promote_options="permissive").field(0).type
        except self._pa.ArrowException:
            return self._pa.string()


class _ExcelWriter:
    """Writer of one Excel sheet, row by row."""

    def __init__(self, path: Path, fields: Sequence[str]) -> None:
        try:
            import openpyxl
        except ImportError as error:
            raise MissingExtra("Excel", "tables") from error
        from openpyxl.cell import WriteOnlyCell
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

        self._cell_class = WriteOnlyCell
        self._illegal = ILLEGAL_CHARACTERS_RE
        self._path = path
        self._fields = fields
        self._book = openpyxl.Workbook(write_only=True)
        self._sheet = self._book.create_sheet("rows")
        self._sheet.append(list(fields))
        self._count = 1

    def write(self, row: Mapping[str, Any]) -> None:
        if self._count >= MOST_EXCEL_ROWS:
            raise OutputError(
                f"an Excel sheet has at most {MOST_EXCEL_ROWS:,} rows: write CSV or Parquet instead"
            )
        self._count += 1
        self._sheet.append([self._cell(row.get(name)) for name in self._fields])

    def close(self) -> None:
        self._book.save(self._path)

    def _cell(self, value: Any) -> Any:
        if isinstance(value, (datetime, time)) and value.tzinfo is not None:
            value = value.isoformat()  # Excel has no time zones
        if not isinstance(value, (str, *_EXCEL_VALUES)):
            value = _text(value)
        if not isinstance(value, str):
            return value
        if len(value) > MOST_EXCEL_CHARS:
            raise OutputError(
                f"row {self._count - 1:,}: a text of {len(value):,} characters, and an Excel cell has at most "
                f"{MOST_EXCEL_CHARS:,}: write CSV, JSONL or Parquet instead"
            )
        cell = self._cell_class(self._sheet, self._illegal.sub("", value))
        cell.data_type = "s"  # text of a row or a model that begins with "=" must not become a formula
        return cell


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


_EXCEL_VALUES: Final = (bool, int, float, Decimal, date, time, timedelta, type(None))
READERS: Final[dict[str, Callable[[Path], Iterator[Row]]]] = {"parquet": _parquet_rows, "excel": _excel_rows}
WRITERS: Final[dict[str, Callable[[Path, Sequence[str]], Writer]]] = {
    "parquet": _ParquetWriter,
    "excel": _ExcelWriter,
}
