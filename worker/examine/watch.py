"""How long a child has been at its step, not counting the time that it waited for a core.

On a busy machine a decoder may wait for longer than it works; what counts against the deadline is what the image does:
computing, or hanging. The kernel keeps the waiting time of each thread (schedstat, Documentation/scheduler).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

# A worker that was itself stopped (a frozen container, a suspended host) finds the clock far ahead, its children not.
_MOST_AT_ONCE_MS = 1_000.0


class Watch:
    """Of one child at one job. It is looked at now and then; a step's time runs from the first look that saw it."""

    def __init__(self, pid: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._pid = pid
        self._clock = clock
        self._step = -1
        self._looked_at_ms = 0.0
        self._waited_ms = 0.0
        self._step_ms = 0.0
        self.job_ms = 0.0

    def look(self, step: int) -> float:
        """Milliseconds of this step so far; `job_ms` has those of all steps."""
        now_ms, waited_ms = self._clock() * 1000, waited_for_core_ms(self._pid)
        passed_ms = min(now_ms - self._looked_at_ms, _MOST_AT_ONCE_MS) - max(0.0, waited_ms - self._waited_ms)
        first, self._looked_at_ms, self._waited_ms = self._step == -1, now_ms, waited_ms
        if not first:
            self.job_ms += max(0.0, passed_ms)
        if step != self._step:
            self._step, self._step_ms = step, 0.0
        else:
            self._step_ms += max(0.0, passed_ms)
        return self._step_ms


def waited_for_core_ms(pid: int, proc: Path = Path("/proc")) -> float:
    """Of all threads of a process together: ready to run, and not running. 0 where the kernel does not tell."""
    waited_ns = 0
    try:
        for thread in os.listdir(proc / str(pid) / "task"):  # noqa: PTH208 - names alone
            waited_ns += int((proc / str(pid) / "task" / thread / "schedstat").read_bytes().split()[1])
    except (OSError, IndexError, ValueError):
        return 0.0
    return waited_ns / 1e6
