"""What the guest does to itself so that a cell can do no harm, in tiers, each tried before it is claimed.

    process    a process of its own with a clean environment, its own scratch folder, and limits: memory, files,
               file size, processes, core dumps; no new privileges; a leash that kills it when the supervisor ends
    confined   and Landlock (files: read what Python needs, write scratch; no signals to the outside) and seccomp
               (no sockets, no programs, no signals, no namespaces, no debugging, no kernel interfaces)
    isolated   and namespaces of its own: users, processes, network, mounts, IPC; scratch in memory, with a quota

Everything is the standard library and ctypes. What this platform or kernel does not have is left out and named in
the report. The supervisor calls `enter_namespaces` once and `probe` to learn what holds; every worker is a
descendant of one process that called `confine`.
"""

from __future__ import annotations

import contextlib
import marshal  # noqa: TID251 - between two processes of the guest that have run no cell
import os
import resource
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

__all__ = [
    "adopt_orphans",
    "become_private_user",
    "confine",
    "crowd",
    "descendants",
    "empty_folder",
    "enter_namespaces",
    "is_overfull",
    "is_zombie",
    "limited",
    "numbers_are_limited",
    "probe",
    "raise_descriptor",
    "within_memory",
]

OPEN_FILES = 256
FLOOR = OPEN_FILES + 8
MARGIN_FILES = 64
MARGIN_BYTES = 64 << 20
MARGIN_PROCESSES = 8
SET_LIMITS: set[str] = set()  # which of the limits this process has set for itself
PRIVATE_USERS = 0x70000000
RESERVED_NUMBERS = 300
SPARE_NUMBERS = 16
EMPTYING_ROUNDS = 3
OWN_ALL = 0o700
DEEPEST = 100
BYTES_PER_ENTRY, FEWEST_ENTRIES = 4096, 1024

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP = 1, 4, 22
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
M_ARENA_MAX = -8
CAPABILITY_VERSION = 0x20080522
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
CLONE_NEWTIME, CLONE_NEWCGROUP = 0x00000080, 0x02000000
NEW_NAMESPACES = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000


class Refused(OSError):
    """The kernel would not."""


def libc() -> Any:
    """The C library; raises `Refused` where ctypes is missing, as in some small images."""
    try:
        import ctypes

        return ctypes.CDLL(None, use_errno=True)
    except (ImportError, OSError, TypeError) as error:
        raise Refused(f"no ctypes: {error}") from None


