"""Task groups: their errors without the group, and a fixed number of workers over many items."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

__all__ = ["first_error", "for_each", "ungrouped"]

T = TypeVar("T")


async def for_each(
    items: Iterable[T], function: Callable[[T], Awaitable[object]], *, max_concurrent: int
) -> None:
    """Await `function(item)` for each item, at most `max_concurrent` at once.

    Workers pull from the items, so memory does not grow with their number. No item is pulled after an error, which ends the
    others and is raised as itself.
    """
    pending = iter(items)

    async def work() -> None:
        for item in pending:
            await function(item)

    with ungrouped():
        async with anyio.create_task_group() as workers:
            for _ in range(max_concurrent):
                workers.start_soon(work)


@contextmanager
def ungrouped() -> Iterator[None]:
    """Raise the first error of an exception group as itself, with its own cause: many tasks fail as one does."""
    try:
        yield
    except BaseExceptionGroup as errors:
        error = first_error(errors)
        raise error from error.__cause__


def first_error(error: BaseException) -> BaseException:
    """Return the first error in an exception group that is no cancellation; any other exception as it is."""
    if isinstance(error, BaseExceptionGroup):
        # On trio, the cancellations of the other tasks are in the group, too.
        _, others = error.split(anyio.get_cancelled_exc_class())
        error = others or error
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
