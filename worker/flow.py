"""How much may be under way: admission in items and bytes with a high and a low mark, and the hand-over between stages.

Every record is admitted once and released once, wherever its way ends, so the marks bound the whole pipeline; the
hand-overs only bound how far one stage may run ahead of the next (decoded pixels are larger than encoded ones).
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

from worker.errors import Stopping
from worker.retry import StopSignal
from worker.settings import FlowSettings

T = TypeVar("T")


class Flow:
    """Counts what is under way. `is_full` has hysteresis: true from a high mark on until both counts are below the low
    marks.
    """

    def __init__(self, settings: FlowSettings) -> None:
        self.max_items = settings.max_items
        self.max_bytes = settings.max_bytes
        self._low_items = max(1, int(settings.max_items * settings.low_water))
        self._low_bytes = max(1, int(settings.max_bytes * settings.low_water))
        self._changed = threading.Condition()
        self._full = False
        self._fetched_bytes = 0
        self.items = 0
        self.bytes = 0

    def admit(self, size_bytes: int) -> None:
        """Count one record of `size_bytes`. Never blocks: whoever admits looks at `is_full` and `room` first."""
        with self._changed:
            self.items += 1
            self._add_bytes(size_bytes)

    def hold_fetched(self, size_bytes: int) -> None:
        """Count the bytes that a reference led to. They are let go once decoded, whatever else waits."""
        with self._changed:
            self._fetched_bytes += size_bytes
            self._add_bytes(size_bytes)

    def let_go_fetched(self, size_bytes: int) -> None:
        """Count fetched bytes no longer, of a record that goes on."""
        with self._changed:
            self._fetched_bytes -= size_bytes
            self.bytes -= size_bytes
            self._update()

    def release(self, size_bytes: int) -> None:
        """One record has ended; `size_bytes` is all that is still counted for it."""
        with self._changed:
            self.items -= 1
            self.bytes -= size_bytes
            self._update()

    @property
    def is_full(self) -> bool:
        return self._full

    @property
    def room(self) -> int:
        """Records that may still be admitted before the high mark."""
        return max(0, self.max_items - self.items)

    def wait_to_fetch(self, stop: StopSignal) -> None:
        """Wait while the high mark is reached and fetched images are part of it. Raises Stopping once `stop` is set.

        Only those, because they go away by themselves: the records under way may be waiting for this very fetch.
        """
        with self._changed:
            while self.bytes >= self.max_bytes and self._fetched_bytes > 0:
                if stop.is_set():
                    raise Stopping("stopped while waiting for room")
                self._changed.wait(0.1)

    def _add_bytes(self, size_bytes: int) -> None:
        self.bytes += size_bytes
        self._update()

    def _update(self) -> None:
        if self.items >= self.max_items or self.bytes >= self.max_bytes:
            self._full = True
        elif self.items <= self._low_items and self.bytes <= self._low_bytes:
            self._full = False
        self._changed.notify_all()


class HandOver(Generic[T]):
    """A queue between two stages that holds at most `capacity` pieces; None where the flow alone bounds it."""

    def __init__(self, capacity: int | None = None) -> None:
        self._capacity = capacity
        self._pieces: deque[T] = deque()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._pieces)

    def put(self, piece: T, stop: StopSignal) -> None:
        """Add `piece`, waiting for room. Raises Stopping once `stop` is set."""
        with self._changed:
            while self._capacity is not None and len(self._pieces) >= self._capacity:
                if stop.is_set():
                    raise Stopping("stopped while handing over")
                self._changed.wait(0.1)
            self._pieces.append(piece)
            self._changed.notify_all()

    def get(self, timeout_s: float) -> T | None:
        """The next piece, or None where none came within `timeout_s`."""
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._pieces), timeout_s):
                return None
            piece = self._pieces.popleft()
            self._changed.notify_all()
            return piece

    def get_all(self, timeout_s: float) -> list[T]:
        """All pieces that wait, at least one where one came within `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._pieces), timeout_s)
            pieces = list(self._pieces)
            self._pieces.clear()
            self._changed.notify_all()
            return pieces
