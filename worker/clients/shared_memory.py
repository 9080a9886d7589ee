"""Regions of POSIX shared memory that a killed worker does not leave behind for ever.

The maker holds a lock on a region for as long as it lives, and whoever starts next removes what nobody holds. The
process
id would not do as a sign of life: in a container it is 1 each time, while the memory that a pod shares outlives its
containers.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
from pathlib import Path

import numpy as np

from worker.item import Pixels

FOLDER = Path("/dev/shm")  # noqa: S108  # where Linux keeps POSIX shared memory
PREFIX = "assay-"


class Region:
    """`capacity_bytes` of shared memory. Raises OSError where there are none to give, at once and not when they are
    written.
    """

    def __init__(self, capacity_bytes: int, folder: Path = FOLDER) -> None:
        self.capacity_bytes = capacity_bytes
        self.name, file = _held(folder)
        self._path = folder / self.name
        try:
            os.posix_fallocate(
                file, 0, capacity_bytes
            )  # a sparse region would end the process by SIGBUS when the memory is full
            self._map = mmap.mmap(file, capacity_bytes)  # keeps the lock, too
        except OSError:
            self._path.unlink()
            raise
        finally:
            os.close(file)

    def fill(self, pixels: Pixels) -> None:
        """Copy `pixels`, uint8 of at most `capacity_bytes`, to the beginning."""
        np.ndarray(pixels.shape, np.uint8, buffer=self._map)[...] = pixels

    def unlink(self) -> None:
        """Take the name away; the memory goes once nobody maps it."""
        self._path.unlink(missing_ok=True)


def _held(folder: Path) -> tuple[str, int]:
    """A new file below `folder` and its descriptor, locked before anyone could take it for a leftover."""
    while True:
        name = f"{PREFIX}{secrets.token_hex(6)}"
        file = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_SH)
        if os.fstat(file).st_nlink:
            return name, file
        os.close(file)  # it was taken for one


def remove_leftovers(folder: Path = FOLDER) -> None:
    """Unlink the regions whose maker is dead; those of others' users are left to them."""
    for path in folder.glob(f"{PREFIX}*"):
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            path.unlink(missing_ok=True)
        finally:
            os.close(file)


def is_gone(name: str, folder: Path = FOLDER) -> bool:
    """Is this a region of ours that has no file any more? Its memory is freed once nobody maps it."""
    return name.startswith(PREFIX) and not (folder / name).exists()
