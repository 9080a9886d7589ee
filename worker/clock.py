"""Time and waiting, behind one seam: what the core knows of clocks, sleeps and stops.

Stages, queues and breakers never touch `time` or a condition by themselves. The worker runs on `Clock`; the simulation
(tests/simulation) puts a virtual clock and a seeded scheduler in its place, and the same code runs under both.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

_SLICE_S = 0.05  # how late a wait may hear of a stop


class StopSignal(Protocol):
    """What a wait listens to; a threading.Event is one."""

    def is_set(self) -> bool: ...
    def wait(self, timeout: float | None = None) -> bool: ...


class StopFlag:
    """A stop that a signal handler may set: one attribute, no lock.

    A handler interrupts the main thread anywhere, also inside threading.Event's own lock: `Event.set` could wait there
    for ever. So `wait` looks at the attribute every 50 ms instead of being woken.
    """

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the stop, `timeout` seconds at most. Returns whether it came."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._is_set:
            left_s = _SLICE_S if deadline is None else deadline - time.monotonic()
            if left_s <= 0:
                break
            time.sleep(min(left_s, _SLICE_S))
        return self._is_set


class Clock:
    """The machine's time, and waits for another thread's change."""

    def monotonic(self) -> float:
        """Seconds that only go forward, from an arbitrary beginning."""
        return time.monotonic()

    def time(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def wait_for(self, changed: threading.Condition, predicate: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `predicate` holds, `timeout_s` at most. The caller holds `changed`. Returns whether it holds."""
        return changed.wait_for(predicate, timeout_s)


SYSTEM_CLOCK = Clock()
