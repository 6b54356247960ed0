"""Split of a file into parts that are each small enough; asks no model."""

from __future__ import annotations

import re
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rlm.bulk.estimate import RequestCounter
from rlm.bulk.io.formats import as_source, create
from rlm.bulk.job import Job
from rlm.checks import or_else, whole_number
from rlm.errors import InputError, OutputError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from rlm.bulk.io.rows import Row
    from rlm.structured.schema import SchemaSource

__all__ = ["split_rows"]


def split_rows(
    source: str | Path,
    *,
    folder: str | Path | None = None,
    max_rows: int | None = None,
    max_tokens: int | None = None,
    prompt: str = "",
    schema: SchemaSource | None = None,
    model: str = "gpt-5-nano",
    encoding: str = "utf-8-sig",
    count_tokens: Callable[[str], int] | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Cut a file into parts that together are the file, `NAME.part001.csv` and so on; return their paths.

    Args:
        source: the file.
        folder: folder for the parts, made if it does not exist; by default that of the file.
        max_rows: the most rows of a part.
        max_tokens: the most tokens of a part, where each row is a request of its own.
        prompt: the template that the rows will be asked with.
        schema: schema of the answers.
        model: the model whose tokens are counted.
        encoding: of text files.
        count_tokens: tokenizer of your own: returns the number of tokens of a text.
        overwrite: replace all parts of an earlier split of a file with this name.

    Raises:
        SettingsError: neither limit is given, or one is below 1.
        InputError: the file cannot be read, or a single row is larger than a part may be.
        OutputError: a part exists or cannot be written. The parts appear only when all of them are complete.
    """
    if max_rows is None and max_tokens is None:
        raise SettingsError("the size of a part is not given: give max_rows or max_tokens")
    for name, value in (("max_rows", max_rows), ("max_tokens", max_tokens)):
        or_else(None, whole_number)(name, value)
    path = Path(source)
    place = path.parent if folder is None else Path(folder)
    counter = RequestCounter(Job(prompt=prompt, schema=schema, models=(model,)), count_tokens)
    earlier = _parts_of(path, place)
    if earlier and not overwrite:
        raise OutputError(
            f"{earlier[0]} exists: remove it, name another folder, or overwrite the earlier parts (--overwrite)"
        )
    rows = as_source(path, encoding=encoding).rows()
    first = next(rows, None)
    if first is None:
        raise InputError(f"{path} has no rows")
    try:
        place.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{path.stem}-", dir=place) as scratch:
            parts = _Parts(path, Path(scratch), max_rows=max_rows, max_tokens=max_tokens)
            with parts:
                for number, row in enumerate(chain([first], rows), 1):
                    size = counter.of_call([counter.template.content(row)]) if max_tokens else 0
                    parts.add(row, size, number)
            made = [part.replace(place / part.name) for part in parts.paths]
        for part in earlier:
            if part not in made:
                part.unlink()
    except OSError as error:
        raise OutputError(
            f"parts of {path} cannot be written to {place}: {error.strerror or error}"
        ) from error
    return made


def _parts_of(path: Path, folder: Path) -> list[Path]:
    """Return the parts of a file with this name in a folder, in order."""
    is_part = re.compile(rf"{re.escape(path.stem)}\.part\d{{3,}}{re.escape(path.suffix)}").fullmatch
    try:
        return sorted(found for found in folder.iterdir() if is_part(found.name))
    except OSError:  # there is no such folder yet
        return []


class _Parts:
    """Writer of the parts of a file, one open at a time; a context manager."""

    def __init__(self, path: Path, folder: Path, *, max_rows: int | None, max_tokens: int | None) -> None:
        self.paths: list[Path] = []
        self._path = path
        self._folder = folder
        self._max_rows = max_rows
        self._max_tokens = max_tokens
        self._files = ExitStack()
        self._write: Callable[[Row], None] | None = None
        self._rows = 0
        self._tokens = 0

    def add(self, row: Row, size: int, number: int) -> None:
        if self._max_tokens is not None and size > self._max_tokens:
            raise InputError(
                f"row {number:,} of {self._path} alone has {size:,} tokens, more than the {self._max_tokens:,} of a part"
            )
        if self._write is None or self._is_full(size):
            self._write = self._next_part(list(row))
        self._rows += 1
        self._tokens += size
        self._write(row)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, traceback)

    def _is_full(self, size: int) -> bool:
        too_many = self._max_rows is not None and self._rows >= self._max_rows
        return too_many or (self._max_tokens is not None and self._tokens + size > self._max_tokens)

    def _next_part(self, fields: Sequence[str]) -> Callable[[Row], None]:
        self._files.close()
        self._rows = self._tokens = 0
        path = self._folder / f"{self._path.stem}.part{len(self.paths) + 1:03}{self._path.suffix}"
        writer = self._files.enter_context(create(path, fields))
        self.paths.append(path)
        return writer.write
