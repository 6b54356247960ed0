"""Import in a thread, before it is needed, what is slow to import.

`os.fork` waits until such an import is done: a child forked in the middle of it would wait for the import lock forever.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["load"]

_loading = threading.RLock()


def load(importing: Callable[[], object]) -> None:
    """Call a function that imports; run this in a thread. A second thread waits for the first."""
    with _loading:
        importing()


os.register_at_fork(
    before=_loading.acquire, after_in_parent=_loading.release, after_in_child=_loading.release
)
