"""A clock that sees waits instead of waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable

from worker.clock import Clock


class Waits(Clock):
    """Notes how long each wait might have been, does what `then` says, and goes on at once.

    Only what must wait waits: where what is waited for holds already, the wait takes no time and is not noted.
    """

    def __init__(self) -> None:
        self.waited_s: list[float] = []
        self.then: Callable[[], object] = lambda: None

    def wait_for(self, _changed: threading.Condition, predicate: Callable[[], bool], timeout_s: float) -> bool:
        if not predicate():
            self.waited_s.append(timeout_s)
            self.then()
        return predicate()
