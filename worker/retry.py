"""How a dependency's faults are waited out: exponential backoff with full jitter behind a circuit breaker.

One `CircuitBreaker` per server (Kafka, Redis, Triton) and storage, shared by all threads. Its calls are tried until
they succeed or the worker stops: a fault of the system is never a reason to reject an image. Full jitter:
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, TypeVar

import structlog

from worker.clock import SYSTEM_CLOCK, Clock, StopSignal
from worker.errors import AssayError, Stopping, Unavailable
from worker.settings import RetrySettings

C = TypeVar("C")
T = TypeVar("T")
log = structlog.get_logger(__name__)


class BreakerState(IntEnum):
    """Closed lets calls through; open makes them wait; half-open lets one through to try."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


def backoff_s(
    failures: int, base_ms: int, max_ms: int, uniform: Callable[[float, float], float] = random.uniform
) -> float:
    """Seconds to wait after `failures` failures in a row: uniform in [0, min(max, base * 2^(failures-1))]."""
    ceiling_ms = min(float(max_ms), base_ms * 2.0 ** min(failures - 1, 32))
    return uniform(0.0, ceiling_ms) / 1000


class CircuitBreaker:
    """The circuit breaker and the retry policy of one server."""

    def __init__(
        self,
        name: str,
        settings: RetrySettings,
        *,
        clock: Clock = SYSTEM_CLOCK,
        uniform: Callable[[float, float], float] = random.uniform,
        on_change: Callable[[str, BreakerState], None] = lambda _name, _state: None,
        on_retry: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self.name = name
        self._settings = settings
        self._clock = clock
        self._uniform = uniform
        self._on_change = on_change
        self._on_retry = on_retry
        self._lock = threading.Lock()
        self._failures = 0
        self._not_before = 0.0
        self._state = BreakerState.CLOSED
        self._calls: dict[object, float] = {}  # under way, and since when
        self.last_error = ""

    @property
    def state(self) -> BreakerState:
        return self._state

    @property
    def is_away(self) -> bool:
        """Has the breaker opened, and nothing succeeded since?"""
        return self._state is not BreakerState.CLOSED

    def call(self, operation: Callable[[], T], stop: StopSignal) -> T:
        """The result of `operation`, tried until it no longer raises Unavailable. Raises Stopping once `stop` is set.

        Any other error of ours (an image rejected, a call refused) is passed on, and is an answer: the server is there.
        """
        with self._under_way():
            while True:
                self._wait_for_turn(stop)
                try:
                    result = operation()
                except Unavailable as error:
                    self.failed(error)
                except Stopping:
                    raise
                except AssayError:
                    self.succeeded()
                    raise
                else:
                    self.succeeded()
                    return result

    def longest_call_s(self) -> float:
        """How long the oldest call has been under way, its retries included; 0 where none is."""
        with self._lock:
            return self._clock.monotonic() - min(self._calls.values()) if self._calls else 0.0

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        call = object()
        with self._lock:
            self._calls[call] = self._clock.monotonic()
        try:
            yield
        finally:
            with self._lock:
                del self._calls[call]

    def succeeded(self) -> None:
        """Note a success seen elsewhere (a health check): it closes the breaker."""
        with self._lock:
            recovered = self._state is not BreakerState.CLOSED
            self._failures = 0
            self._not_before = (
                self._clock.monotonic()
            )  # what waits for its turn need not sit out a backoff that is over
            self._set_state(BreakerState.CLOSED)
        if recovered:
            log.info("dependency_recovered", dependency=self.name)

    def _wait_for_turn(self, stop: StopSignal) -> None:
        while True:
            if stop.is_set():
                raise Stopping(f"stopped while waiting for {self.name}")
            wait_s = self.take_turn()
            if wait_s <= 0:
                return
            stop.wait(min(max(wait_s, 0.001), 0.25))

    @property
    def is_due(self) -> bool:
        """May a call go out now?"""
        return self._clock.monotonic() >= self._not_before

    def take_turn(self) -> float:
        """0 where a call may go out now; then `succeeded` or `failed` is owed. Else how many seconds to wait, about.

        An open breaker lets one call through; the others wait for its result.
        """
        with self._lock:
            now = self._clock.monotonic()
            wait_s = self._not_before - now
            if wait_s > 0:
                return wait_s
            if self._state is not BreakerState.CLOSED:
                self._set_state(BreakerState.HALF_OPEN)
                self._not_before = now + self._settings.max_ms / 1000
            return 0.0

    def failed(self, error: Unavailable) -> None:
        """Note that a call found nobody: the next waits, after some in a row behind an open breaker."""
        with self._lock:
            self._failures += 1
            self.last_error = error.detail
            self._not_before = self._clock.monotonic() + backoff_s(
                self._failures, self._settings.base_ms, self._settings.max_ms, self._uniform
            )
            opened = self._state is BreakerState.CLOSED and self._failures >= self._settings.breaker_failures
            if opened or self._state is BreakerState.HALF_OPEN:
                self._set_state(BreakerState.OPEN)
        self._on_retry(self.name)
        if opened:
            log.warning(
                "dependency_away",
                dependency=self.name,
                error=error.detail,
                action="waiting; nothing is rejected for it",
            )

    def _set_state(self, state: BreakerState) -> None:
        if state is not self._state:
            self._state = state
            self._on_change(self.name, state)


@dataclass(frozen=True, slots=True)
class Guarded(Generic[C]):
    """A client and the circuit breaker that its calls go through."""

    client: C
    breaker: CircuitBreaker

    def call(self, operation: Callable[[C], T], stop: StopSignal) -> T:
        """The result of `operation` on the client, tried until the server answers. Raises Stopping on `stop`."""
        return self.breaker.call(lambda: operation(self.client), stop)
