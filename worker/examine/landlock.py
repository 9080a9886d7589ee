"""Landlock (landlock(7)): what this process may open from now on, and that it may connect to nothing. No privileges.

Only the calling thread and what it starts later are bound: call it before any other thread is there.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from worker.examine import kernel

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE, _IOCTL_DEV = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
_ALL_FS = (1 << 16) - 1
_FS_BITS = {1: 13, 2: 14, 3: 15, 4: 15}  # how many rights a version of the interface knows; 16 from version 5 on
_NET = 1 << 0 | 1 << 1  # bind and connect of TCP, from version 4 on
_SCOPED = 1 << 0 | 1 << 1  # abstract Unix sockets and signals to others, from version 6 on
_ASK_VERSION = 1
_PATH_BENEATH = 1


def version() -> int:
    """Of the kernel's interface. Raises OSError where it has none, or where it was not switched on."""
    return kernel.call(kernel.LANDLOCK_CREATE_RULESET, None, 0, _ASK_VERSION)


def restrict(readable: Iterable[Path], writable: Iterable[Path]) -> int:
    """Leave this process reading beneath `readable` and, beside that, writing beneath `writable`; nothing is executed.

    The version of the interface that is in force. Raises OSError.
    """
    known = version()
    fs = _ALL_FS & ((1 << _FS_BITS.get(known, 16)) - 1)
    attributes = struct.pack("QQQ", fs, _NET, _SCOPED)[: 8 if known < 4 else 16 if known < 6 else 24]
    ruleset = kernel.call(kernel.LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for path in readable:
            _allow(ruleset, path, fs & (_READ_FILE | _READ_DIR))
        for path in writable:
            _allow(ruleset, path, fs & (_READ_FILE | _READ_DIR | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV))
        kernel.no_new_privileges()
        kernel.call(kernel.LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return known


def _allow(ruleset: int, path: Path, rights: int) -> None:
    with suppress(FileNotFoundError, PermissionError, NotADirectoryError):  # what is not there needs no rule
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(place).st_mode):
                rights &= ~_READ_DIR
            rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, place))
            kernel.call(kernel.LANDLOCK_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
        finally:
            os.close(place)
