"""The worker's end of the socket pair to its supervisor, shared by the threads of a cell."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading

from . import frames, shelf, values
from . import sketch as sketches
from .failures import LLMError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, NoReturn, TypeAlias

    Arguments: TypeAlias = dict[str, Any]

__all__ = ["Channel"]


_read = os.read
_write = os.write
_getpid = os.getpid
_poll = select.poll
_mask = signal.pthread_sigmask
TIMERS = (signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF)
SHELVED_BYTES = 1 << 16
SHELVED_TYPES = (str, bytes, bytearray, list, tuple, dict, set, frozenset)


class _Waiter:
    """One thread that waits for the reply of one call."""

    __slots__ = ("cell", "leads", "reply", "signal")

    def __init__(self, cell: object | None) -> None:
        self.cell = cell
        self.reply: Any = None
        self.leads = False
        self.signal = threading.Lock()
        self.signal.acquire()


class Channel:
    """One process's end of the wire.

    Among the threads that wait, one reads for all; when it has its own reply it wakes the next one to go on
    reading. After `close_to_cells` only the harness may speak or read, and in a forked child nobody: a thread that a
    cell left waiting for a reply waits for ever, so that it does not eat what is meant for the harness.

    Of contexts that are large, `shelf_bytes` may be on the shelf at once; without a shelf they go with their call.
    """

    def __init__(self, incoming: int, outgoing: int, shelf_bytes: int = 0) -> None:
        self.incoming = incoming
        self.outgoing = outgoing
        self._owner = _getpid()
        self._frames = frames.Frames()
        self._arrived: list[frames.Frame] = []
        self._under_way: tuple[int, int] | None = None
        self._payload = bytearray()
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._calls = threading.Lock()
        self._waiting: dict[int, _Waiter] = {}
        self._has_reader = False
        self._number = 0
        self._cell: object | None = None
        self._shelf_bytes = shelf_bytes
        self._on_shelf: dict[int, int] = {}

    def open_to_cells(self) -> None:
        """A cell runs: its threads may call."""
        self._on_shelf = {}
        self._cell = object()

    def close_to_cells(self) -> None:
        """The cell has ended: what it left running may neither call nor read any more."""
        with self._writing, self._reading, self._calls:
            self._cell = None
            self._waiting = {}
            self._has_reader = False

    def call(self, name: str, arguments: Arguments, children: Iterable[Arguments] = ()) -> Any:
        """Ask the host and wait for its reply; only this thread waits.

        Args:
            name: of the call.
            arguments: what goes with it.
            children: the dicts among them whose `context` is a child run's; a large one goes onto the shelf.

        Raises:
            LLMError: the host said no, or nobody may call now, or there is no room for a context.
            TypeError: an argument cannot cross.
        """
        if _getpid() != self._owner:
            raise LLMError("a forked child of a cell cannot call: use threads, or call from the cell itself")
        waiter = _Waiter(self._cell)
        with self._calls:
            self._number += 1
            number = self._number
            self._waiting[number] = waiter
        try:
            try:
                self._shelve(number, name, children, waiter.cell)
                self._send_call(number, _encoded_call(name, arguments), waiter.cell)
            except BaseException:
                self._unshelve(number, waiter.cell)
                raise
            ok, *rest = self._wait(waiter)
        finally:
            self._leave(number, waiter)
        if ok:
            return rest[0]
        raise LLMError(rest[1])

    def _send_call(self, number: int, parts: values.Parts, cell: object | None) -> None:
        with self._writing:
            self._require(cell)
            self._put(frames.CALL, number, parts)

    def _require(self, cell: object | None) -> None:
        if cell is None or self._cell is not cell:
            raise LLMError("the cell has ended: what it left running cannot call")

    def _shelve(self, number: int, name: str, children: Iterable[Arguments], cell: object | None) -> None:
        """Put the large contexts of a call onto the shelf, each once; their number and a sketch take their place."""
        shelved: dict[int, tuple[int, Any]] = {}  # by identity: all of them are there while this goes on
        for child in children if self._shelf_bytes else ():
            context = child["context"]
            if id(context) not in shelved:
                parts = _large(context)
                if parts is None:
                    continue
                self._put_piece(number, name, parts, cell)
                shelved[id(context)] = len(shelved), sketches.sketch(context, values.plain)
            index, drawn = shelved[id(context)]
            del child["context"]
            child["shelved"] = index, drawn.plain()

    def _put_piece(self, number: int, name: str, parts: values.Parts, cell: object | None) -> None:
        with self._writing, timers_wait():
            self._require(cell)
            self._take_room(number, name, shelf.piece_bytes(self._shelf_bytes))
            begun = False
            try:
                for data in frames.message_frames(frames.SHELVE, number, parts):
                    self._take_room(number, name, len(data) - frames.HEADER.size)
                    self._write(data)
                    begun = True
            except BaseException:
                if begun:
                    self._put(frames.SHELVE, number, [])  # the end of it: what follows must be understood
                raise

    def _take_room(self, number: int, name: str, count: int) -> None:
        with self._calls:
            if sum(self._on_shelf.values()) + count > self._shelf_bytes:
                raise LLMError(
                    f"{name}: the contexts of the child runs under way would take more than {self._shelf_bytes:,} "
                    "bytes: pass smaller pieces, or fewer at once"
                )
            self._on_shelf[number] = self._on_shelf.get(number, 0) + count

    def _unshelve(self, number: int, cell: object | None) -> None:
        """The call was not made, so nobody will give its pieces back."""
        with self._calls:
            there = self._on_shelf.pop(number, 0)
        if there:
            with self._writing:
                if self._cell is cell:
                    self._put(frames.UNSHELVE, number, [])

    def send(self, kind: int, number: int = 0, parts: values.Parts | None = None) -> None:
        """Send one message whole."""
        with self._writing:
            self._put(kind, number, [] if parts is None else parts)

    def _put(self, kind: int, number: int, parts: values.Parts) -> None:
        with timers_wait():
            for data in frames.message_frames(kind, number, parts):
                self._write(data)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[_write(self.outgoing, view) :]

    def take_in(self, data: bytes) -> None:
        """Take bytes that were read off the channel; none are its end."""
        if not data:
            os._exit(0)  # whoever started this process is gone
        self._arrived += self._frames.feed(data)

    def message(self) -> tuple[int, int, bytes] | None:
        """The next message of what was taken in, if it is whole; one that another cuts short was given up."""
        while self._arrived:
            kind, more, number, piece = self._arrived.pop(0)
            if self._under_way != (kind, number):
                self._payload = bytearray()
            self._payload += piece
            self._under_way = (kind, number) if more else None
            if not more:
                payload, self._payload = bytes(self._payload), bytearray()
                return kind, number, payload
        return None

    def _receive_in_cell(self, cell: object | None) -> tuple[int, int, bytes]:
        """The next message, for the reader among a cell's threads; it never returns once that cell has ended."""
        while True:
            with self._reading, timers_wait():
                if self._cell is not cell:
                    break
                message = self.message()
                if message is not None:
                    return message
                if _is_ready(self.incoming, 0):
                    self.take_in(_read(self.incoming, frames.FRAME_BYTES))
                    continue
            _is_ready(self.incoming, None)  # waits, and takes nothing: meanwhile the cell may end
        return wait_for_ever()

    def _wait(self, waiter: _Waiter) -> Any:
        with self._calls:
            if not self._has_reader:
                self._has_reader = waiter.leads = True
        if not waiter.leads:
            waiter.signal.acquire()
        while waiter.reply is None:
            self._read_one(waiter.cell)
        return waiter.reply

    def _read_one(self, cell: object | None) -> None:
        """As the reader, hand one reply to whoever waits for it."""
        kind, number, payload = self._receive_in_cell(cell)
        if kind != frames.REPLY:
            return
        reply = values.decode(payload)
        with self._calls:
            self._on_shelf.pop(number, None)
            target = self._waiting.pop(number, None)
            if target is not None:
                target.reply = reply
                if not target.leads:  # the reader is this very thread, and waits for nobody
                    target.signal.release()

    def _leave(self, number: int, waiter: _Waiter) -> None:
        """This thread has its reply, or gave up; where it was the reader, the next one becomes it."""
        with self._calls:
            self._waiting.pop(number, None)
            if not waiter.leads:
                return
            heir = next(iter(self._waiting.values()), None)
            if heir is None:
                self._has_reader = False
            else:
                heir.leads = True
                heir.signal.release()


