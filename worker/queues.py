"""The queue between two stages. Admission bounds what is under way; a capacity only bounds how far one stage may run
ahead of the next (decoded pixels are larger than encoded ones).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from worker.clock import SYSTEM_CLOCK, Clock, StopSignal
from worker.errors import Stopping

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
_LISTEN_S = 0.1  # how long a full queue is waited for before the stop is looked at


class Outlet(Protocol[T_contra]):
    """Where a stage puts what it hands on: a queue, or whoever chooses one."""

    def put(self, piece: T_contra, stop: StopSignal) -> None: ...


class StageQueue(Generic[T]):
    """Holds at most `capacity` pieces; None where admission alone bounds it. Any number of threads at both ends."""

    def __init__(self, capacity: int | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        self._capacity = capacity
        self._clock = clock
        self._pieces: deque[T] = deque()
        self._changed = threading.Condition()
        self._listener: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return len(self._pieces)

    def put(self, piece: T, stop: StopSignal) -> None:
        """Add `piece`, waiting while the queue is full. Raises Stopping once `stop` is set."""
        with self._changed:
            while self._is_full():
                if stop.is_set():
                    raise Stopping("stopped while handing over")
                self._clock.wait_for(self._changed, lambda: not self._is_full(), _LISTEN_S)
            self._pieces.append(piece)
            self._changed.notify_all()
        self._listener()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each `put`, in its thread: for a taker that waits for something else as well."""
        self._listener = listener

    def get(self, wait_s: float) -> T | None:
        """The next piece, or None where none came within `wait_s`."""
        with self._changed:
            if not self._clock.wait_for(self._changed, lambda: bool(self._pieces), wait_s):
                return None
            piece = self._pieces.popleft()
            self._changed.notify_all()
            return piece

    def get_all(self, wait_s: float) -> list[T]:
        """All pieces that wait, at least one where one came within `wait_s`."""
        with self._changed:
            self._clock.wait_for(self._changed, lambda: bool(self._pieces), wait_s)
            pieces = list(self._pieces)
            self._pieces.clear()
            self._changed.notify_all()
            return pieces

    def _is_full(self) -> bool:
        return self._capacity is not None and len(self._pieces) >= self._capacity
