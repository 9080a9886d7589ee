"""System calls that Python has no function for, through libc's syscall(2)."""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Any

LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446  # on every machine
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_PR_SET_NO_NEW_PRIVS = 38
MACHINE = platform.machine()

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def call(number: int, *arguments: Any) -> int:
    """The call's result. Raises OSError."""
    return _checked(_libc.syscall(ctypes.c_long(number), *(_argument(argument) for argument in arguments)))


def no_new_privileges() -> None:
    """No program that this process might start gains rights by it (prctl(2)); for good. Raises OSError."""
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, *(ctypes.c_ulong(value) for value in (1, 0, 0, 0))))


def seccomp(operation: int, flags: int, argument: Any) -> int:
    """One operation of the filters of system calls. Raises OSError; ENOSYS on a machine that is not known here."""
    if MACHINE not in _SECCOMP:
        raise OSError(38, f"no filter for {MACHINE}")
    return call(_SECCOMP[MACHINE], operation, flags, argument)


def _argument(value: Any) -> Any:
    return ctypes.c_long(value) if isinstance(value, int) else value


def _checked(result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
