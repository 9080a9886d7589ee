"""Who goes first: quick images at once, slow ones in a lane of their own, and of these the cheaper before the dearer.

An image is slow by what its header announces, or because it surprised the child that had it. Pure bookkeeping; the pool
owns the children.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import Generic, TypeVar

from worker.examine.findings import Cost

T = TypeVar("T")
# What a quick image may cost: an ordinary photograph costs 1 to 20.
QUICK_MS = 80.0
# Beyond this an image is very slow, and one child of the lane is kept from it and its like.
VERY_SLOW_MS = 1_000.0
# What a quick child may hold of images that it decodes together.
TOGETHER_BYTES = 64 << 20
# An image waits behind later ones as long as these cost less than it has waited, times this.
_PATIENCE = 4.0


@dataclass(frozen=True, slots=True)
class Shares:
    """How many children each lane has, and how the memory for decoding is shared out among them."""

    quick: int
    slow: int
    quick_bytes: int
    slow_bytes: int

    @classmethod
    def of(cls, processes: int, memory_bytes: int) -> Shares:
        """Quick children may each hold TOGETHER_BYTES, though never half of all; what is left is for the slow."""
        each = min(TOGETHER_BYTES, memory_bytes // (2 * processes))
        return cls(processes, max(2, processes), each, memory_bytes - processes * each)

    @property
    def quick_most(self) -> Cost:
        """What an image may cost that is decoded in the quick lane."""
        return Cost(QUICK_MS, self.quick_bytes)


class SlowLane(Generic[T]):
    """What waits for a slow child, and what they have under way. It starts what fits, in order."""

    def __init__(self, children: int, memory_bytes: int) -> None:
        self._children = children
        self._memory_bytes = memory_bytes
        self._waiting: tuple[list[tuple[float, int, Cost, T]], ...] = ([], [])  # slow, very slow
        self._order = itertools.count()
        self._under_way: dict[int, Cost] = {}

    def __len__(self) -> int:
        return sum(len(heap) for heap in self._waiting)

    def add(self, image: T, cost: Cost, now_ms: float) -> None:
        """`image` waits from now on."""
        entry = (now_ms + _PATIENCE * cost.effort_ms, next(self._order), cost, image)
        heapq.heappush(self._waiting[cost.effort_ms > VERY_SLOW_MS], entry)

    def start(self) -> tuple[int, T] | None:
        """The next image whose turn it is and that there is a child and memory for; its ticket is for `ended`."""
        if len(self._under_way) >= self._children:
            return None
        very_slow = sum(cost.effort_ms > VERY_SLOW_MS for cost in self._under_way.values())
        heaps = [heap for heap in self._waiting[: 1 if very_slow >= self._children - 1 else 2] if heap]
        if not heaps:
            return None
        heap = min(heaps)
        _, ticket, cost, image = heap[0]
        if self._under_way and self._bytes_under_way + cost.decoded_bytes > self._memory_bytes:
            return None
        heapq.heappop(heap)
        self._under_way[ticket] = cost
        return ticket, image

    def ended(self, ticket: int) -> None:
        """What `start` gave has ended, one way or the other."""
        del self._under_way[ticket]

    @property
    def wants_children(self) -> int:
        """How many could work at once on what is here."""
        return min(self._children, len(self._under_way) + len(self))

    @property
    def _bytes_under_way(self) -> int:
        return sum(cost.decoded_bytes for cost in self._under_way.values())
