"""Rows, and the interfaces of what reads and writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from rlm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["Row", "Source", "Writer", "refuse_repeated"]

Row: TypeAlias = dict[str, Any]


class Source(Protocol):
    """Rows that can be read several times."""

    @property
    def name(self) -> str:
        """Return the name of the source in error messages."""

    def rows(self) -> Iterator[Row]:
        """Return an iterator over the rows from the start.

        Raises:
            InputError: a row cannot be read; the message says which.
        """


class Writer(Protocol):
    """Writer of rows to a file."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row."""

    def close(self) -> None:
        """Write what is buffered and close the file."""


def refuse_repeated(names: Iterable[str], where: str) -> None:
    """Raise an error if two columns have the same name.

    Raises:
        InputError: two columns have the same name.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{where} has two columns named {name!r}: rename one of them")
        seen.add(name)
