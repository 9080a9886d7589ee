"""So many at once, so many that wait, and no longer than so long: for what takes memory and time for each person."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from worker.errors import AssayError


class Busy(AssayError):
    """Too many ask for it at this moment; the message says for what. Answered with 503 and `retry-after`."""


class Gate:
    """Use:  with gate.passing(): …  Raises Busy."""

    def __init__(self, what: str, *, at_once: int, waiting: int, wait_s: float) -> None:
        self._what = what
        self._wait_s = wait_s
        self._turns = threading.BoundedSemaphore(at_once)
        self._places = threading.BoundedSemaphore(at_once + waiting)

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        if not self._places.acquire(blocking=False):
            raise Busy(f"{self._what}; try again in a moment")
        try:
            if not self._turns.acquire(timeout=self._wait_s):
                raise Busy(f"{self._what}; try again in a moment")
            try:
                yield
            finally:
                self._turns.release()
        finally:
            self._places.release()
