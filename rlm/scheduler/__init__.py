"""One place through which every call of a run tree goes; one file per concern."""

from __future__ import annotations

from rlm.scheduler.budget import Budget
from rlm.scheduler.ledger import Ledger
from rlm.scheduler.scheduler import Scheduler, Tree

__all__ = ["Budget", "Ledger", "Scheduler", "Tree"]
