"""The worker's end of the socket pair to the supervisor, and the host calls that the threads of a cell make on it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading

from . import decoding, frames, shared_memory, values
from . import sketch as sketches
from .failures import LLMError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, NoReturn, TypeAlias

    Arguments: TypeAlias = dict[str, Any]

__all__ = ["Channel"]


# Bound at import: a cell may replace the functions of these modules, and calls must go on working.
_read = os.read
_write = os.write
_getpid = os.getpid
_poll = select.poll
_mask = signal.pthread_sigmask

TIMERS = (signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF)
SHARED_BYTES = 1 << 16
SHARED_TYPES = (str, bytes, bytearray, list, tuple, dict, set, frozenset)


class _Waiter:
    """One thread that waits for the reply of one call."""

    __slots__ = ("cell", "is_reader", "reply", "signal")

    def __init__(self, cell: object | None) -> None:
        self.cell = cell
        self.reply: Any = None
        self.is_reader = False
        self.signal = threading.Lock()
        self.signal.acquire()


class Channel:
    """The socket to the supervisor, on which many threads of a cell may call at once.

    One of the waiting threads reads for all. When it has its own reply, it wakes another one to be the reader.
    After `close_to_cells` only the worker's own code may write or read. A thread that a cell left waiting for a reply
    then waits for ever: reading on, it would take messages that are for the worker. A forked child of a cell may not
    call at all, since two processes would mix their frames on one socket.

    Args:
        descriptor: the socket.
        shared_bytes: bytes of large contexts that may be in shared memory at once; 0 sends each with its call.
    """

    def __init__(self, descriptor: int, shared_bytes: int = 0) -> None:
        self.descriptor = descriptor
        self._owner = _getpid()
        self._frames = frames.FrameReader()
        self._arrived: list[frames.Frame] = []
        self._unfinished: tuple[int, int] | None = None
        self._payload = bytearray()
        # A thread takes them in this order: _writing or _reading first, _calls last.
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._calls = threading.Lock()
        self._waiting: dict[int, _Waiter] = {}
        self._has_reader = False
        self._number = 0
        self._cell: object | None = None
        self._shared_limit = shared_bytes
        self._shared: dict[int, int] = {}

    def open_to_cells(self) -> None:
        """Allow host calls from the threads of the cell that is about to run."""
        self._shared = {}
        self._cell = object()

    def close_to_cells(self) -> None:
        """Stop the calls of a cell that has ended, also those of threads that it left running."""
        with self._writing, self._reading, self._calls:
            self._cell = None
            self._waiting = {}
            self._has_reader = False

    def call(self, name: str, arguments: Arguments, children: Iterable[Arguments] = ()) -> Any:
        """Send a host call and return the value of its reply; only this thread waits.

        Args:
            name: of the function.
            arguments: of the function, by name.
            children: those dicts in `arguments` whose `context` is a child run's; large ones go to shared memory.

        Raises:
            LLMError: the host refused, the cell has ended, or the contexts take too much shared memory.
            TypeError: an argument cannot be sent to the host.
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
                self._share_contexts(number, name, children, waiter.cell)
                self._send_call(number, _encoded_call(name, arguments), waiter.cell)
            except BaseException:
                self._unshare(number, waiter.cell)
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
            self._write_message(frames.CALL, number, parts)

    def _require(self, cell: object | None) -> None:
        if cell is None or self._cell is not cell:
            raise LLMError("the cell has ended: what it left running cannot call")

    def _share_contexts(
        self, number: int, name: str, children: Iterable[Arguments], cell: object | None
    ) -> None:
        """Send the large contexts of a call to shared memory, each once; an index and a sketch replace each."""
        shared: dict[int, tuple[int, Any]] = {}  # by id(): `children` keeps every context alive meanwhile
        for child in children if self._shared_limit else ():
            context = child["context"]
            if id(context) not in shared:
                parts = _encoded_if_large(context)
                if parts is None:
                    continue
                self._share(number, name, parts, cell)
                shared[id(context)] = len(shared), sketches.sketch(context, values.received_form)
            index, sketch = shared[id(context)]
            del child["context"]
            child["shared"] = index, sketch.to_tuple()

    def _share(self, number: int, name: str, parts: values.Parts, cell: object | None) -> None:
        with self._writing, timers_blocked():
            self._require(cell)
            self._count_shared(number, name, shared_memory.overhead_bytes(self._shared_limit))
            begun = False
            try:
                for data in frames.message_frames(frames.SHARE, number, parts):
                    self._count_shared(number, name, len(data) - frames.HEADER.size)
                    self._write(data)
                    begun = True
            except BaseException:
                if begun:
                    # End the message: a frame of another kind within it would count as a broken protocol.
                    self._write_message(frames.SHARE, number, [])
                raise

    def _count_shared(self, number: int, name: str, count: int) -> None:
        with self._calls:
            if sum(self._shared.values()) + count > self._shared_limit:
                raise LLMError(
                    f"{name}: the contexts of the running child runs would take more than {self._shared_limit:,} "
                    "bytes: pass smaller ones, or fewer at once"
                )
            self._shared[number] = self._shared.get(number, 0) + count

    def _unshare(self, number: int, cell: object | None) -> None:
        """Release the contexts of a call that was not made: no reply will release them."""
        with self._calls:
            counted = self._shared.pop(number, 0)
        if counted:
            with self._writing:
                if self._cell is cell:
                    self._write_message(frames.UNSHARE, number, [])

    def send(self, kind: int, number: int = 0, parts: values.Parts | None = None) -> None:
        """Send one whole message."""
        with self._writing:
            self._write_message(kind, number, [] if parts is None else parts)

    def _write_message(self, kind: int, number: int, parts: values.Parts) -> None:
        with timers_blocked():
            for data in frames.message_frames(kind, number, parts):
                self._write(data)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[_write(self.descriptor, view) :]

    def feed(self, data: bytes) -> None:
        """Add bytes that were read from the socket; exit at its end, which means that the supervisor has ended."""
        if not data:
            os._exit(0)
        self._arrived += self._frames.feed(data)

    def next_message(self) -> tuple[int, int, bytes] | None:
        """Return the next whole message of those fed; drop one that a frame of another message interrupts."""
        while self._arrived:
            kind, more, number, piece = self._arrived.pop(0)
            if self._unfinished != (kind, number):
                self._payload = bytearray()
            self._payload += piece
            self._unfinished = (kind, number) if more else None
            if not more:
                payload, self._payload = bytes(self._payload), bytearray()
                return kind, number, payload
        return None

    def _wait(self, waiter: _Waiter) -> Any:
        with self._calls:
            if not self._has_reader:
                self._has_reader = waiter.is_reader = True
        if not waiter.is_reader:
            waiter.signal.acquire()  # released with the reply, or to make this thread the reader
        while waiter.reply is None:
            self._deliver_one(waiter.cell)
        return waiter.reply

    def _deliver_one(self, cell: object | None) -> None:
        """Read one reply and hand it to the thread that waits for it."""
        kind, number, payload = self._receive_in_cell(cell)
        if kind != frames.REPLY:
            return
        reply = decoding.decode(payload)
        with self._calls:
            self._shared.pop(number, None)
            target = self._waiting.pop(number, None)
            if target is not None:
                target.reply = reply
                if not target.is_reader:  # the reader is this thread, which waits for no signal
                    target.signal.release()

    def _receive_in_cell(self, cell: object | None) -> tuple[int, int, bytes]:
        """Return the next message; never return once the cell has ended.

        `poll` without the lock only waits. The read happens with the lock, after a look whether the cell is still the
        one that runs: `close_to_cells` takes the lock too, so no byte for the worker's own code is lost to a thread.
        """
        while True:
            with self._reading, timers_blocked():
                if self._cell is not cell:
                    break
                message = self.next_message()
                if message is not None:
                    return message
                if _is_readable(self.descriptor, 0):
                    self.feed(_read(self.descriptor, frames.FRAME_BYTES))
                    continue
            _is_readable(self.descriptor, None)
        return wait_for_ever()

    def _leave(self, number: int, waiter: _Waiter) -> None:
        """Stop waiting; if this thread was the reader, make the thread that has waited longest the reader."""
        with self._calls:
            self._waiting.pop(number, None)
            if not waiter.is_reader:
                return
            next_reader = next(iter(self._waiting.values()), None)
            if next_reader is None:
                self._has_reader = False
            else:
                next_reader.is_reader = True
                next_reader.signal.release()


