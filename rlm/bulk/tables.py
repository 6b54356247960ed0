"""Parquet and Excel, by the extra `[tables]`: the only room that knows pyarrow and openpyxl."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from rlm.errors import InputError, MissingExtra, OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from rlm.bulk.formats import Row, Writer

__all__ = ["READERS", "WRITERS"]

ROWS_AT_ONCE: Final = 2_000
MOST_EXCEL_ROWS: Final = 1_048_576


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra("Parquet", "tables") from error
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise InputError(f"{path} has two columns of one name: rename one of them")
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise InputError(f"{path} is no Parquet file that can be read: {error}") from error


def _excel_rows(path: Path) -> Iterator[Row]:
    try:
        import openpyxl
    except ImportError as error:
        raise MissingExtra("Excel", "tables") from error
    from zipfile import BadZipFile

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (BadZipFile, KeyError, ValueError) as error:
        raise InputError(f"{path} is no Excel file that can be read: {error}") from error
    try:
        lines = book.active.iter_rows(values_only=True)
        header = [str(name) if name is not None else "" for name in next(lines, ())]
        while header and not header[-1]:
            header.pop()
        if not header:
            raise InputError(f"{path} is empty: its first sheet has no line of column names")
        for index, name in enumerate(header):
            if name in header[:index]:
                raise InputError(f"{path} has two columns named {name!r}: rename one of them")
        for values in lines:
            if any(value is not None for value in values):
                yield dict(zip(header, [*values, *[None] * len(header)], strict=False))
    finally:
        book.close()


class _ParquetWriter:
    """Collects rows and writes them in groups; the first group decides the types of the columns."""

    def __init__(self, path: Path, fields: Sequence[str]) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise MissingExtra("Parquet", "tables") from error
        self._pa, self._pq = pa, pq
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
        columns = {name: [row.get(name) for row in self._waiting] for name in self._fields}
        if self._writer is None:
            self._schema = self._pa.schema([(name, self._type_of(columns[name])) for name in self._fields])
            self._writer = self._pq.ParquetWriter(self._path, self._schema)
        arrays = [self._array(columns[field.name], field) for field in self._schema]
        self._writer.write_table(self._pa.Table.from_arrays(arrays, schema=self._schema))
        self._waiting = []

    def _type_of(self, values: list[Any]) -> Any:
        try:
            kind = self._pa.array(values).type
        except (self._pa.ArrowException, TypeError, ValueError, OverflowError):
            return self._pa.string()
        return self._pa.string() if kind == self._pa.null() else kind

    def _array(self, values: list[Any], field: Any) -> Any:
        if field.type == self._pa.string():
            return self._pa.array([_text(value) for value in values], self._pa.string())
        try:
            return self._pa.array(values, field.type)
        except (self._pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise OutputError(
                f"the column {field.name!r} began as {field.type}, and a later row does not fit: {error}; "
                "write JSONL instead"
            ) from error


class _ExcelWriter:
    """Writes one sheet, row by row."""

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
            raise OutputError(f"an Excel sheet takes {MOST_EXCEL_ROWS:,} rows: write CSV or Parquet instead")
        self._count += 1
        self._sheet.append([self._cell(row.get(name)) for name in self._fields])

    def close(self) -> None:
        self._book.save(self._path)

    def _cell(self, value: Any) -> Any:
        if isinstance(value, (list, dict)):
            value = _text(value)
        if not isinstance(value, str):
            return value
        cell = self._cell_class(self._sheet, self._illegal.sub("", value))
        cell.data_type = (
            "s"  # text that begins with "=" is a row's or a model's, and must not become a formula
        )
        return cell


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


READERS: Final[dict[str, Callable[[Path], Iterator[Row]]]] = {"parquet": _parquet_rows, "excel": _excel_rows}
WRITERS: Final[dict[str, Callable[[Path, Sequence[str]], Writer]]] = {
    "parquet": _ParquetWriter,
    "excel": _ExcelWriter,
}
