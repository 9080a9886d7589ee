"""Who came in, who did not, who took something out: a log line each, and the latest in Redis for the page.

The log is what counts; keep it where the people it is about cannot change it.
"""

from __future__ import annotations

import json
from typing import Any

import structlog

from worker.clock import SYSTEM_CLOCK, Clock
from worker.console.board import Board
from worker.errors import Unavailable

log = structlog.get_logger("worker.console.audit")
_KEPT = 10_000


class Audit:
    """`note` never fails: what Redis does not take stands in the log."""

    def __init__(self, board: Board, clock: Clock = SYSTEM_CLOCK) -> None:
        self._board = board
        self._clock = clock

    def note(self, event: str, who: str, address: str, **details: Any) -> None:
        log.info("audit", audit=event, who=who, address=address, **details)
        line = json.dumps({"at": self._clock.time(), "event": event, "who": who, "address": address, **details})
        try:
            self._board.scripts.do("lpush", "audit", line)
            self._board.scripts.do("ltrim", "audit", 0, _KEPT - 1)
        except Unavailable as error:
            log.warning("audit_not_in_redis", error=str(error))

    def latest(self, count: int) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._board.scripts.do("lrange", "audit", 0, count - 1)]
