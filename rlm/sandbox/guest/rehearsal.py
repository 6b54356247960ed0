"""Rehearsal: a new worker runs a cell of the supervisor's before it is used for a cell of the user's.

Forking is no proof that a worker can run cells: the cell before may have left anything in the interpreter. So the
worker runs one through the path of every cell: frames both ways, compiling, both output streams, a host call, which the
supervisor answers itself, and the report.
"""

from __future__ import annotations

import os
import time

from . import frames, values
from .worker_process import WorkerLost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .worker_process import WorkerProcess

__all__ = ["rehearse"]

CODE = """\
import sys
word = ask('rehearsal', {})
print(word)
print(word, file=sys.stderr)
None
"""
MAX_OUTPUT = 1 << 20
MAX_REASON = 200


def encoded(value: object) -> bytes:
    """Return the bytes of a value as they cross."""
    return b"".join(values.chunks(values.encode(value)))


CELL = encoded({"cell": 0, "code": CODE, "fresh_answer": False, "rehearsal": True})
CALL = encoded(("rehearsal", {}))
REPORT = encoded(("ok", "", None)) + 2 * encoded(None)  # no answer, no draft


def rehearse(process: WorkerProcess, seconds: float) -> None:
    """Have a worker run the cell above; raises `WorkerLost` if anything is missing or takes too long."""
    deadline = time.monotonic() + seconds
    process.send(frames.frame(frames.RUN, 0, CELL))
    kind, more, number, payload = process.next_frame(deadline - time.monotonic())
    if kind != frames.CALL or more or payload != CALL:
        raise WorkerLost("a rehearsal made no host call")
    word = os.urandom(8).hex()  # of this rehearsal alone, so that old output cannot pass for it
    process.send(frames.frame(frames.REPLY, number, encoded((True, word))))
    kind, more, keeps_state, payload = process.next_frame(deadline - time.monotonic())
    if kind != frames.DONE or more or not keeps_state or payload != REPORT or process.arrived:
        raise WorkerLost(
            f"a rehearsal did not end well: {payload[-MAX_REASON:].decode('utf-8', 'replace')!r}"
        )
    for descriptor in process.streams:
        if word.encode() not in waiting_output(descriptor):
            raise WorkerLost("the output of a rehearsal did not arrive")


def waiting_output(descriptor: int) -> bytes:
    """Read what has arrived on a stream that never blocks."""
    data = b""
    try:
        while len(data) < MAX_OUTPUT and (piece := os.read(descriptor, frames.FRAME_BYTES)):
            data += piece
    except BlockingIOError:
        pass
    return data
