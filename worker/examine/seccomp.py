"""A seccomp filter (seccomp(2)): system calls that no decoder needs fail with EPERM, in all threads and for good.

It lists what is refused, not what is allowed: which calls libc, NumPy, DALI and CUDA make changes with their versions,
what a decoder must never do does not. No connections, no programs, no files opened for writing, no other's processes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from worker.examine import kernel

# Numbers on x86_64 and aarch64 (None: there is no such call there).
_REFUSED: dict[str, tuple[int | None, int]] = {
    # connections
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    # programs and other processes
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "kcmp": (312, 272),
    # the file system
    "truncate": (76, 45),
    "mknodat": (259, 33),
    "mkdirat": (258, 34),
    "unlinkat": (263, 35),
    "symlinkat": (266, 36),
    "linkat": (265, 37),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "fchownat": (260, 54),
    "fchown": (93, 55),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "quotactl": (179, 60),
    # namespaces and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    # ways around a filter, and parts of the kernel with a history
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "personality": (135, 92),
    # the machine
    "reboot": (169, 142),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "syslog": (103, 116),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
}
# Calls that only x86_64 has.
_OLD = {
    "fork": 57,
    "vfork": 58,
    "creat": 85,
    "mknod": 133,
    "mkdir": 83,
    "rmdir": 84,
    "unlink": 87,
    "symlink": 88,
    "link": 86,
    "rename": 82,
    "chmod": 90,
    "chown": 92,
    "lchown": 94,
    "utime": 132,
    "utimes": 235,
    "futimesat": 261,
    "iopl": 172,
    "ioperm": 173,
    "kexec_file_load": 320,
    "modify_ldt": 154,
    "uselib": 134,
}
# Calls that are refused by what they are given; `open` is x86_64's alone.
_JUDGED = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "kill": (62, 129),
    "tgkill": (234, 131),
    "open": (2, -1),
    "openat": (257, 56),
    "openat2": (437, 437),
}
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000  # the third set of calls on x86_64

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_CLONE_THREAD = 0x10000
_FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_SET_MODE_FILTER, _ALL_THREADS = 1, 1

Step = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def restrict(*, may_open_for_writing: bool) -> None:
    """Put the filter in force. Raises OSError where the kernel refuses it, or the machine is not known here."""
    steps = filter_steps(kernel.MACHINE, os.getpid(), may_open_for_writing=may_open_for_writing)
    packed = b"".join(struct.pack("=HBBI", *step) for step in steps)
    kernel.no_new_privileges()
    kernel.seccomp(_SET_MODE_FILTER, _ALL_THREADS, ctypes.byref(_Program(len(steps), packed)))


def filter_steps(machine: str, pid: int, *, may_open_for_writing: bool) -> list[Step]:
    """The program for a process of that number (bpf(4)). Raises OSError for a machine that is not known here."""
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no filter for {machine}")
    column = 0 if machine == "x86_64" else 1
    refused = _return(_ERRNO | errno.EPERM)
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        _return(_KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    if column == 0:
        steps += [(_AT_LEAST, 0, 1, _X32), refused]
    numbers = [call[column] for call in _REFUSED.values()] + (list(_OLD.values()) if column == 0 else [])
    for number in numbers:
        if number is not None:
            steps += [(_EQUAL, 0, 1, number), refused]
    verdicts = {
        # Threads are made by clone(2); libc falls back on it where clone3, whose flags no filter can see, is missing.
        "clone": [_argument(0), (_ANY_BIT, 1, 0, _CLONE_THREAD), refused, _return(_ALLOW)],
        "clone3": [_return(_ERRNO | errno.ENOSYS)],
        "kill": [_argument(0), (_EQUAL, 1, 0, pid), refused, _return(_ALLOW)],
        "tgkill": [_argument(0), (_EQUAL, 1, 0, pid), refused, _return(_ALLOW)],
    }
    if not may_open_for_writing:
        verdicts["openat"] = [_argument(2), (_ANY_BIT, 0, 1, _FOR_WRITING), refused, _return(_ALLOW)]
        verdicts["openat2"] = [_return(_ERRNO | errno.ENOSYS)]
        if column == 0:
            verdicts["open"] = [_argument(1), (_ANY_BIT, 0, 1, _FOR_WRITING), refused, _return(_ALLOW)]
    for name, verdict in verdicts.items():
        steps += [(_EQUAL, 0, len(verdict), _JUDGED[name][column]), *verdict]
    return [*steps, _return(_ALLOW)]


def _argument(index: int) -> Step:
    """Load the lower half of that argument (both machines are little-endian)."""
    return (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index)


def _return(action: int) -> Step:
    return (_RETURN, 0, 0, action)
