"""Regions of POSIX shared memory that a killed worker does not leave behind for ever.

The maker holds a lock on a region for as long as it lives, and whoever starts next removes what nobody holds. The
process id would not do as a sign of life: in a container it is 1 each time, while the memory that a pod shares outlives
its containers. Where no server shares the host, a region has no name: only this process and its children see it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import weakref
from collections import deque
from pathlib import Path

import numpy as np

from worker.crop import CROP_PX, Pixels

FOLDER = Path("/dev/shm")  # noqa: S108  # where Linux keeps POSIX shared memory
PREFIX = "assay-"
_SEALS = 0x2 | 0x4 | 0x1  # F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_SEAL (linux/fcntl.h)


def sealed_memory(name: str, size_bytes: int) -> int:
    """The descriptor of nameless memory that keeps its size: whoever maps it too must not cut it short under us."""
    file = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(file, size_bytes)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
    return file


class Region:
    """`capacity_bytes` of shared memory. Raises OSError where there are none to give, at once and not when they are
    written.
    """

    def __init__(self, capacity_bytes: int, folder: Path | None = FOLDER) -> None:
        self.capacity_bytes = capacity_bytes
        self._path: Path | None = None
        self.name = ""
        if folder is None:
            self.file = sealed_memory("assay-pixels", capacity_bytes)
        else:
            self.name, self.file = _held(folder)
            self._path = folder / self.name
        try:
            if folder is not None:  # a sparse region would end the process by SIGBUS when the folder's memory is full
                os.posix_fallocate(self.file, 0, capacity_bytes)
            self._map = mmap.mmap(self.file, capacity_bytes)
        except OSError:
            self.unlink()
            os.close(self.file)
            raise
        weakref.finalize(self, os.close, self.file)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._address: int = self._bytes.__array_interface__["data"][0]

    def fill(self, pixels: Pixels) -> None:
        """Copy `pixels`, uint8 of at most `capacity_bytes`, to the beginning."""
        np.ndarray(pixels.shape, np.uint8, buffer=self._map)[...] = pixels

    def rows(self, size_px: tuple[int, int]) -> Pixels:
        """All of it as crops or views of that height and width, uint8 [N, H, W, 3]."""
        height, width = size_px
        count = self.capacity_bytes // (height * width * 3)
        return self._bytes[: count * height * width * 3].reshape(count, height, width, 3)

    def offset_of(self, pixels: Pixels) -> int | None:
        """Where `pixels` begin, bytes from the region's own beginning; None where they do not lie in it."""
        offset: int = pixels.__array_interface__["data"][0] - self._address
        within = 0 <= offset <= self.capacity_bytes - pixels.nbytes
        return offset if within and pixels.flags.c_contiguous else None

    def unlink(self) -> None:
        """Take the name away; the memory goes once nobody maps it."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


class RegionLease:
    """A region that one batch has, until it is released."""

    def __init__(self, index: int, pixels: Pixels, free: deque[int]) -> None:
        self.index = index
        self.pixels = pixels
        self._free = free

    def release(self) -> None:
        """Nobody reads `pixels` any more. Any thread may say so, once."""
        self._free.append(self.index)


class Regions:
    """The regions that decoded batches travel in, `batch_max_items` crops each."""

    def __init__(
        self, count: int, batch_max_items: int, folder: Path | None, size_px: tuple[int, int] = (CROP_PX, CROP_PX)
    ) -> None:
        """`folder`: where a server on this host finds them; None for none. `size_px`: height and width of a row.

        Raises OSError where there is no space.
        """
        self._size_px = size_px
        row_bytes = size_px[0] * size_px[1] * 3
        self.all: list[Region] = []
        try:
            for _ in range(count):
                self.all.append(Region(batch_max_items * row_bytes, folder))
        except OSError:
            self.unlink()
            raise
        self.rows = batch_max_items
        self._free = deque(range(count))

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self) -> RegionLease:
        """One that is free; there is one, or the caller has a defect (IndexError)."""
        index = self._free.popleft()
        return RegionLease(index, self.all[index].rows(self._size_px), self._free)

    def unlink(self) -> None:
        """Take their names away."""
        for region in self.all:
            region.unlink()


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
