"""Libraries that log each failed attempt: the first line of a kind passes, the next one after a pause, with a count.

kafka-python writes up to 120 lines a second while a broker resets its connections; each says what the first one said.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable

INTERVAL_S = 10.0
_MOST_KINDS = 1_000  # templates of log calls are few; what a library formats first may have no end
_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+")


class Repeats(logging.Filter):
    """Lets one record of each kind (logger and message, numbers aside) through per `interval_s`."""

    def __init__(self, interval_s: float = INTERVAL_S, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._interval_s = interval_s
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind = (record.name, _NUMBERS.sub("#", str(record.msg)))
        now = self._clock()
        with self._lock:
            passed_at, held_back = self._seen.get(kind, (-self._interval_s, 0))
            if now - passed_at < self._interval_s:
                self._seen[kind] = (passed_at, held_back + 1)
                return False
            if len(self._seen) >= _MOST_KINDS:
                self._seen.clear()
            self._seen[kind] = (now, 0)
        if held_back:
            record.msg = f"{record.getMessage()} ({held_back} more like it in {now - passed_at:.0f} s)"
            record.args = None
        return True
