"""The protocol between a host and its guest, and the code both speak it with.

**Frames.** Two byte streams, one each way. Each carries frames, nothing else:

    kind     1 byte    which message (the constants below)
    more     1 byte    1: the next frame of this kind and number goes on with the same message; 0: the last one
    number   4 bytes   big-endian: a call's number, a stream's, a nonce; 0 where nothing is numbered
    length   4 bytes   big-endian, at most FRAME_BYTES
    payload  length bytes

A message is the payloads of its frames joined. Between the frames of one message only whole OUTPUT messages may
come, and ENDED, which drops the message that was under way. Unless noted, the payload is one value as `encode`
writes it.

**Who speaks when.** The host opens with START and waits for READY. From then on it asks one thing at a
time and waits for the end of it:

    host                            guest
    START   {settings}          →   READY {facts}                     once
    LOAD    value               →   LOADED None                       the context; forgets every variable
    PICK    {place}             →   LOADED None, or why not           the same, from the piece that it inherited, once
    RESET   None                →   LOADED None                       back to the state after LOAD
    RUN     {cell}              →   OUTPUT*, (PLACES? CALL)*, DONE?, ENDED      one cell
    ASK     {what, name}        →   TOLD {...}                        what variables are there; one value
    REPLY   (true, value)       →   answers CALL of the same number, in any order, while a RUN is under way
            (false, kind, text)
    CANCEL  None                    while a RUN is under way: kill the cell; ENDED follows as always

A guest that says anything out of turn is killed. When the host's stream ends, the guest kills what it started and
exits. OUTPUT is raw bytes, number 1 for stdout and 2 for stderr. CALL is (name, {arguments}), numbered by the
cell. DONE is what the cell's own process reports; ENDED is the supervisor's verdict on it and always the last
word. DONE reaches the host only after the cell's process has proved that it can go on, by forking the next one.

**The shelf.** Where the guest has one (`shelf.py`), the large contexts of child runs do not go to the host. Before a
call, the cell's process sends each as a SHELVE of that call's number; the supervisor writes it down, and right before
the call itself tells the host where: PLACES, of the same number. In the call's arguments `shelved` then stands for
`context`: (which of them, a sketch). The pieces are given up with the reply, or by UNSHELVE where no call was made.

The fields of the dicts, sizes in bytes and times in seconds:

    START   memory_bytes, answer_bytes, scratch_bytes, processes: limits; scratch: a folder or ''; confine,
            namespaces: whether to try that; shelf, piece: inherited descriptors, to write and to read, or -1
    READY   python, platform: text; levels: names of what is in force; missing: {name: why it is not}
    PICK    offset and length in `piece`; max_values: of how many values what lies there may be made
    PLACES  a list: offset and length of one piece, of the next, and so on
    RUN     cell: its number in tracebacks; code; fresh_answer: whether a new question begins; timeout
    DONE    (outcome, traceback, draft, (source, value) or None), outcome one of ok, raised, exited
    ENDED   outcome: '' where DONE says it, else timeout, memory, exited, crashed, protocol, cancelled; error; state:
            kept, rolled back, lost; wall, compute
    ASK     what: variables or fetch; name; plain: call no code of the values' own classes
    TOLD    a list of (name, type, length or None, preview); or ("value", value), ("missing", names),
            ("uncrossable", why), ("silent", None)

**Inside the guest** the supervisor and each process that runs a cell speak the same frames over a Unix socket
pair: FORK (with four descriptors: channel, stdout, stderr, and a pipe that is held only to notice that the
supervisor has ended) → HELLO from the new process on its new channel; RUN, ASK, CALL, REPLY, DONE as above, DONE with
number 1 when its state is worth keeping, else 0; REAP pid → STATUS, numbered by the wait status; SHELVE value;
UNSHELVE, empty.
"""

from __future__ import annotations

import struct

from . import values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "ASK",
    "CALL",
    "CANCEL",
    "DONE",
    "ENDED",
    "FORK",
    "FRAME_BYTES",
    "HEADER",
    "HELLO",
    "LOAD",
    "LOADED",
    "OUTPUT",
    "PICK",
    "PLACES",
    "READY",
    "REAP",
    "REPLY",
    "RESET",
    "RUN",
    "SHELVE",
    "START",
    "STATUS",
    "TOLD",
    "UNSHELVE",
    "Assembler",
    "Frame",
    "Frames",
    "frame",
    "message_frames",
]


START, LOAD, RUN, REPLY, CANCEL, ASK, RESET, PICK = 1, 2, 3, 4, 5, 6, 7, 8
READY, LOADED, OUTPUT, CALL, DONE, ENDED, TOLD, PLACES = 16, 17, 18, 19, 20, 21, 22, 23
FORK, HELLO, REAP, STATUS, SHELVE, UNSHELVE = 32, 33, 34, 35, 36, 37
HEADER = struct.Struct(">BBII")
FRAME_BYTES = values.CHUNK_BYTES


def frame(
    kind: int, number: int = 0, payload: bytes | bytearray | memoryview = b"", *, more: bool = False
) -> bytes:
    """One frame as bytes."""
    return b"".join((HEADER.pack(kind, more, number, len(payload)), payload))


def message_frames(kind: int, number: int, parts: values.Parts) -> Iterator[bytes]:
    """The frames of one message, made one at a time."""
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


Frame = tuple[int, bool, int, bytes]


class Frames:
    """Bytes in, whole frames out: `(kind, more, number, payload)`. Never holds more than what was fed."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Take what arrived; raises `WireError` at a header that promises too much."""
        self._buffer += data
        found: list[Frame] = []
        position = 0
        while len(self._buffer) - position >= HEADER.size:
            kind, more, number, length = HEADER.unpack_from(self._buffer, position)
            if length > FRAME_BYTES or more > 1:
                raise values.WireError("a frame header that no one here sends")
            end = position + HEADER.size + length
            if len(self._buffer) < end:
                break
            found.append((kind, bool(more), number, bytes(self._buffer[position + HEADER.size : end])))
            position = end
        del self._buffer[:position]
        return found


class Assembler:
    """Bytes in, whole messages out: `(kind, number, payload)`.

    `limits` names the kinds that may come and how large each may grow, in bytes; anything else is a `WireError`.
    """

    __slots__ = ("_frames", "_limits", "_open", "_parts")

    def __init__(self, limits: dict[int, int]) -> None:
        self._frames = Frames()
        self._limits = limits
        self._open: tuple[int, int] | None = None
        self._parts = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, int, bytes | bytearray]]:
        """Take what arrived and give the messages that it completes."""
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
                raise values.WireError("a message within a message")
            if len(self._parts) + len(payload) > limit:
                raise values.WireError(f"a message of more than {limit:,} bytes")
            self._parts += payload
            if more:
                self._open = (kind, number)
            else:
                found.append((kind, number, self._parts))
                self._open, self._parts = None, bytearray()
        return found
