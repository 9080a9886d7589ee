"""The end of a worker that cannot go on: a client library that never returns takes the main thread with it.

The poll loop is the worker's pulse. Where it has stood still for three quarters of `run.stall_timeout_s`, or a drain is
not over when it must be, the process ends with exit code 1: whoever watches it starts another, its partitions go to
others meanwhile, and what was not committed is redelivered. Time in which the process was stopped does not count.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable

import structlog

from worker.clock import StopSignal

log = structlog.get_logger(__name__)
TICK_S = 1.0
SHARE_OF_STALL = 0.75
SILENT_WHILE_DRAINING_S = 5.0
AFTER_DRAIN_S = 12.0  # the stages' end, the last commit, leaving the group


def _end() -> None:
    faulthandler.dump_traceback(sys.stderr)  # where each thread stands; without values
    sys.stderr.flush()
    os._exit(1)


class Watchdog:
    """`pulse`: a number that changes while the loop moves. `drain`: asked to end."""

    def __init__(
        self,
        pulse: Callable[[], float],
        drain: StopSignal,
        *,
        stall_s: float,
        drain_s: float,
        tick: Callable[[float], None] = time.sleep,
        end: Callable[[], None] = _end,
    ) -> None:
        self._pulse = pulse
        self._drain = drain
        self._stall_s = stall_s * SHARE_OF_STALL
        self._drain_s = drain_s
        self._tick = tick
        self._end = end
        self._last = pulse()
        self._silent_s = self._draining_s = 0.0
        self._done = False

    def start(self) -> None:
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """The worker ends by itself."""
        self._done = True

    def _run(self) -> None:
        while not self._done:
            self._tick(TICK_S)
            if problem := self.look():
                action = "the process ends; what is unfinished is redelivered"
                log.critical("worker_stuck", problem=problem, action=action)
                self._end()
                return

    def look(self) -> str:
        """One tick later: why the process must end, or nothing."""
        now = self._pulse()
        self._silent_s = 0.0 if now != self._last else self._silent_s + TICK_S
        self._last = now
        if self._done:
            return ""
        if self._drain.is_set():
            self._draining_s += TICK_S
            late_s = self._draining_s - self._drain_s
            if late_s >= AFTER_DRAIN_S or (late_s >= 0 and self._silent_s >= SILENT_WHILE_DRAINING_S):
                return f"the drain is not over after {self._draining_s:.0f} s"
        if self._silent_s >= self._stall_s:
            return f"the poll loop has not moved for {self._silent_s:.0f} s"
        return ""
