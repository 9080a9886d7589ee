"""Images on their way through the pool, and the batches that they came in: who is done, and who went on alone.

Pixels of a batch lie in its region from the start, image i in row i; where some fail or leave, the rest move together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from worker.clients.shared_memory import RegionLease
from worker.crop import CROP_PX, Pixels
from worker.errors import Rejected
from worker.examine.findings import Cost, Examined, Findings
from worker.examine.wire import Route

T = TypeVar("T")
NO_PIXELS: Pixels = np.empty((0, CROP_PX, CROP_PX, 3), np.uint8)


@dataclass(slots=True, eq=False)
class Image(Generic[T]):
    """One image. `batch`: where it belongs, None once it travels alone. `alone`: it must have a child to itself."""

    token: T
    data: bytes
    batch: Batch[T] | None
    row: int
    cost: Cost | None = None
    alone: bool = False
    attempts: int = 0
    route: Route = "here"


class Batch(Generic[T]):
    """What was submitted together and has not left."""

    def __init__(self, pairs: Sequence[tuple[T, bytes]], lease: RegionLease) -> None:
        self.lease = lease
        self.images = [Image(token, data, self, row) for row, (token, data) in enumerate(pairs)]
        self._good: dict[int, Findings] = {}
        self._bad: dict[int, Rejected] = {}
        self._left = len(self.images)

    @property
    def is_done(self) -> bool:
        return self._left == 0

    def settle(self, image: Image[T], outcome: Findings | Rejected) -> None:
        """This image is done."""
        self._left -= 1
        if isinstance(outcome, Findings):
            self._good[image.row] = outcome
        else:
            self._bad[image.row] = outcome

    def leave(self, image: Image[T]) -> None:
        """This image goes on alone; the batch does not wait for it."""
        image.batch = None
        self._left -= 1

    def examined(self) -> Examined[T]:
        """What became of those that stayed. The region is given back at once where no pixels are in it."""
        good = [(self.images[row].token, self._good[row]) for row in sorted(self._good)]
        bad = [(self.images[row].token, self._bad[row]) for row in sorted(self._bad)]
        if not good:
            self.lease.release()
            return Examined(good, bad, NO_PIXELS, None)
        pixels = self.lease.pixels
        for position, row in enumerate(sorted(self._good)):
            if position != row:
                pixels[position] = pixels[row]
        return Examined(good, bad, pixels[: len(good)], self.lease)


class Alone(Generic[T]):
    """Images that left their batches, gathered until somebody asks."""

    def __init__(self) -> None:
        self._good: list[tuple[T, Findings]] = []
        self._bad: list[tuple[T, Rejected]] = []
        self._pixels: list[Pixels] = []

    def __bool__(self) -> bool:
        return bool(self._good or self._bad)

    def settle(self, image: Image[T], outcome: Findings | Rejected, pixels: Pixels) -> None:
        """This image is done; `pixels` uint8 [1, 224, 224, 3] are copied."""
        if isinstance(outcome, Findings):
            self._good.append((image.token, outcome))
            self._pixels.append(pixels.copy())
        else:
            self._bad.append((image.token, outcome))

    def examined(self, most: int) -> list[Examined[T]]:
        """All of them, `most` good ones at a time."""
        found: list[Examined[T]] = []
        for start in range(0, max(len(self._good), 1), most):
            chosen = slice(start, start + most)
            pixels = np.concatenate(self._pixels[chosen]) if self._good else NO_PIXELS
            found.append(Examined(self._good[chosen], [] if start else self._bad, pixels, None))
        self._good, self._bad, self._pixels = [], [], []
        return found
