"""How large a job is before it is started, and files cut into parts that are each small enough; asks no model.

Tokens are those of the requests as they are sent: the prompt around a row, the schema in it and beside it, and what
the chat format adds to each message. `count_rows` counts the packed calls that a job would make; `split_rows` counts
each row as a request of its own, which is the most it can take.
"""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from dataclasses import dataclass
from heapq import heapify, heappushpop
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, Literal

from rlm.bulk.checkpoint import key_of
from rlm.bulk.io.formats import Row, as_source, create
from rlm.bulk.templates import Template, read_template
from rlm.errors import InputError, OutputError, SettingsError
from rlm.metering import tokens
from rlm.metering.prices import Price
from rlm.metering.prices import price as price_of
from rlm.structured.map import MapSettings, PlainModels, pack_call
from rlm.structured.packs import CHARS_PER_TOKEN, Task, content_chars
from rlm.structured.schema import Schema, SchemaSource, schema_of
from rlm.values import Call, Usage
from rlm.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

__all__ = ["Count", "count_rows", "request_tokens", "split_rows"]

TOKENS_AROUND_A_MESSAGE: Final = 4
TOKENS_BEFORE_A_REPLY: Final = 3
LONGEST_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How large a job is.

    Attributes:
        rows: rows of the input.
        distinct: those that are asked: equal ones are asked once.
        tokens: of all rows, each by itself.
        longest: number (from 1) and tokens of the longest rows, the longest first.
        calls: calls that the job would make, without those that ask again.
        input_tokens: of all calls.
        output_tokens: an estimate, by the schema.
        cost_usd: dollars by model, None where a price is not known; those of the Batch API are half.
        exact: whether tokens were counted with the model's own vocabulary, and not estimated.
    """

    rows: int
    distinct: int
    tokens: int
    longest: tuple[tuple[int, int], ...]
    calls: int
    input_tokens: int
    output_tokens: int
    cost_usd: Mapping[str, float | None]
    exact: bool

    def __str__(self) -> str:
        equal = f"{self.distinct:,} distinct, " if self.distinct < self.rows else ""
        longest = ", ".join(f"row {number:,} with {size:,}" for number, size in self.longest)
        lines = [
            (
                f"{counted(self.rows, 'row')}, {equal}{counted(self.tokens, 'token')}, "
                f"{self.tokens / self.rows:,.1f} each; longest: {longest}"
            ),
            (
                f"{counted(self.calls, 'call')}: {counted(self.input_tokens, 'token')} in, "
                f"about {self.output_tokens:,} out"
            ),
        ]
        for model, cost in self.cost_usd.items():
            price = (
                "price not known"
                if cost is None
                else f"about ${cost:,.4f}, ${cost / 2:,.4f} by the Batch API"
            )
            lines.append(f"{model}: {price}")
        if not self.exact:
            lines.append(
                "Tokens are estimated; those of OpenAI's models are exact with pip install 'rlm-cells[tokens]'."
            )
        return "\n".join(lines)


def count_rows(
    rows: Any,
    prompt: str = "",
    *,
    schema: SchemaSource | None = None,
    models: Sequence[str] = ("gpt-5-nano",),
    rows_per_call: int | Literal["auto"] = "auto",
    window_chars: int = 400_000,
    limit: int | None = None,
    prices: Mapping[str, Price] | None = None,
    encoding: str = "utf-8-sig",
    count_tokens: Callable[[str], int] | None = None,
) -> Count:
    """Count rows, tokens, calls and dollars of a job.

    Args:
        rows: as for `map_rows`.
        prompt: the template; without one, the whole row is counted.
        schema: of the answers.
        models: whose prices are told; tokens are counted for the first.
        rows_per_call: as for `map_rows`.
        window_chars: as for `map_rows`.
        limit: only the first rows.
        prices: of models that the price list does not have.
        encoding: of text files.
        count_tokens: counts a text by a tokenizer of your own, instead of the model's.

    Raises:
        InputError: rows and prompt do not fit together, or there are no rows.
    """
    template, read = _template(prompt), None if schema is None else schema_of(schema)
    counter = _Requests(template, read, models[0], count_tokens)
    task = Task(template.instruction, read, single=template.render)
    settings = MapSettings(model=models[0], per_call=rows_per_call, window_chars=window_chars)
    room = settings.room(task)
    longest: list[tuple[int, int]] = [(0, 0)] * LONGEST_SHOWN
    heapify(longest)
    number = calls = total = input_tokens = 0
    pack: list[dict[str, Any]] = []
    keys: set[int] = set()
    for number, row in enumerate(_rows(rows, limit, encoding), 1):
        content = template.content(row)
        size = counter.content_tokens(content)
        total += size
        heappushpop(longest, (size, -number))
        if (key := key_of(content)) in keys:
            continue
        keys.add(key)
        if not room.takes(content_chars(content)):
            input_tokens += counter.of_pack(task, pack, settings)
            calls += 1
            pack = []
            room.empty()
        room.add(content_chars(content))
        pack.append(content)
    if not number:
        raise InputError("there are no rows to count")
    input_tokens += counter.of_pack(task, pack, settings)
    output_tokens = int(len(keys) * task.answer_chars / CHARS_PER_TOKEN)
    usage = Usage(calls=calls + 1, input_tokens=input_tokens, output_tokens=output_tokens)
    return Count(
        rows=number,
        distinct=len(keys),
        tokens=total,
        longest=tuple((-place, size) for size, place in sorted(longest, reverse=True) if size),
        calls=calls + 1,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cost_usd={model: price_of(model, usage, overrides=prices or {}) for model in models},
        exact=count_tokens is not None or tokens.is_exact(models[0]),
    )


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
    """Cut a file into parts that together are the file, `NAME.part001.csv` and so on; gives their paths.

    Args:
        source: the file.
        folder: where the parts go; by default beside the file. It is made where there is none.
        max_rows: the most rows of a part.
        max_tokens: the most tokens of a part, where each row is a request of its own.
        prompt: the template that the rows will be asked with.
        schema: of the answers.
        model: whose tokens are counted.
        encoding: of text files.
        count_tokens: counts a text by a tokenizer of your own, instead of the model's.
        overwrite: replace all parts of an earlier split of a file of this name.

    Raises:
        SettingsError: neither limit is given, or one is below 1.
        InputError: the file cannot be read, or a single row is larger than a part may be.
        OutputError: a part exists or cannot be written. The parts appear when all of them are whole.
    """
    if max_rows is None and max_tokens is None:
        raise SettingsError("nothing says how large a part may be: give max_rows or max_tokens")
    for name, value in (("max_rows", max_rows), ("max_tokens", max_tokens)):
        if value is not None and value < 1:
            raise SettingsError(f"{name}={value!r}: must be at least 1")
    path = Path(source)
    place = path.parent if folder is None else Path(folder)
    template, read = _template(prompt), None if schema is None else schema_of(schema)
    counter = _Requests(template, read, model, count_tokens)
    earlier = _parts_of(path, place)
    if earlier and not overwrite:
        raise OutputError(
            f"{earlier[0]} exists: remove it, name another folder, or overwrite the earlier parts (--overwrite)"
        )
    rows = _rows(path, None, encoding)
    first = next(rows, None)
    if first is None:
        raise InputError(f"{path} has no rows")
    try:
        place.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{path.stem}-", dir=place) as scratch:
            parts = _Parts(path, Path(scratch), max_rows=max_rows, max_tokens=max_tokens)
            with parts:
                for number, row in enumerate(chain([first], rows), 1):
                    parts.add(row, counter.of_single(template.content(row)) if max_tokens else 0, number)
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
    """The parts of a file of this name that a folder has, in order."""
    is_part = re.compile(rf"{re.escape(path.stem)}\.part\d{{3,}}{re.escape(path.suffix)}").fullmatch
    try:
        return sorted(found for found in folder.iterdir() if is_part(found.name))
    except OSError:  # there is no such folder yet
        return []


def request_tokens(call: Call, count: Callable[[str], int]) -> int:
    """Tokens of a request as the provider counts them: its messages, what is around them, and its schema."""
    messages = sum(count(message.content) + TOKENS_AROUND_A_MESSAGE for message in call.messages)
    schema = count(json.dumps(call.schema)) if call.schema else 0
    return messages + schema + TOKENS_BEFORE_A_REPLY


class _Requests:
    """Counts the tokens of requests about rows, with what is the same in all of them counted once."""

    def __init__(
        self,
        template: Template,
        schema: Schema | None,
        model: str,
        count_tokens: Callable[[str], int] | None,
    ) -> None:
        self._count = count_tokens or tokens.encoder_for(model).count
        self._settings = MapSettings(model=model)
        self._task = Task(template.instruction, schema, single=template.render)

    def content_tokens(self, content: Mapping[str, Any]) -> int:
        return self._count(json.dumps(content, ensure_ascii=False, default=str))

    def of_single(self, content: Mapping[str, Any]) -> int:
        return self.of_pack(self._task, [content], self._settings)

    def of_pack(self, task: Task, pack: Sequence[Mapping[str, Any]], settings: MapSettings) -> int:
        return request_tokens(pack_call(task, pack, settings, PlainModels()), self._count)


class _Parts:
    """The files of a split, one open at a time."""

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
                f"row {number:,} of {self._path} alone has {size:,} tokens, and a part may have {self._max_tokens:,}"
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


def _template(prompt: str) -> Template:
    return read_template(prompt) if prompt else Template("", ())


def _rows(rows: Any, limit: int | None, encoding: str) -> Iterator[Row]:
    for number, row in enumerate(as_source(rows, encoding=encoding).rows()):
        if limit is not None and number >= limit:
            return
        yield row
