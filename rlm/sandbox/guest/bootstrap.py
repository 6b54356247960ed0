"""The first code of a guest, passed to `python3 -c` as text: move the pipes, read the modules, start.

Prints of a cell, of a C extension or of a child process go to descriptors 1 and 2. So the pipes to the host are moved
to other numbers before anything else happens; then stdin is empty, and stdout is the log.

The modules follow on the pipe: the magic number of the host's Python, and a block with the name, source and compiled
code of each; the number, the block and each text in it are preceded by their length in four bytes. An interpreter of
the same version uses the compiled code, since compiling is half of a guest's start.
"""

from __future__ import annotations

import marshal  # noqa: TID251 - this is the guest, and the code the trusted host's
import os
import resource
import signal
import sys
import types
from _frozen_importlib_external import MAGIC_NUMBER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


OLDEST_PYTHON = 0x030B0000, "3.11"
OPEN_FILES = 320  # as many as a worker may have: see `limits`


def prepare_process() -> None:
    """Undo what this process inherited and a guest cannot work with; exit with one sentence if it cannot be undone."""
    if sys.hexversion < OLDEST_PYTHON[0]:
        refuse(f"{sys.executable} is Python {sys.version.split()[0]}, and a guest needs {OLDEST_PYTHON[1]} or newer: "
               "pass local(python=...) with a newer one")  # fmt: skip
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, the exit status of a child could not be read
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < OPEN_FILES:
        refuse(f"the hard limit of open files is {hard}, and a guest needs {OPEN_FILES}: raise it before the program "
               f"starts (ulimit -n {OPEN_FILES}; LimitNOFILE= in systemd; --ulimit nofile= in docker)")  # fmt: skip
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, hard))


def refuse(sentence: str) -> None:
    """End the guest; the host shows the sentence, which it knows by its first words."""
    sys.exit("rlm guest: " + sentence)


def move_aside() -> tuple[int, int]:
    """Free the descriptors 0 and 1; return the pipe from the host and the pipe to it."""
    incoming, outgoing = os.dup(0), os.dup(1)  # not inheritable
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return incoming, outgoing


def read_exactly(descriptor: int, count: int) -> bytes:
    """Read `count` bytes; exit if the host has closed the pipe."""
    data = bytearray()
    while len(data) < count:
        piece = os.read(descriptor, count - len(data))
        if not piece:
            sys.exit("the host went away before the guest had its code")
        data += piece
    return bytes(data)


def read_part(descriptor: int) -> bytes:
    """Read bytes that are preceded by their length."""
    return read_exactly(descriptor, int.from_bytes(read_exactly(descriptor, 4), "big"))


def split(block: bytes) -> Iterator[bytes]:
    """Yield the texts of a block."""
    position = 0
    while position < len(block):
        begin = position + 4
        position = begin + int.from_bytes(block[position:begin], "big")
        yield block[begin:position]


def load_modules(descriptor: int) -> types.ModuleType:
    """Make the package `guest` of the modules, in the order they arrive; return the last one, the supervisor."""
    package = types.ModuleType("guest")
    package.__path__ = []
    sys.modules["guest"] = module = package
    is_same_python = read_part(descriptor) == MAGIC_NUMBER
    parts = split(read_part(descriptor))
    for encoded_name, source, compiled in zip(parts, parts, parts):  # noqa: B905 - one iterator: three parts at a time
        name = encoded_name.decode()
        code = (
            marshal.loads(compiled)  # noqa: S302 - from the host, which the guest has to trust
            if is_same_python
            else compile(source, f"<guest/{name}.py>", "exec")
        )
        module = types.ModuleType(f"guest.{name}")
        module.__package__ = "guest"
        sys.modules[module.__name__] = module
        setattr(package, name, module)
        exec(code, module.__dict__)  # noqa: S102 - the host's own code
    return module


if __name__ == "__main__":
    prepare_process()
    channel = move_aside()
    load_modules(channel[0]).main(*channel)
