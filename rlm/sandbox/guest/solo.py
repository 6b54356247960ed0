"""The guest where a process cannot fork: one process that does everything, and dies with the cell that kills it.

It speaks the same protocol with the host. What it cannot do is go back: a cell that has to be killed takes the
variables with it, and the host starts another guest. Descriptors 1 and 2 are the log; what `print` writes goes
over the channel.
"""

from __future__ import annotations

import io
import os
import sys
import time

from . import calls, hardening, wire, worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = ["serve"]

NOBODY_LOOKS = "one process does everything: nobody is there to count"


def serve(incoming: int, outgoing: int, settings: dict[str, Any]) -> NoReturn:
    """Do what the host asks until it goes away."""
    if sys.platform != "win32":
        os.set_blocking(outgoing, True)
        incoming, outgoing = hardening.raise_descriptor(incoming), hardening.raise_descriptor(outgoing)
    channel = calls.Channel(incoming, outgoing)
    facts = settings.pop("facts")
    facts["missing"] |= {"process limit": NOBODY_LOOKS, "scratch quota": NOBODY_LOOKS}
    channel.send(wire.READY, 0, wire.encode(facts))
    guest = Solo(channel, settings)
    while True:
        kind, _, payload = channel.receive()
        if kind == wire.LOAD:
            guest.load(wire.decode(payload))
        elif kind == wire.RESET:
            guest.load(guest.context())
        elif kind == wire.RUN:
            guest.run(wire.decode(payload))
        elif kind == wire.ASK:
            channel.send(wire.TOLD, 0, guest.repl.tell(wire.decode(payload)))


class Solo:
    """The namespace and what it needs of the host."""

    def __init__(self, channel: calls.Channel, settings: dict[str, Any]) -> None:
        self._channel = channel
        self._settings = settings
        self._loaded: Any = None
        sys.displayhook = worker.show
        worker.forgive_refused_modes()
        self.repl = worker.Repl(channel.call, self._streams, None, settings)

    def context(self) -> Any:
        """A fresh copy of what was loaded."""
        return worker.copy_shape(self._loaded)

    def load(self, context: Any) -> None:
        """Begin anew with this context."""
        self._loaded = context
        self.repl = worker.Repl(self._channel.call, self._streams, self.context(), self._settings)
        self._channel.send(wire.LOADED, 0, wire.encode(None))

    def run(self, cell: dict[str, Any]) -> None:
        """Run one cell and say how it ended."""
        began = time.monotonic()
        self._channel.open_to_cells()
        try:
            with hardening.limited():
                outcome = self.repl.execute(cell)
            report = self.repl.report(outcome)
        finally:
            self._channel.close_to_cells()
        seconds = time.monotonic() - began
        verdict = {"outcome": "", "error": "", "state": "kept", "wall": seconds, "compute": seconds}
        if report.keeps_state:
            self._channel.send(wire.DONE, 0, report.parts)
        else:
            verdict |= {"outcome": "memory", "error": "MemoryError: the cell used more memory than it may"}
        self._channel.send(wire.ENDED, 0, wire.encode(verdict))

    def _streams(self) -> tuple[io.TextIOBase, io.TextIOBase]:
        return worker.text_stream(Printed(self._channel, 1)), worker.text_stream(Printed(self._channel, 2))


class Printed(io.RawIOBase):
    """A file whose text goes to the host."""

    def __init__(self, channel: calls.Channel, number: int) -> None:
        self._channel = channel
        self._number = number

    def writable(self) -> bool:
        """It takes text and gives none."""
        return True

    def write(self, data: Any, /) -> int:
        """Send what was printed."""
        piece = bytes(data)
        self._channel.print(self._number, piece)
        return len(piece)
