"""file:// references: regular files below the allowed folders, links resolved, without a moment between check and use.

The path is opened with O_PATH first, which neither waits for a FIFO nor wakes a device; the kernel then says what was
opened, and only that very descriptor is read. A link swapped in between changes nothing.

Use:  read_file(target, roots, collect)
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from worker.clients.fetch_body import Collect
from worker.clients.fetch_uri import FileTarget
from worker.errors import Rejected, RejectReason, Unavailable
from worker.settings import variable

_CHUNK_BYTES = 256 * 1024
# This object's own fault; anything else (EIO, ESTALE, EMFILE, …) is the storage's or ours.
_OBJECT_ERRORS = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EACCES,
        errno.EPERM,
        errno.ENXIO,
        errno.EINVAL,
    }
)


def read_file(target: FileTarget, roots: Sequence[str], collect: Collect) -> bytes:
    """The file's bytes. Raises Rejected(fetch_denied, fetch_failed, too_large), or Unavailable when a root is gone or
    the disk fails.
    """
    try:
        handle = os.open(target.path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        # Whether something exists outside of the roots is nobody's business: that is denied either way.
        raise _failure(error, _root_above(os.path.realpath(target.path), roots)) from error
    try:
        where = b"/proc/self/fd/%d" % handle
        root = _root_above(os.readlink(where), roots)  # noqa: PTH115 - a path of bytes, as the kernel has it
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise Rejected(RejectReason.FETCH_FAILED, "the path names no regular file", stage="intake")
        try:
            readable = os.open(where, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise _failure(error, root) from error
        try:
            return collect(_chunks(readable), status.st_size)
        except OSError as error:
            raise _failure(error, root) from error
        finally:
            os.close(readable)
    finally:
        os.close(handle)


def _chunks(descriptor: int) -> Iterator[bytes]:
    while chunk := os.read(descriptor, _CHUNK_BYTES):
        yield chunk


def _root_above(real_path: bytes, roots: Sequence[str]) -> str:
    for root in roots:
        if real_path.startswith(os.path.realpath(os.fsencode(root)).rstrip(b"/") + b"/"):
            return root
    detail = f"the path is not below an allowed folder; {variable('references', 'file_roots')} allows one"
    raise Rejected(RejectReason.FETCH_DENIED, detail, stage="intake")


def _failure(error: OSError, root: str) -> Rejected | Unavailable:
    if not Path(root).is_dir():
        return Unavailable("storage", f"the folder {root} is not there; is it mounted?")
    if error.errno in _OBJECT_ERRORS:
        return Rejected(RejectReason.FETCH_FAILED, f"the file cannot be read: {error.strerror}", stage="intake")
    return Unavailable("storage", f"the disk below {root} fails: {error.strerror}")
