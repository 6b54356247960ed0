"""What a guest says, read as nothing but what is due: plain values of bounded size, each checked for its form.

Whatever else comes is a `ProtocolViolation`, or costs only the cell that said it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import anyio.to_thread

from rlm.errors import ProtocolViolation
from rlm.sandbox.guest import decoding, values
from rlm.sandbox.shared_contexts import MOST_CONTEXT_VALUES
from rlm.values import Final, HostCall, Variable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "children_of",
    "decoded",
    "host_call_of",
    "off_the_loop",
    "own_verdict",
    "places_of",
    "report_of",
    "variable_of",
    "verdict_of",
]

T = TypeVar("T")

LARGE_BYTES = 1 << 16
DECODED_VALUES = MOST_CONTEXT_VALUES
MOST_OFFSET = 1 << 63
OUTCOMES = frozenset({"ok", "raised", "timeout", "memory", "exited", "crashed", "protocol", "cancelled"})


async def off_the_loop(read: Callable[[bytes | bytearray], T], payload: bytes | bytearray) -> T:
    """Read a payload; a large one in a thread, so that a guest cannot hold up everybody else."""
    if len(payload) <= LARGE_BYTES:
        return read(payload)
    return await anyio.to_thread.run_sync(read, payload)


def decoded(payload: bytes | bytearray) -> Any:
    """The value of a message."""
    try:
        return decoding.decode(payload, max_values=DECODED_VALUES)
    except values.WireError as error:
        raise ProtocolViolation(f"the guest sent what is not a value: {error}") from None


def host_call_of(payload: bytes | bytearray) -> HostCall:
    """What a cell asks of the host."""
    match decoded(payload):
        case (str(name), dict(arguments)):
            return HostCall(name, arguments)
        case _:
            raise ProtocolViolation("the guest made a call in a way of its own")


def children_of(call: HostCall) -> list[dict[str, Any]]:
    """The arguments that stand for one child run each."""
    match call:
        case HostCall("rlm_query", dict(arguments)):
            return [arguments]
        case HostCall("rlm_batch", {"items": list(items)}):
            return [item for item in items if isinstance(item, dict)]
        case _:
            return []


def places_of(payload: bytes | bytearray) -> list[tuple[int, int]]:
    """Where on the shelf the pieces of a call lie: offset and length, in bytes."""
    match decoded(payload):
        case [*numbers] if len(numbers) % 2 == 0 and all(map(_is_offset, numbers)):
            return list(zip(numbers[::2], numbers[1::2], strict=True))
        case _:
            raise ProtocolViolation("the guest named places in a way of its own")


def verdict_of(payload: bytes | bytearray) -> dict[str, Any]:
    """What the supervisor says of the end of a cell."""
    match decoded(payload):
        case {
            "outcome": str(outcome),
            "error": str(),
            "state": "kept" | "rolled back" | "lost",
            "compute": float(),
            **_rest,
        } as verdict if outcome in OUTCOMES or not outcome:
            return dict(verdict)
        case _:
            raise ProtocolViolation("the guest ended a cell in a way of its own")


def own_verdict(outcome: str, error: str) -> dict[str, Any]:
    """The same from the host, which ended the guest."""
    return {"outcome": outcome, "error": error, "state": "lost", "wall": 0.0, "compute": 0.0}


def report_of(payload: bytes | bytearray) -> tuple[str, str, Any, Final | None]:
    """What a cell's process says of it; where that cannot be read, the cell is kept and its answer is not."""
    try:
        told = decoded(payload)
    except ProtocolViolation as violation:
        return "protocol", str(violation), None, None
    match told:
        case (("ok" | "raised" | "exited") as outcome, str(error), draft, None):
            return outcome, error, draft, None
        case (
            ("ok" | "raised" | "exited") as outcome,
            str(error),
            draft,
            (("FINAL" | "FINAL_VAR" | "answer") as source, value),
        ):
            return outcome, error, draft, Final(value, source)
        case _:
            return "protocol", "the cell's process reported on it in a way of its own", None, None


def variable_of(row: Any) -> Variable | None:
    """What is told of a variable, or None where it is described in a way of its own."""
    match row:
        case (str(name), str(kind), int() | None as length, str(preview)):
            return Variable(name=name, type_name=kind, length=length, preview=preview)
        case _:
            return None


def _is_offset(number: Any) -> bool:
    return type(number) is int and 0 <= number < MOST_OFFSET
