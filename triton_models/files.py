"""Files and folders that appear whole or not at all: killed at any moment, a name holds what it held or what is new.

with replacing(path) as partial:      # a file: write `partial`, it takes the place of `path` at the end
    partial.write_bytes(data)
exchange(draft, folder)               # two folders, in one step
"""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new name beside `path`, which is made with its folders; what the block writes there takes the place of `path`.

    Of a block that fails nothing stays, and `path` is as before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def exchange(one: Path, other: Path) -> None:
    """Swap two folders in one step: killed at any moment, both names hold something whole. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), str(one), None, str(other))
    exchange_in_steps(one, other)


def exchange_in_steps(one: Path, other: Path) -> None:
    """The same in three renames, where the file system knows no exchange (NFS): only a kill between them leaves a name
    empty.
    """
    aside = Path(tempfile.mkdtemp(prefix=f".{other.name}.aside.", dir=other.parent))
    other.rename(aside)
    try:
        one.rename(other)
    except OSError:
        aside.rename(other)
        raise
    aside.rename(one)
