"""The protocol between a host and its guest: frames, and which side sends what when.

**Frames.** Two byte streams, one in each direction, carry nothing but frames:

    kind     1 byte    the kind of message (the constants below)
    more     1 byte    1: the next frame of this kind and number continues the message; 0: the last frame of it
    number   4 bytes   big-endian: the number of a call or a stream, a wait status; else 0
    length   4 bytes   big-endian, at most FRAME_BYTES
    payload  length bytes

A message is the joined payloads of its frames. Between the frames of one message only two kinds may come: whole
OUTPUT messages, and ENDED, which drops the unfinished message. Unless noted, a payload is one value as
`values.encode` writes it.

**Host and guest.** The host opens with START and waits for READY. After that it sends one request at a time and waits
for the message that ends it:

    host                                 guest
    START        {settings}          →   READY {facts}                        once
    LOAD         value               →   LOADED None                          set `context`; forget every variable
    LOAD_SHARED  {location}          →   LOADED None, or the reason why not   the same from inherited memory, once
    RESET        None                →   LOADED None                          back to the state after LOAD
    RUN          {cell}              →   OUTPUT*, (LOCATIONS? CALL)*, DONE?, ENDED      run one cell
    INSPECT      {what, name, safe}  →   INSPECTED                            list the variables, or fetch one
    REPLY        (true, value)           answers the CALL of the same number, in any order, during a RUN
                 (false, kind, text)
    CANCEL       None                    during a RUN: kill the cell; ENDED follows as always

A guest that sends anything out of turn is killed. When the host's stream ends, the guest kills its workers and exits.
OUTPUT is raw bytes, number 1 for stdout and 2 for stderr. CALL is (name, {arguments}), numbered by the cell. DONE is
the report of the process that ran the cell; it reaches the host only after that process has forked the next worker.
ENDED is the supervisor's report of the cell, and always the last message of a RUN.

**Shared contexts.** Where host and guest share memory (`shared_memory.py`), large contexts of child runs do not pass
through the host. Before a call, the worker sends each context as a SHARE of the call's number. The supervisor writes
it to the shared memory and, directly before the CALL, sends LOCATIONS of the same number. In the arguments of the call
the key `shared` replaces `context`: (index among the locations, sketch). The memory is released with the reply, or by
UNSHARE if the call was not made.

The fields of the dicts, sizes in bytes and times in seconds:

    START   memory_bytes, answer_bytes, scratch_bytes, processes: limits; scratch: a folder or ''; confine,
            namespaces: whether to try them; shared_memory, parent_memory: inherited descriptors, to write contexts
            for children and to read the own context, or -1
    READY   python, platform: text; levels: names of the measures in force; missing: {name: reason}
    LOAD_SHARED  offset and length in `parent_memory`; max_values: the most values that it may decode to
    LOCATIONS    a list: offset and length of each context, one after the other
    RUN     cell: its number in tracebacks; code; fresh_answer: whether a new question begins; timeout
    DONE    (outcome, traceback, draft, (source, value) or None), outcome one of ok, raised, exited
    ENDED   outcome: '' if DONE has it, else timeout, memory, exited, crashed, protocol, cancelled; error; state:
            kept, rolled back, lost; wall, compute
    INSPECT what: variables or fetch; name; safe: call no code of the values' own classes
    INSPECTED  a list of (name, type, length or None, preview); or ("value", value), ("missing", names),
            ("uncrossable", reason), ("silent", None)

**Inside the guest**, supervisor and workers send the same frames over Unix socket pairs. FORK carries four descriptors
(channel, stdout, stderr, and one end of a pipe whose closing means that the supervisor has ended); the new worker sends
HELLO on its new channel. RUN, INSPECT, CALL, REPLY as above. DONE has number 1 if the state is worth keeping, else 0.
REAP pid → STATUS, numbered by the wait status. SHARE value. UNSHARE, empty.
"""

from __future__ import annotations

import struct

