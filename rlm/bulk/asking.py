"""Ways to ask packs of rows: many calls at once, or as an `AskPacks` of the caller, such as a Batch API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from rlm.errors import InputError
from rlm.structured.map import map_packs
from rlm.wording import counted

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable

    from rlm.bulk.checkpoint import Checkpoint
    from rlm.bulk.job import PerCall
    from rlm.events import Emit
    from rlm.scheduler.scheduler import Tree
    from rlm.structured.leftovers import Item
    from rlm.structured.map import MapSettings, Sink
    from rlm.structured.packs import Task

__all__ = ["AskPacks", "TreeFactory", "ask_at_once"]


class TreeFactory(Protocol):
    """Function that makes the scheduler's tree for a job."""

    def __call__(self, *, emit: Emit) -> Tree:
        """Return a tree that emits its events to `emit`."""


class AskPacks(Protocol):
    """Function that asks packs of rows for one stage of a job."""

    def __call__(
        self,
        tree: Tree,
        packs: AsyncGenerator[list[Item], None],
        task: Task,
        sink: Sink,
        settings: MapSettings,
        *,
        checkpoint: Checkpoint,
        stage: int,
    ) -> Awaitable[PerCall | None]:
        """Ask all packs as `map_packs` does; return the size of packs for another pass, or None for no other pass.

        The next pass asks about the keys that it releases in `checkpoint`. The opinions of a job run concurrently, each
        by a call of this function.
        """


async def ask_at_once(
    tree: Tree,
    packs: AsyncGenerator[list[Item], None],
    task: Task,
    sink: Sink,
    settings: MapSettings,
    *,
    checkpoint: Checkpoint,
    stage: int,
) -> None:
    """Ask packs as concurrent calls; no other pass is needed.

    Raises:
        InputError: batches of an earlier session are not collected; their rows would be paid for twice.
    """
    if number := sum(1 for _ in checkpoint.batches(stage)):
        raise InputError(
            f"{counted(number, 'batch')} of an earlier session {'is' if number == 1 else 'are'} not collected, and would "
            "be paid for twice: resume with the Batch API (--batch-api)"
        )
    await map_packs(tree, packs, task, sink, settings)
