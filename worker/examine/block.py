"""A child's block of shared memory: encoded images in, findings out, and which image is in hand right now.

The worker reads the last after a child has died or when it takes long, so it stands in memory that outlives the child.
Whatever a child may have written is taken for what a stranger wrote: bounded, and never more than data.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence
from enum import IntEnum

import numpy as np

from worker.clients.shared_memory import sealed_memory
from worker.crop import CROP_PX, Pixels

MAX_IMAGES = 256
FINDINGS_BYTES = 4 << 20
_STEP = struct.Struct("<QI")  # counts up with each step; how long it may take (ms)
_STATES_AT = 64
_FINDINGS_AT = 4096
_CROP_AT = _FINDINGS_AT + FINDINGS_BYTES
# Memory of large images is given back; that of usual ones stays, because making pages costs more than copying them.
_KEPT_BYTES = 8 << 20


class State(IntEnum):
    """How far a child is with an image."""

    WAITING = 0
    IN_HAND = 1
    DONE = 2


class Block:
    """Mapped by the worker (which makes it) and by one child. Offsets of images count from their area's beginning."""

    def __init__(self, file: int, capacity_bytes: int, size_px: tuple[int, int] = (CROP_PX, CROP_PX)) -> None:
        self.capacity_bytes = capacity_bytes
        self.file = file
        self._size_px = size_px
        self._images_at = _images_at(size_px)
        self._map = mmap.mmap(file, self._images_at + capacity_bytes)
        self._images = memoryview(self._map)[self._images_at :]

    @classmethod
    def make(cls, capacity_bytes: int, size_px: tuple[int, int] = (CROP_PX, CROP_PX)) -> Block:
        """A new one that holds `capacity_bytes` of images, and pixels of `size_px` (height, width) of one of them.

        Pages are taken when they are first written.
        """
        return cls(sealed_memory("assay-examine", _images_at(size_px) + capacity_bytes), capacity_bytes, size_px)

    def close(self) -> None:
        """The memory goes once nobody maps it."""
        self._images.release()
        os.close(self.file)

    # The worker's side.

    def load(self, images: Sequence[bytes]) -> list[tuple[int, int]]:
        """Put `images` in, one behind the other; (offset, size) of each. They fit, or the caller has a defect."""
        self._map[_STATES_AT : _STATES_AT + len(images)] = bytes(len(images))
        places: list[tuple[int, int]] = []
        offset = 0
        for data in images:
            self._images[offset : offset + len(data)] = data
            places.append((offset, len(data)))
            offset += len(data)
        return places

    def unload(self, used_bytes: int) -> None:
        """Give the memory of large images back to the system."""
        if used_bytes > _KEPT_BYTES:
            start = self._images_at + _KEPT_BYTES
            self._map.madvise(mmap.MADV_REMOVE, start, -(-used_bytes // mmap.PAGESIZE) * mmap.PAGESIZE - _KEPT_BYTES)

    def step(self) -> tuple[int, int]:
        """The step under way: its number, and the milliseconds that the child allows itself for it."""
        number, allowed_ms = _STEP.unpack_from(self._map)
        return number, allowed_ms

    def states(self, count: int) -> list[State]:
        """Of the first `count` images of the job."""
        found = self._map[_STATES_AT : _STATES_AT + count]
        return [State(value) if value in (State.IN_HAND, State.DONE) else State.WAITING for value in found]

    def findings(self, size_bytes: int) -> bytes:
        """What the child has written there."""
        return self._map[_FINDINGS_AT : _FINDINGS_AT + min(size_bytes, FINDINGS_BYTES)]

    # The child's side.

    def image(self, offset: int, size_bytes: int) -> bytes:
        """A copy of an encoded image."""
        return bytes(self._images[offset : offset + size_bytes])

    def begin(self, images: Sequence[int], allowed_ms: float) -> None:
        """These images of the job are in hand from now on, for so long at most."""
        for index in images:
            self._map[_STATES_AT + index] = State.IN_HAND
        number, _ = _STEP.unpack_from(self._map)
        _STEP.pack_into(self._map, 0, number + 1, min(int(allowed_ms), 2**32 - 1))

    def end(self, images: Sequence[int]) -> None:
        """These are in hand no longer."""
        for index in images:
            self._map[_STATES_AT + index] = State.DONE

    def store(self, findings: bytes) -> None:
        """Leave the findings of a job, FINDINGS_BYTES at most."""
        self._map[_FINDINGS_AT : _FINDINGS_AT + len(findings)] = findings

    # Both.

    def crop(self) -> Pixels:
        """Place for the pixels of one image whose batch has gone on without it, uint8 [1, H, W, 3]."""
        return np.ndarray((1, *self._size_px, 3), np.uint8, self._map, _CROP_AT)


def _images_at(size_px: tuple[int, int]) -> int:
    """Where encoded images begin: behind the place for pixels, on a page of their own."""
    height, width = size_px
    return _CROP_AT + -(-height * width * 3 // mmap.PAGESIZE) * mmap.PAGESIZE