from . import values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "CALL",
    "CANCEL",
    "DONE",
    "ENDED",
    "FORK",
    "FRAME_BYTES",
    "HEADER",
    "HELLO",
    "INSPECT",
    "INSPECTED",
    "LOAD",
    "LOADED",
    "LOAD_SHARED",
    "LOCATIONS",
    "OUTPUT",
    "READY",
    "REAP",
    "REPLY",
    "RESET",
    "RUN",
    "SHARE",
    "START",
    "STATUS",
    "UNSHARE",
    "Frame",
    "FrameReader",
    "MessageReader",
    "frame",
    "message_frames",
]

START, LOAD, RUN, REPLY, CANCEL, INSPECT, RESET, LOAD_SHARED = 1, 2, 3, 4, 5, 6, 7, 8
READY, LOADED, OUTPUT, CALL, DONE, ENDED, INSPECTED, LOCATIONS = 16, 17, 18, 19, 20, 21, 22, 23
FORK, HELLO, REAP, STATUS, SHARE, UNSHARE = 32, 33, 34, 35, 36, 37

HEADER = struct.Struct(">BBII")
FRAME_BYTES = values.CHUNK_BYTES

Frame = tuple[int, bool, int, bytes]


def frame(
    kind: int, number: int = 0, payload: bytes | bytearray | memoryview = b"", *, more: bool = False
) -> bytes:
    """Return one frame as bytes."""
    return b"".join((HEADER.pack(kind, more, number, len(payload)), payload))


def message_frames(kind: int, number: int, parts: values.Parts) -> Iterator[bytes]:
    """Yield the frames of one message, made one at a time."""
    waiting = bytearray()
    for piece in values.chunks(parts):
        large = len(piece) > FRAME_BYTES // 4  # worth a frame of its own, without another copy
        if waiting and (large or len(waiting) + len(piece) > FRAME_BYTES):
            yield frame(kind, number, waiting, more=True)
            waiting = bytearray()
        if large:
            yield frame(kind, number, piece, more=True)
        else:
            waiting += piece
    yield frame(kind, number, waiting)


class FrameReader:
    """Turns bytes into whole frames, `(kind, more, number, payload)`; never holds more than was fed."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Add bytes and return the frames they complete; raises `WireError` at a header with values out of range."""
        self._buffer += data
        found: list[Frame] = []
        position = 0
        while len(self._buffer) - position >= HEADER.size:
            kind, more, number, length = HEADER.unpack_from(self._buffer, position)
            if length > FRAME_BYTES or more > 1:
                raise values.WireError("the frame header is not one of this protocol")
            end = position + HEADER.size + length
            if len(self._buffer) < end:
                break
            found.append((kind, bool(more), number, bytes(self._buffer[position + HEADER.size : end])))
            position = end
        del self._buffer[:position]
        return found


class MessageReader:
    """Turns bytes into whole messages, `(kind, number, payload)`.

    `limits` maps each kind that may come to its largest payload in bytes; anything else is a `WireError`.
    """

    __slots__ = ("_frames", "_limits", "_open", "_parts")

    def __init__(self, limits: dict[int, int]) -> None:
        self._frames = FrameReader()
        self._limits = limits
        self._open: tuple[int, int] | None = None
        self._parts = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, int, bytes | bytearray]]:
        """Add bytes and return the messages they complete."""
        found: list[tuple[int, int, bytes | bytearray]] = []
        for kind, more, number, payload in self._frames.feed(data):
            limit = self._limits.get(kind)
            if limit is None:
                raise values.WireError(f"a message of kind {kind}, which is not for us")
            if kind == OUTPUT and not more:
                found.append((kind, number, payload))
                continue
            if kind == ENDED:
                self._open, self._parts = None, bytearray()
            if self._open not in (None, (kind, number)):
                raise values.WireError("a message began before the one before it was complete")
            if len(self._parts) + len(payload) > limit:
                raise values.WireError(f"a message of more than {limit:,} bytes")
            self._parts += payload
            if more:
                self._open = (kind, number)
            else:
                found.append((kind, number, self._parts))
                self._open, self._parts = None, bytearray()
        return found
