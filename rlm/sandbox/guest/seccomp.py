"""seccomp: the kernel refuses this process, and all it will start, the system calls named here.

Prevents: sockets of any family except connected pairs of streams; starting programs; signalling, tracing or reading
other processes; changing priorities, modes, owners, times, attributes; new namespaces and mounts; io_uring, bpf,
keyctl and other interfaces with a history of kernel bugs; system calls that are newer than this list.
Remains: the system calls that Python needs, with any bug of the kernel that they reach. The filter sees the numbers of
a call, not the memory that they point to, so it knows no paths: those are Landlock's part.
"""

from __future__ import annotations

import os

from .libc import CLONE_NEWCGROUP, CLONE_NEWTIME, NEW_NAMESPACES, PR_SET_SECCOMP, LibcError, call

__all__ = ["filter_calls", "filter_program"]


# Refused with EPERM. Name: (number on x86_64, on aarch64), None where there is no such call.
DENIED: dict[str, tuple[int | None, int | None]] = {
    # programs
    "execve": (59, 221), "execveat": (322, 281),
    # the network; a pair of Unix stream sockets stays, since asyncio needs one
    "socket": (41, 198), "connect": (42, 203), "accept": (43, 202), "accept4": (288, 242), "bind": (49, 200),
    "listen": (50, 201),
    # other processes: without namespaces, all of the same user; with them, the checkpoint of this session
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
    "mq_open": (240, 180), "mq_unlink": (241, 181), "io_setup": (206, 0),
    # System V objects of the same user, made by the host
    "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
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
# Refused with ENOTSUP, which the standard library takes for a file system without extended attributes.
UNSUPPORTED: dict[str, tuple[int | None, int | None]] = {
    "getxattr": (191, 8), "lgetxattr": (192, 9), "fgetxattr": (193, 10), "listxattr": (194, 11),
    "llistxattr": (195, 12), "flistxattr": (196, 13), "getxattrat": (464, 464), "listxattrat": (465, 465),
}  # fmt: skip
# Refused where Landlock does not handle truncation: this call, and opening with O_TRUNC without a right to write.
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
UNIX_FAMILY, STREAM, SOCKET_TYPES = 1, 1, 0xF
# Signals to other processes; leases and notification, which slow or watch others' use of a file.
F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY = 8, 10, 15, 1024, 1026
TIOCSTI, SOCKET_REQUESTS, REQUEST_GROUP = 0x5412, 0x8900, 0xFFFFFF00
# Attributes of files, in the two sizes of the first request.
FS_IOC_SETFLAGS, FS_IOC32_SETFLAGS, FS_IOC_FSSETXATTR = 0x40086602, 0x40046602, 0x401C5820
LOAD_WORD, JUMP_EQUAL, JUMP_GREATER, JUMP_ANY_BIT, AND, RETURN = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06
ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
EPERM, ENOSYS, ENOTSUP = 1, 38, 95
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16


def filter_calls(*, may_truncate: bool) -> None:
    """Install the filter, for good.

    Args:
        may_truncate: Landlock decides about truncation, so the filter need not.

    Raises:
        LibcError: there are no numbers for this machine, or the kernel has no filters.
    """
    import ctypes
    import struct

    machine = os.uname().machine
    if machine not in ARCHITECTURES:
        raise LibcError(f"no list of calls for {machine}")
    program = filter_program(*ARCHITECTURES[machine], may_truncate=may_truncate)
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    call("prctl", PR_SET_SECCOMP, 2, header, 0, 0)


def filter_program(
    column: int, architecture: int, *, may_truncate: bool = True
) -> list[tuple[int, int, int, int]]:
    """Return the filter as BPF instructions: (code, jump if true, jump if false, operand).

    Args:
        column: index into the pairs of numbers above.
        architecture: the kernel's number of it (AUDIT_ARCH_…).
        may_truncate: as in `filter_calls`.
    """
    lines = [
        (LOAD_WORD, 0, 0, ARCHITECTURE_AT),
        (JUMP_EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),  # the numbers of another architecture mean other calls
        (LOAD_WORD, 0, 0, NUMBER_AT),
        # Calls that are newer than the list, and the x32 numbering of x86-64, which is higher than all of it.
        (JUMP_GREATER, 0, 1, LAST_KNOWN_CALL),
        (RETURN, 0, 0, ERROR | ENOSYS),
        # Its flags are in memory, which a filter cannot read. glibc then uses clone, whose flags are an argument.
        (JUMP_EQUAL, 0, 1, CLONE3[column]),
        (RETURN, 0, 0, ERROR | ENOSYS),
    ]
    for table, error in ((DENIED, EPERM), (UNSUPPORTED, ENOTSUP)):
        for numbers in table.values():
            lines += _refuse(numbers[column], error)
    if not may_truncate:
        lines += _refuse(TRUNCATE_CALL[column], EPERM) + _refuse(OPENAT2[column], ENOSYS)
        # Opened to read, or without access, a file is truncated by its mode alone: Landlock is asked for no write.
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
        FCNTL[column],
        1,
        [(JUMP_EQUAL, value) for value in (F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY)],
        refuse=True,
    )
    lines += _by_argument(
        IOCTL_CALL[column],
        1,
        [
            *(
                (JUMP_EQUAL, value)
                for value in (TIOCSTI, FS_IOC_SETFLAGS, FS_IOC32_SETFLAGS, FS_IOC_FSSETXATTR)
            ),
            (AND, REQUEST_GROUP),
            (JUMP_EQUAL, SOCKET_REQUESTS),
        ],
        refuse=True,
    )
    return [*lines, (RETURN, 0, 0, ALLOW)]


def _refuse(number: int | None, error: int) -> list[tuple[int, int, int, int]]:
    return [] if number is None else [(JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, ERROR | error)]


def _stream_pairs_only(number: int) -> list[tuple[int, int, int, int]]:
    """Allow pairs of Unix stream sockets, which asyncio needs.

    A datagram socket of a pair can send to the path of any other socket; a stream socket only to its peer.
    """
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
    """Decide about one call by the lower 32 bits of one argument.

    Args:
        number: of the call.
        argument: index of the argument.
        tests: (jump code, operand) each; (AND, mask) keeps only those bits for the tests after it.
        refuse: refuse the call if a test holds, and allow it otherwise; or the other way round.
    """
    first, last = (ERROR | EPERM, ALLOW) if refuse else (ALLOW, ERROR | EPERM)
    body = [(LOAD_WORD, 0, 0, ARGUMENTS_AT + 8 * argument)]
    for code, operand in tests:
        body += [(AND, 0, 0, operand)] if code == AND else [(code, 0, 1, operand), (RETURN, 0, 0, first)]
    body.append((RETURN, 0, 0, last))
    return [(JUMP_EQUAL, 0, len(body), number), *body]
