"""Landlock: the kernel refuses this process, and all it will start, every file that no rule allows.

Prevents: reading files other than the interpreter's, the libraries' and scratch; writing outside scratch; running
programs from scratch; from version 4 (Linux 6.7) TCP, from version 6 (6.12) signals and abstract sockets to processes
outside.
Remains: `stat` of any path (that it exists, its size and times); modes, owners, times and attributes, which seccomp
refuses; before version 3 (6.2) truncation, which seccomp refuses then; descriptors that were open before.
"""

from __future__ import annotations

import os
import sys

from .libc import LibcError, call

__all__ = ["handles_truncation", "kernel_version", "restrict_files"]

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every architecture
FILE_RIGHTS_BY_VERSION = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
WRITE_FILE, READ_FILE, READ_FOLDER, TRUNCATE, IOCTL = 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
ON_FILES = 1 | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL
EXECUTE = 1
ALL_NETWORK_RIGHTS, ALL_SCOPES = 3, 3
TRUNCATE_VERSION, NETWORK_VERSION, SCOPE_VERSION = 3, 4, 6


def kernel_version() -> int:
    """Return the version of Landlock in this kernel; raises `LibcError` if it has none."""
    import ctypes

    return call("syscall", CREATE_RULESET, None, ctypes.c_size_t(0), 1)


def handles_truncation() -> bool:
    """Return True if Landlock decides about truncation; older versions leave it to the mode of the file."""
    try:
        return kernel_version() >= TRUNCATE_VERSION
    except LibcError:
        return False


def restrict_files(scratch: str) -> None:
    """Allow reading what Python needs and writing to scratch, and nothing else; raises `LibcError`."""
    import ctypes

    version = kernel_version()
    handled = FILE_RIGHTS_BY_VERSION[max(known for known in FILE_RIGHTS_BY_VERSION if known <= version)]
    attributes = (ctypes.c_uint64 * 3)(
        handled,
        ALL_NETWORK_RIGHTS if version >= NETWORK_VERSION else 0,
        ALL_SCOPES if version >= SCOPE_VERSION else 0,
    )
    # The size tells the kernel which fields there are: an older one refuses those that it does not know.
    size = 24 if version >= SCOPE_VERSION else 16 if version >= NETWORK_VERSION else 8
    rules = call("syscall", CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0)
    try:
        for path in readable_paths():
            _allow(rules, path, READ_FILE | READ_FOLDER)
        for device in ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"):
            _allow(rules, device, READ_FILE | WRITE_FILE)
        _allow(rules, scratch, handled & ~EXECUTE & ~IOCTL)
        call("syscall", RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def readable_paths() -> list[str]:
    """Return the paths of the interpreter, of shared libraries and of time zones."""
    python = [os.path.dirname(os.__file__), *(path for path in sys.path if os.path.isabs(path))]  # noqa: PTH117, PTH120
    shared = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo"]
    return [*python, os.path.join(sys.base_prefix, "lib"), *shared, "/etc/localtime", "/etc/ld.so.cache"]  # noqa: PTH118


def _allow(rules: int, path: str, rights: int) -> None:
    """Add a rule for a path and all below it; without effect if there is no such path."""
    import ctypes
    import stat
    import struct

    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= ON_FILES  # the kernel refuses a rule for a file with rights that only folders have
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, descriptor))
        call("syscall", ADD_RULE, rules, 1, rule, 0)
    finally:
        os.close(descriptor)
