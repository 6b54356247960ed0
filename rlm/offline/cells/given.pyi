# The names that a cell finds when it runs, for type checkers: there is no such module at run time.

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

# The guest's own.
context: Any
FINAL: Callable[[object], None]
llm_query: Callable[[str], str]
llm_batch: Callable[[Iterable[str]], list[str]]

# Assigned by the client at the top of the first cell that needs them.
QUESTION: str
TERMS: dict[str, str]
KINDS: list[str]
WANTED: str
UNIT: str
CAVEAT: str

# Left behind by an earlier cell.
texts: dict[str, str]
pieces: list[tuple[str, int, int]]
frequency: Counter[str]
weight: dict[str, float]
missing: list[str]
chosen: list[int]
replies: list[str]
