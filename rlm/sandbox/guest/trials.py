"""Trials in a forked child: what the kernel refuses is found by trying it, not by asking for a version."""

from __future__ import annotations

import os

from .limits import SET_LIMITS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ATTEMPTS", "in_child", "is_refused"]


def in_child(work: Callable[[], bytes]) -> bytes:
    """Run `work` in a forked child; return its bytes, or the text of the exception that it raised."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            os.write(writing, work())
        except BaseException as error:  # noqa: BLE001 - the border of the child
            os.write(writing, str(error).encode()[:1000])
        finally:
            os._exit(0)
    os.close(writing)
    output = b""
    while piece := os.read(reading, 4096):
        output += piece
    os.close(reading)
    os.waitpid(pid, 0)
    return output


def is_refused(attempt: Callable[[], object]) -> bool:
    """Return True if the attempt raised `PermissionError`."""
    try:
        attempt()
    except PermissionError:
        return True
    except (OSError, AttributeError):
        return False
    return False


def _run_program() -> None:
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)


def _open_socket() -> None:
    import _socket

    _socket.socket().close()


def _open_datagram_pair() -> None:
    import _socket

    for end in _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_DGRAM):
        end.close()


def _truncate_outside() -> None:
    """Try to truncate a file of the interpreter, to a size beyond RLIMIT_FSIZE: if nothing else refuses, the size does."""
    if "RLIMIT_FSIZE" in SET_LIMITS:
        os.truncate(os.__file__, 1 << 62)


# What no cell may do. A level is reported as in force only if each of its attempts raises PermissionError.
ATTEMPTS: dict[str, tuple[Callable[[], object], ...]] = {
    "files": (lambda: os.listdir("/"), _truncate_outside),  # noqa: PTH208 - no pathlib in guests
    "network": (_open_socket, _open_datagram_pair),
    "signals": (lambda: os.kill(os.getppid(), 0),),
    "programs": (_run_program,),
}
