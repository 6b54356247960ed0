"""The first code of a guest, given to `python3 -c` as text: move the channel aside, read the sources, start.

Prints of a cell, of a C extension or of a child process go to descriptors 0 to 2. So the two ends of the pipe to
the host leave these numbers before anything else happens, and stdin becomes empty and stdout the log. Then come
the sources, as a count and for each a name and a text, every one preceded by its length in four bytes.
"""

from __future__ import annotations

import os
import sys
import types


def move_aside() -> tuple[int, int]:
    """Free the descriptors 0 and 1; the ends of the channel, to read and to write."""
    incoming, outgoing = os.dup(0), os.dup(1)  # not inheritable
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return incoming, outgoing


def read_exactly(descriptor: int, count: int) -> bytes:
    """Read `count` bytes; the host being gone is the end."""
    data = bytearray()
    while len(data) < count:
        piece = os.read(descriptor, count - len(data))
        if not piece:
            sys.exit("the host went away before the guest had its code")
        data += piece
    return bytes(data)


def read_text(descriptor: int) -> str:
    """Read one text that is preceded by its length."""
    return read_exactly(descriptor, int.from_bytes(read_exactly(descriptor, 4), "big")).decode()


def load_modules(descriptor: int) -> types.ModuleType:
    """Make the package `guest` out of the sources, in the order they come; give the last of its modules."""
    package = types.ModuleType("guest")
    package.__path__ = []
    sys.modules["guest"] = module = package
    for _ in range(int.from_bytes(read_exactly(descriptor, 4), "big")):
        name, source = read_text(descriptor), read_text(descriptor)
        module = types.ModuleType(f"guest.{name}")
        module.__package__ = "guest"
        sys.modules[module.__name__] = module
        setattr(package, name, module)
        exec(compile(source, f"<guest/{name}.py>", "exec"), module.__dict__)  # noqa: S102 - the host's own code
    return module


if __name__ == "__main__":
    channel = move_aside()
    load_modules(channel[0]).main(*channel)