@contextlib.contextmanager
def timers_wait() -> Iterator[None]:
    """Meanwhile no timer goes off in this thread: its handler may raise, and half a message would end the cell."""
    before = _mask(signal.SIG_BLOCK, ())
    try:
        _mask(signal.SIG_BLOCK, TIMERS)
        yield
    finally:
        _mask(signal.SIG_SETMASK, before)


def wait_for_ever() -> NoReturn:
    """Park a thread whose cell has ended; it goes with its process."""
    lock = threading.Lock()
    while True:
        lock.acquire()


def _is_ready(descriptor: int, milliseconds: int | None) -> bool:
    """Whether there is something to read, waited for so long."""
    poller = _poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(milliseconds))


def _encoded_call(name: str, arguments: Arguments) -> values.Parts:
    try:
        return values.encode((name, arguments))
    except values.Uncrossable as problem:
        where = problem.path.removeprefix("[1]")
        raise TypeError(f"{name}: {where}: {problem.reason}") from None


def _large(context: Any) -> values.Parts | None:
    """The encoded form of a context that is worth a place on the shelf; else None, and it goes with the call."""
    if not isinstance(context, SHELVED_TYPES):
        return None
    try:
        parts = values.encode(context)
    except values.Uncrossable:
        return None  # the call says so, and where
    return parts if values.size_of(parts) >= SHELVED_BYTES else None
