"""Landlock: the kernel refuses a process, and all it starts, every file that no rule allows."""

from __future__ import annotations

import os
import sys

from .libc import Refused, call

__all__ = ["landlock_truncates", "landlock_version", "restrict_files"]


LANDLOCK_CREATE, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT = 444, 445, 446  # the same on every architecture
FILE_RIGHTS_BY_VERSION = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
WRITE_FILE, READ_FILE, READ_FOLDER, TRUNCATE, IOCTL = 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
ON_FILES = 1 | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL
EXECUTE = 1
TRUNCATE_VERSION, NETWORK_VERSION, SCOPE_VERSION = 3, 4, 6


def landlock_version() -> int:
    """Which version of Landlock the kernel has; raises `Refused` where it has none."""
    import ctypes

    return call("syscall", LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)


def landlock_truncates() -> bool:
    """Whether Landlock decides about truncating files; before, whoever may write a file by its mode could."""
    try:
        return landlock_version() >= TRUNCATE_VERSION
    except Refused:
        return False


def restrict_files(scratch: str) -> None:
    """From here on: read what Python needs, write scratch, signal and reach nobody outside."""
    import ctypes

    version = landlock_version()
    handled = FILE_RIGHTS_BY_VERSION[max(known for known in FILE_RIGHTS_BY_VERSION if known <= version)]
    attributes = (ctypes.c_uint64 * 3)(
        handled, 3 if version >= NETWORK_VERSION else 0, 3 if version >= SCOPE_VERSION else 0
    )
    size = 24 if version >= SCOPE_VERSION else 16 if version >= NETWORK_VERSION else 8
    rules = call("syscall", LANDLOCK_CREATE, ctypes.byref(attributes), ctypes.c_size_t(size), 0)
    try:
        for path in readable_paths():
            _allow(rules, path, READ_FILE | READ_FOLDER)
        for device in ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"):
            _allow(rules, device, READ_FILE | WRITE_FILE)
        _allow(rules, scratch, handled & ~EXECUTE & ~IOCTL)
        call("syscall", LANDLOCK_RESTRICT, rules, 0)
    finally:
        os.close(rules)


def readable_paths() -> list[str]:
    """The folders that the interpreter, the libraries and the time zones live in."""
    python = [os.path.dirname(os.__file__), *(path for path in sys.path if os.path.isabs(path))]  # noqa: PTH117, PTH120
    shared = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo"]
    return [*python, os.path.join(sys.base_prefix, "lib"), *shared, "/etc/localtime", "/etc/ld.so.cache"]  # noqa: PTH118


def _allow(rules: int, path: str, rights: int) -> None:
    import ctypes
    import stat
    import struct

    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= ON_FILES
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, descriptor))
        call("syscall", LANDLOCK_ADD_RULE, rules, 1, rule, 0)
    finally:
        os.close(descriptor)
