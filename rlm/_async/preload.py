"""Loading ahead of need, in a thread, what is slow to import.

A fork waits until it is done: a child that is forked in the middle of an import would wait for its lock for ever.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["load"]

_loading = threading.RLock()


def load(what: Callable[[], object]) -> None:
    """Call something that imports; run in a thread. A second thread waits for the first."""
    with _loading:
        what()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_loading.acquire, after_in_parent=_loading.release, after_in_child=_loading.release
    )