def call(name: str, *arguments: Any) -> int:
    """Call the C library; raises `Refused` with the error's name."""
    import ctypes

    result = int(getattr(libc(), name)(*arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise Refused(number, f"{name}: {os.strerror(number)}")
    return result


# --- the supervisor ------------------------------------------------------------------------------------------


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, so that none escapes."""
    with contextlib.suppress(Refused, AttributeError):
        call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def become_private_user(scratch: str) -> str:
    """Root becomes a user that owns nothing and that nobody else is; '' or why not.

    Limits on processes do not bind root, and a namespace does not change that.
    """
    if os.geteuid() != 0:
        return ""
    if not readable_by_all(os.__file__):
        return f"root stays root: other users cannot read {os.path.dirname(os.__file__)}"  # noqa: PTH120 - no pathlib here
    user = PRIVATE_USERS + os.getpid()
    try:
        os.chown(scratch, user, user)
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    except OSError as error:
        return f"root stays root: {error}"
    with contextlib.suppress(Refused):
        call("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)  # else /proc/self is root's and no user can be mapped
    return ""


def readable_by_all(path: str) -> bool:
    """Whether any user could read this file."""
    try:
        if not os.stat(path).st_mode & 0o004:  # noqa: PTH116 - no pathlib here: it is slow to import
            return False
        while path != os.path.dirname(path):  # noqa: PTH120
            path = os.path.dirname(path)  # noqa: PTH120
            if not os.stat(path).st_mode & 0o001:  # noqa: PTH116
                return False
    except OSError:
        return False
    return True


def enter_namespaces(scratch: str, scratch_bytes: int, processes: int, *, remove: bool) -> str:
    """Go on in namespaces of its own, as process 1 of them; '' or why not.

    It is tried in a throw-away child first, because a half-way entry cannot be undone. The calling process stays
    outside as the parent of the one that returns, and ends with it; it removes the scratch folder then, where asked.
    """
    if sys.platform != "linux":
        return f"{sys.platform} has no namespaces"
    with contextlib.suppress(Refused):
        libc()  # loaded here once, and not by each of the processes that follow
    reason = _try_namespaces(scratch, scratch_bytes, processes)
    if reason:
        return reason
    _enter(scratch, scratch_bytes, processes, remove=remove)
    return ""


def _try_namespaces(scratch: str, scratch_bytes: int, processes: int) -> str:
    def trial() -> bytes:
        _enter(scratch, scratch_bytes, processes, remove=False)
        return b"ok"

    told = in_child(trial)
    return "" if told == b"ok" else told.decode("utf-8", "replace") or "the kernel ended the trial"


def in_child(work: Callable[[], bytes]) -> bytes:
    """What `work` gives in a fork, or the text of what it raised."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            os.write(writing, work())
        except BaseException as error:  # noqa: BLE001 - a child ends here, whatever it was
            os.write(writing, str(error).encode()[:1000])
        finally:
            os._exit(0)
    os.close(writing)
    told = b""
    while piece := os.read(reading, 4096):
        told += piece
    os.close(reading)
    os.waitpid(pid, 0)
    return told


def _enter(scratch: str, scratch_bytes: int, processes: int, *, remove: bool) -> None:
    user, group = os.getuid(), os.getgid()
    call("unshare", NEW_NAMESPACES)
    for file, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        with open(f"/proc/self/{file}", "w") as writing:  # noqa: PTH123 - no pathlib here
            writing.write(text)
    call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    options = f"size={scratch_bytes},nr_inodes={most_entries(scratch_bytes)},mode=700"
    call("mount", b"scratch", scratch.encode(), b"tmpfs", flags, options.encode())
    os.chdir(scratch)
    _become_first_process(scratch if remove else "")
    call("mount", b"proc", b"/proc", b"proc", flags, None)
    _limit_numbers(processes)


def most_entries(scratch_bytes: int) -> int:
    """How many files and folders may be in a scratch folder of so many bytes: an empty one takes memory too."""
    return max(FEWEST_ENTRIES, scratch_bytes // BYTES_PER_ENTRY)


def _limit_numbers(processes: int) -> None:
    """Leave so many process numbers in this namespace: a fork bomb ends there, root's too (Linux 6.14).

    The kernel gives out numbers below RESERVED_NUMBERS only once, so the counting starts above them.
    """
    most = RESERVED_NUMBERS + processes + SPARE_NUMBERS
    for name, number in (("pid_max", most), ("ns_last_pid", RESERVED_NUMBERS)):
        with contextlib.suppress(OSError), open(f"/proc/sys/kernel/{name}", "w") as writing:  # noqa: PTH123
            writing.write(str(number))


def numbers_are_limited(processes: int) -> bool:
    """Whether this namespace runs out of process numbers soon enough, found by looking."""
    try:
        with open("/proc/sys/kernel/pid_max") as file:  # noqa: PTH123 - no pathlib here
            return int(file.read()) <= RESERVED_NUMBERS + processes + SPARE_NUMBERS
    except (OSError, ValueError):
        return False


def _become_first_process(remove: str) -> None:
    """Return in a child that is process 1; this process waits for it, removes a folder and ends as it does."""
    import signal

    pid = os.fork()
    if pid:
        os.closerange(0, 2)
        os.closerange(3, OPEN_FILES)
        status = os.waitpid(pid, 0)[1]
        if remove:
            os.chdir("/")
            with contextlib.suppress(OSError):
                call("umount2", remove.encode(), 0)
            with contextlib.suppress(OSError):
                os.rmdir(remove)  # noqa: PTH106 - no pathlib here
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    call("prctl", PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    os.setsid()


def probe(settings: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """What a confined process can and cannot do, found by trying in a throw-away one."""
    told = in_child(lambda: marshal.dumps(confine_and_try(settings)))
    try:
        held, missing = marshal.loads(told)  # noqa: S302 - of a child that has run no cell
    except (EOFError, ValueError, TypeError):
        return [], {"confinement": f"the trial ended early: {told.decode('utf-8', 'replace')[:200]}"}
    return held, missing


def confine_and_try(settings: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Confine this process and try what it can do: what is in force, and what is not and why."""
    missing = confine(settings)
    held = [name for name, attempts in ATTEMPTS.items() if all(map(_is_refused, attempts))]
    for name in ATTEMPTS:
        if name not in held:
            missing.setdefault(
                name, missing.get("landlock" if name == "files" else "seccomp", "tried: not refused")
            )
    return held, missing


def _is_refused(attempt: Callable[[], object]) -> bool:
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
    """Where nothing else refuses it the size does, before anything has changed: no file may become so large."""
    if "RLIMIT_FSIZE" in SET_LIMITS:
        os.truncate(os.__file__, 1 << 62)


# What a cell must not be able to do.
ATTEMPTS: dict[str, tuple[Callable[[], object], ...]] = {
    "files": (lambda: os.listdir("/"), _truncate_outside),  # noqa: PTH208 - no pathlib here
    "network": (_open_socket, _open_datagram_pair),
    "signals": (lambda: os.kill(os.getppid(), 0),),
    "programs": (_run_program,),
}


# --- the workers ---------------------------------------------------------------------------------------------


def confine(settings: dict[str, Any]) -> dict[str, str]:
    """Limit this process and all it will start, for good; what could not be done, and why."""
    missing: dict[str, str] = {}
    limit_resources(settings)
    with contextlib.suppress(OSError, AttributeError):
        drop_capabilities()
    with contextlib.suppress(Refused, AttributeError):
        # Each thread would reserve 64 MB of addresses for itself, which count as memory.
        call("mallopt", M_ARENA_MAX, 1)
    if sys.platform != "linux":
        return {"landlock": f"{sys.platform} has none", "seccomp": f"{sys.platform} has none"}
    try:
        call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    except Refused as error:
        return {"landlock": str(error), "seccomp": str(error)}
    if not settings["confine"]:
        return {"landlock": "not asked for", "seccomp": "not asked for"}
    measures: dict[str, Callable[[], None]] = {
        "landlock": lambda: restrict_files(settings["scratch"]),
        "seccomp": filter_calls,
    }
    for name, measure in measures.items():
        try:
            measure()
        except OSError as error:
            missing[name] = str(error)
    return missing


def drop_capabilities() -> None:
    """Give up what root may do, and what a namespace's first process may do in it."""
    import ctypes

    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    none = (ctypes.c_uint32 * 6)()
    call("capset", header, none)


def limit_resources(settings: dict[str, Any]) -> None:
    """Set this process's limits; of memory and open files the harness keeps a margin for itself."""
    wanted = {
        "RLIMIT_AS": virtual_bytes() + settings["memory_bytes"] + MARGIN_BYTES,
        "RLIMIT_NOFILE": OPEN_FILES + MARGIN_FILES,
        "RLIMIT_NPROC": settings["processes"] + MARGIN_PROCESSES,
        "RLIMIT_FSIZE": settings["scratch_bytes"],
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
    }
    if not settings["counts_processes"]:
        del wanted["RLIMIT_NPROC"]
    for name, most in wanted.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (most, most))
            SET_LIMITS.add(name)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """A cell runs: the margin is not its to use."""
    _move_soft_limits(1)
    try:
        yield
    finally:
        _move_soft_limits(0)


def _move_soft_limits(cells: int) -> None:
    margins = {"RLIMIT_AS": MARGIN_BYTES, "RLIMIT_NOFILE": MARGIN_FILES, "RLIMIT_NPROC": MARGIN_PROCESSES}
    for name, margin in margins.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            limit = getattr(resource, name)
            hard = resource.getrlimit(limit)[1]
            if hard != resource.RLIM_INFINITY and name in SET_LIMITS:
                resource.setrlimit(limit, (hard - margin * cells, hard))


@contextlib.contextmanager
def within_memory(most: int) -> Iterator[None]:
    """Meanwhile this process may take so many bytes more, where the platform can hold it to that: `MemoryError`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = virtual_bytes() + most + MARGIN_BYTES
    try:
        if soft == resource.RLIM_INFINITY or wanted < soft:
            resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def virtual_bytes() -> int:
    """How much address space this process has, or 0 where nobody tells."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - no pathlib here
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def raise_descriptor(descriptor: int) -> int:
    """Move a descriptor out of the way of those a cell opens."""
    import fcntl

    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FLOOR)
    os.close(descriptor)
    return moved


# --- Landlock ------------------------------------------------------------------------------------------------

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


# --- seccomp -------------------------------------------------------------------------------------------------

# What a cell may not ask of the kernel: name: (x86_64, aarch64), None where there is no such call.
DENIED: dict[str, tuple[int | None, int | None]] = {
    # programs
    "execve": (59, 221), "execveat": (322, 281),
    # the network; a pair of Unix stream sockets stays, since asyncio needs one
    "socket": (41, 198), "connect": (42, 203), "accept": (43, 202), "accept4": (288, 242), "bind": (49, 200),
    "listen": (50, 201),
    # other processes: a cell could only hit its own ancestor
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "kcmp": (312, 272), "migrate_pages": (256, 238), "move_pages": (279, 239), "setsid": (112, 157),
    "setpgid": (109, 154), "setpriority": (141, 140), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setaffinity": (203, 122), "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
    # other users
    "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143),
    "setgroups": (116, 159), "setresuid": (117, 147), "setresgid": (119, 149), "setfsuid": (122, 151),
    "setfsgid": (123, 152), "capset": (126, 91), "personality": (135, 92),
    # what Landlock does not cover: modes, owners, times, attributes, special files
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "utimensat": (280, 88), "futimesat": (261, None), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "setxattrat": (463, 463), "removexattrat": (466, 466), "mknod": (133, None), "mknodat": (259, 33),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "inotify_init": (253, None),
    "inotify_init1": (294, 26), "inotify_add_watch": (254, 27),
    # mounts and namespaces
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "statmount": (457, 457), "listmount": (458, 458),
    # memory that no limit counts
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    # kernel interfaces with a history
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "seccomp": (317, 277), "fanotify_init": (300, 262), "modify_ldt": (154, None),
    "iopl": (172, None), "ioperm": (173, None),
    # the machine
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "sethostname": (170, 161), "setdomainname": (171, 162), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "acct": (163, 89), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "syslog": (103, 116), "vhangup": (153, 58),
}  # fmt: skip

# What the library lives without when it hears that there is no such thing: extended attributes.
UNSUPPORTED: dict[str, tuple[int | None, int | None]] = {
    "getxattr": (191, 8), "lgetxattr": (192, 9), "fgetxattr": (193, 10), "listxattr": (194, 11),
    "llistxattr": (195, 12), "flistxattr": (196, 13), "getxattrat": (464, 464), "listxattrat": (465, 465),
}  # fmt: skip

# Where Landlock knows nothing of truncating: this, and the ways to open that truncate without a right to write.
TRUNCATE_CALL, OPEN, OPENAT, OPENAT2 = (76, 45), (2, None), (257, 56), (437, 437)
O_TRUNC, NO_ACCESS = 0o1000, 3

CLONE, CLONE3, SOCKETPAIR, PRLIMIT, FCNTL, IOCTL_CALL = (
    (56, 220),
    (435, 435),
    (53, 199),
    (302, 261),
    (72, 25),
    (16, 29),
)
LAST_KNOWN_CALL = 466  # next came open_tree_attr, file_getattr and file_setattr
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
X32 = 0x40000000
UNIX_FAMILY, STREAM, SOCKET_TYPES = 1, 1, 0xF
F_SETOWN, F_SETSIG, F_SETOWN_EX = 8, 10, 15
TIOCSTI, SOCKET_REQUESTS, REQUEST_GROUP = 0x5412, 0x8900, 0xFFFFFF00
LOAD_WORD, JUMP_EQUAL, JUMP_GREATER, JUMP_ANY_BIT, AND, RETURN = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06
ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
EPERM, ENOSYS, ENOTSUP = 1, 38, 95
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16


def filter_calls() -> None:
    """From here on the kernel refuses the calls named above."""
    import ctypes
    import struct

    machine = os.uname().machine
    if machine not in ARCHITECTURES:
        raise Refused(f"no list of calls for {machine}")
    program = filter_program(*ARCHITECTURES[machine], may_truncate=landlock_truncates())
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    call("prctl", PR_SET_SECCOMP, 2, header, 0, 0)


def filter_program(
    column: int, architecture: int, *, may_truncate: bool = True
) -> list[tuple[int, int, int, int]]:
    """The filter as instructions (code, jump if true, jump if false, operand).

    Args:
        column: of the numbers above.
        architecture: as the kernel names it to a filter.
        may_truncate: something else, Landlock, decides about truncating.
    """
    lines = [
        (LOAD_WORD, 0, 0, ARCHITECTURE_AT),
        (JUMP_EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),
        (LOAD_WORD, 0, 0, NUMBER_AT),
        # A newer kernel's calls, and the other numbering of x86 (x32): as if this kernel did not have them.
        (JUMP_GREATER, 0, 1, LAST_KNOWN_CALL),
        (RETURN, 0, 0, ERROR | ENOSYS),
        # glibc then falls back to clone, whose flags can be looked at.
        (JUMP_EQUAL, 0, 1, CLONE3[column]),
        (RETURN, 0, 0, ERROR | ENOSYS),
    ]
    for table, error in ((DENIED, EPERM), (UNSUPPORTED, ENOTSUP)):
        for numbers in table.values():
            lines += _refuse(numbers[column], error)
    if not may_truncate:
        lines += _refuse(TRUNCATE_CALL[column], EPERM) + _refuse(OPENAT2[column], ENOSYS)
        # Opening to read, or for nothing at all, asks Landlock for no right to write.
        without_writing = [
            (AND, O_TRUNC | NO_ACCESS),
            (JUMP_EQUAL, O_TRUNC),
            (JUMP_EQUAL, O_TRUNC | NO_ACCESS),
        ]
        for number, argument in ((OPEN[column], 1), (OPENAT[column], 2)):
            if number is not None:
                lines += _by_argument(number, argument, without_writing, refuse=True)
    namespaces = NEW_NAMESPACES | CLONE_NEWTIME | CLONE_NEWCGROUP
    lines += _by_argument(CLONE[column], 0, [(JUMP_ANY_BIT, namespaces)], refuse=True)
    lines += _stream_pairs_only(SOCKETPAIR[column])
    lines += _by_argument(PRLIMIT[column], 0, [(JUMP_EQUAL, 0)], refuse=False)
    lines += _by_argument(
        FCNTL[column], 1, [(JUMP_EQUAL, value) for value in (F_SETOWN, F_SETSIG, F_SETOWN_EX)], refuse=True
    )
    lines += _by_argument(
        IOCTL_CALL[column],
        1,
        [(JUMP_EQUAL, TIOCSTI), (AND, REQUEST_GROUP), (JUMP_EQUAL, SOCKET_REQUESTS)],
        refuse=True,
    )
    return [*lines, (RETURN, 0, 0, ALLOW)]


def _refuse(number: int | None, error: int) -> list[tuple[int, int, int, int]]:
    return [] if number is None else [(JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, ERROR | error)]


def _stream_pairs_only(number: int) -> list[tuple[int, int, int, int]]:
    """Allow pairs of Unix stream sockets; from one end of another pair a cell could send to any socket's path."""
    body = [
        (LOAD_WORD, 0, 0, ARGUMENTS_AT),
        (JUMP_EQUAL, 0, 4, UNIX_FAMILY),
        (LOAD_WORD, 0, 0, ARGUMENTS_AT + 8),
        (AND, 0, 0, SOCKET_TYPES),
        (JUMP_EQUAL, 0, 1, STREAM),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, ERROR | EPERM),
    ]
    return [(JUMP_EQUAL, 0, len(body), number), *body]


def _by_argument(
    number: int, argument: int, tests: list[tuple[int, int]], *, refuse: bool
) -> list[tuple[int, int, int, int]]:
    """Decide about one call by the lower half of one of its arguments: refuse it when a test holds, or unless.

    A test (AND, mask) leaves the tests after it only those bits.
    """
    first, last = (ERROR | EPERM, ALLOW) if refuse else (ALLOW, ERROR | EPERM)
    body = [(LOAD_WORD, 0, 0, ARGUMENTS_AT + 8 * argument)]
    for code, operand in tests:
        body += [(AND, 0, 0, operand)] if code == AND else [(code, 0, 1, operand), (RETURN, 0, 0, first)]
    body.append((RETURN, 0, 0, last))
    return [(JUMP_EQUAL, 0, len(body), number), *body]


# --- looking after processes and folders ---------------------------------------------------------------------


def descendants(pid: int) -> list[int]:
    """Every process that descends from this one, where the platform tells."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        try:
            threads = os.listdir(f"/proc/{parent}/task")  # noqa: PTH208 - no pathlib here
        except OSError:
            continue
        for thread in threads:
            with contextlib.suppress(OSError), open(f"/proc/{parent}/task/{thread}/children", "rb") as file:  # noqa: PTH123
                children = [int(child) for child in file.read().split()]
                found += children
                waiting += children
    return found


def crowd(pid: int, spared: set[int]) -> int:
    """How many threads and processes descend from this one, besides those of some processes.

    Its own children that have ended are taken note of first; others that have ended still take a number.
    """
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    count = 0
    for descendant in descendants(pid):
        if descendant not in spared:
            with contextlib.suppress(OSError):
                count += len(os.listdir(f"/proc/{descendant}/task"))  # noqa: PTH208 - no pathlib here
    return count


def is_zombie(pid: int) -> bool:
    """Whether a process has ended and only waits to be noticed."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - no pathlib here
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True


def empty_folder(folder: str) -> None:
    """Remove all that is in a folder, as far as this user may.

    Whoever fills the folder may go on while it is emptied, so nothing in it is ever reached by a path: a link that
    takes a folder's place leads nowhere. What lies deeper is moved to the top first, which needs two descriptors
    and no path, however deep it goes.
    """
    with contextlib.suppress(OSError):
        top = _open_folder(folder)
        try:
            for _ in range(EMPTYING_ROUNDS):
                waiting = os.listdir(top)  # noqa: PTH208 - a descriptor
                while waiting:
                    with contextlib.suppress(OSError):
                        waiting += _remove_or_raise(waiting.pop(), top)
        finally:
            os.close(top)


def _remove_or_raise(name: str, top: int) -> list[str]:
    """Remove an entry of the folder `top`; the new names there of the folders that were in it."""
    if not _is_folder(name, top):
        os.unlink(name, dir_fd=top)
        return []
    raised: list[str] = []
    folder = _open_folder(name, top)
    try:
        for inner in os.listdir(folder):  # noqa: PTH208 - a descriptor
            with contextlib.suppress(OSError):
                if not _is_folder(inner, folder):
                    os.unlink(inner, dir_fd=folder)
                    continue
                os.close(_open_folder(inner, folder))  # to move a folder one must be allowed to write to it
                fresh = os.urandom(16).hex()
                os.rename(inner, fresh, src_dir_fd=folder, dst_dir_fd=top)
                raised.append(fresh)
    finally:
        os.close(folder)
    with contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=top)
    return raised


def _is_folder(name: str, parent: int) -> bool:
    import stat

    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


def _open_folder(name: str, parent: int | None = None) -> int:
    """A descriptor of a folder, no link, which its owner may read and change from now on."""
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(name, os.O_RDONLY | flags, dir_fd=parent)
    except PermissionError:
        if sys.platform != "linux":
            os.chmod(name, OWN_ALL, dir_fd=parent, follow_symlinks=False)
        else:
            unread = os.open(name, os.O_PATH | flags, dir_fd=parent)
            try:
                os.chmod(f"/proc/self/fd/{unread}", OWN_ALL)  # noqa: PTH101 - Linux has no chmod that follows no link
            finally:
                os.close(unread)
        descriptor = os.open(name, os.O_RDONLY | flags, dir_fd=parent)
    with contextlib.suppress(OSError):
        if os.fstat(descriptor).st_mode & OWN_ALL != OWN_ALL:
            os.fchmod(descriptor, OWN_ALL)
    return descriptor


def is_overfull(folder: str, most_bytes: int) -> bool:
    """Whether what a folder holds takes more bytes on disk, or is more entries, than it may.

    What cannot be counted is too much: a folder that cannot be read, and one too deep to go into.
    """
    waiting: list[tuple[int, list[str]]] = []
    total = entries = 0
    try:
        waiting.append(_counted_folder(folder))
        while waiting:
            parent, names = waiting[-1]
            if not names:
                os.close(waiting.pop()[0])
                continue
            entries += 1
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # it was there a moment ago
                name = names.pop()
                if _is_folder(name, parent):
                    waiting.append(_counted_folder(name, parent))
                else:
                    total += 512 * os.stat(name, dir_fd=parent, follow_symlinks=False).st_blocks
            if total > most_bytes or entries > most_entries(most_bytes) or len(waiting) > DEEPEST:
                return True
    except OSError:
        return True
    finally:
        for descriptor, _ in waiting:
            os.close(descriptor)
    return False


def _counted_folder(name: str, parent: int | None = None) -> tuple[int, list[str]]:
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        return descriptor, os.listdir(descriptor)  # noqa: PTH208 - a descriptor
    except OSError:
        os.close(descriptor)
        raise
