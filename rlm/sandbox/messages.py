"""Readers of messages from the guest: plain values of bounded size, each checked for its form.

A malformed message is a `ProtocolViolation`; a malformed report of a cell is an outcome of that cell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import anyio.to_thread

from rlm.errors import ProtocolViolation
from rlm.sandbox.guest import decoding, values
from rlm.sandbox.guest.failures import ERROR_CHARS, cut
from rlm.sandbox.shared_contexts import MOST_CONTEXT_VALUES
from rlm.values import Final, HostCall, Variable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "LARGE_BYTES",
    "child_arguments",
    "decoded",
    "host_ending",
    "off_the_loop",
    "read_ending",
    "read_host_call",
    "read_locations",
    "read_report",
    "read_variable",
]

T = TypeVar("T")

LARGE_BYTES = 1 << 16
DECODED_VALUES = MOST_CONTEXT_VALUES
OFFSET_LIMIT = 1 << 63
OUTCOMES = frozenset({"ok", "raised", "timeout", "memory", "exited", "crashed", "protocol", "cancelled"})


async def off_the_loop(read: Callable[[bytes | bytearray], T], payload: bytes | bytearray) -> T:
    """Read a payload; a large one in a thread, so that one guest cannot block the event loop for the others."""
    if len(payload) <= LARGE_BYTES:
        return read(payload)
    return await anyio.to_thread.run_sync(read, payload)


def decoded(payload: bytes | bytearray) -> Any:
    """Return the value of a message."""
    try:
        return decoding.decode(payload, max_values=DECODED_VALUES)
    except values.WireError as error:
        raise ProtocolViolation(f"the guest sent an invalid value: {error}") from None


def read_host_call(payload: bytes | bytearray) -> HostCall:
    """Return the host call of a cell."""
    match decoded(payload):
        case (str(name), dict(arguments)):
            return HostCall(name, arguments)
        case _:
            raise ProtocolViolation("the guest sent a malformed host call")


def child_arguments(call: HostCall) -> list[dict[str, Any]]:
    """Return the arguments of each child run that the host call would start."""
    match call:
        case HostCall("rlm_query", dict(arguments)):
            return [arguments]
        case HostCall("rlm_batch", {"items": list(items)}):
            return [item for item in items if isinstance(item, dict)]
        case _:
            return []


def read_locations(payload: bytes | bytearray) -> list[tuple[int, int]]:
    """Return where the contexts of a host call are in shared memory: offset and length of each, in bytes."""
    match decoded(payload):
        case [*numbers] if len(numbers) % 2 == 0 and all(map(_is_offset, numbers)):
            return list(zip(numbers[::2], numbers[1::2], strict=True))
        case _:
            raise ProtocolViolation("the guest sent malformed locations")


def read_ending(payload: bytes | bytearray) -> dict[str, Any]:
    """Return the supervisor's report of the end of a cell."""
    match decoded(payload):
        case {
            "outcome": str(outcome),
            "error": str(),
            "state": "kept" | "rolled back" | "lost",
            "compute": float(),
            **_rest,
        } as ending if outcome in OUTCOMES or not outcome:
            return dict(ending)
        case _:
            raise ProtocolViolation("the guest sent a malformed end of a cell")


def host_ending(outcome: str, error: str) -> dict[str, Any]:
    """Return the report of a cell that ended because the host ended the guest."""
    return {"outcome": outcome, "error": error, "state": "lost", "wall": 0.0, "compute": 0.0}


def read_report(payload: bytes | bytearray) -> tuple[str, str, Any, Final | None]:
    """Return the outcome, error, draft and answer that the worker reports; a malformed report gives no answer."""
    try:
        head, value, draft = decoding.decode_all(payload, 3, max_values=DECODED_VALUES)
    except values.WireError as problem:
        return "protocol", f"the guest sent an invalid value: {problem}", None, None
    if isinstance(draft, values.WireError):
        draft = None  # it costs only itself: not the cell, and not the answer
    match head:
        case (("ok" | "raised" | "exited" | "memory") as outcome, str(error), None):
            return outcome, cut(error, ERROR_CHARS), draft, None
        case (
            ("ok" | "raised" | "exited") as outcome,
            str(error),
            ("FINAL" | "FINAL_VAR" | "answer") as source,
        ):
            return outcome, cut(error, ERROR_CHARS), draft, Final(value, source)
        case _:
            return "protocol", "the worker sent a malformed report of the cell", None, None


def read_variable(row: Any) -> Variable | None:
    """Return the description of a variable, or None if it is malformed."""
    match row:
        case (str(name), str(kind), int() | None as length, str(preview)):
            return Variable(name=name, type_name=kind, length=length, preview=preview)
        case _:
            return None


def _is_offset(number: Any) -> bool:
    return type(number) is int and 0 <= number < OFFSET_LIMIT