@contextlib.contextmanager
def timers_blocked() -> Iterator[None]:
    """Block the signals of timers in this thread: a handler of the cell may raise, and leave half a message."""
    before = _mask(signal.SIG_BLOCK, ())
    try:
        _mask(signal.SIG_BLOCK, TIMERS)
        yield
    finally:
        _mask(signal.SIG_SETMASK, before)


def wait_for_ever() -> NoReturn:
    """Park a thread whose cell has ended; it ends with its process."""
    lock = threading.Lock()
    while True:
        lock.acquire()


def _is_readable(descriptor: int, milliseconds: int | None) -> bool:
    poller = _poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(milliseconds))


def _encoded_call(name: str, arguments: Arguments) -> values.Parts:
    try:
        return values.encode((name, arguments), max_values=values.MOST_VALUES)
    except values.Uncrossable as problem:
        where = problem.path.removeprefix("[1]")
        raise TypeError(f"{name}: {where}: {problem.reason}") from None


def _encoded_if_large(context: Any) -> values.Parts | None:
    """Return the encoded context if it is large enough for shared memory; else None, and it goes with its call."""
    if not isinstance(context, SHARED_TYPES):
        return None
    try:
        parts = values.encode(context)
    except values.Uncrossable:
        return None  # encoding the call fails next, with the place of the value
    return parts if values.encoded_size(parts) >= SHARED_BYTES else None
