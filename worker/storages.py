"""Which reference is fetched next, and which waits no longer: every storage has a breaker and a share of the fetchers.

A storage is a host, a bucket or a folder of the allow-list. One that is away or slow must cost nobody but itself: it
never has all fetchers, what waits for it waits `wait_ms` and then leaves, and past the mark of references in work only
a second. References to storages that answer stay, however long their queue is.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from worker.clock import SYSTEM_CLOCK, Clock
from worker.errors import Unavailable
from worker.item import Address, Referenced
from worker.retry import BreakerState, CircuitBreaker
from worker.settings import ReferenceSettings

SLOW_S = 1.0  # a storage that has not answered for so long, while something waits for it, is slow
_MOST_HOSTS = 256  # below wildcards a producer names them: those at rest are forgotten, the longest at rest first


@dataclass(slots=True, eq=False)
class Turn:
    """A reference that waits for its storage since `since`, or is being fetched; `error`: how its last try ended."""

    referenced: Referenced
    address: Address
    since: float
    error: str = ""


@dataclass(slots=True, eq=False)
class _Storage:
    allowed: str
    breaker: CircuitBreaker
    answered_at: float
    waiting: deque[Turn] = field(default_factory=deque)
    running: int = 0

    @property
    def is_at_rest(self) -> bool:
        return not self.waiting and not self.running


class Storages:
    """The references that wait, by storage. Thread-safe; never blocks."""

    def __init__(
        self,
        settings: ReferenceSettings,
        new_breaker: Callable[[Address], CircuitBreaker],
        *,
        crowded: int,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """`crowded`: with so many references here, those whose storage is slow wait no longer than `SLOW_S`."""
        self._wait_s = settings.wait_ms / 1000
        entries = [*settings.https_hosts, *settings.s3_buckets, *settings.file_roots]
        several = len(entries) > 1 or any(entry.startswith("*.") for entry in entries)
        self._most_for_one = max(1, settings.concurrency // 2) if several else settings.concurrency
        self._most_for_a_slow_one = max(1, settings.concurrency // 4)
        self._new_breaker = new_breaker
        self._crowded = crowded
        self._clock = clock
        self._lock = threading.Lock()
        self._storages: OrderedDict[str, _Storage] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        """References here, those that are being fetched included."""
        return self._count

    def add(self, referenced: Referenced, address: Address) -> None:
        """`referenced` waits for its storage from now on."""
        now = self._clock.monotonic()
        with self._lock:
            storage = self._storages.get(address.host)
            if storage is None:
                self._forget_one_at_rest()
                storage = _Storage(address.allowed, self._new_breaker(address), now)
                self._storages[address.host] = storage
            elif storage.is_at_rest and not storage.breaker.is_away:
                storage.answered_at = now  # nobody has asked it: its silence says nothing
            storage.waiting.append(Turn(referenced, address, now))
            self._count += 1

    def take(self) -> Turn | None:
        """The next one to fetch, storages in turn; None where none may be. Then `answered` or `failed` is owed."""
        now = self._clock.monotonic()
        with self._lock:
            for host, storage in self._storages.items():
                most = self._most_for_one if now - storage.answered_at < SLOW_S else self._most_for_a_slow_one
                if storage.waiting and storage.running < most and storage.breaker.take_turn() <= 0:
                    self._storages.move_to_end(host)
                    storage.running += 1
                    return storage.waiting.popleft()
        return None

    def answered(self, turn: Turn) -> None:
        """The storage gave the image, or said why it does not: the reference is done with it."""
        with self._lock:
            storage = self._storages[turn.address.host]
            storage.running -= 1
            storage.answered_at = self._clock.monotonic()
            self._count -= 1
        storage.breaker.succeeded()

    def failed(self, turn: Turn, error: Unavailable) -> None:
        """The storage is away: the reference is the first to be tried again."""
        turn.error = error.detail
        with self._lock:
            storage = self._storages[turn.address.host]
            storage.running -= 1
            storage.waiting.appendleft(turn)
        storage.breaker.failed(error)

    def overdue(self) -> list[Turn]:
        """Those that wait no longer; they are gone from here. `error` says what they have waited for."""
        now = self._clock.monotonic()
        with self._lock:
            limit_s = self._wait_s if self._count < self._crowded else min(self._wait_s, SLOW_S)
            left: list[Turn] = []
            for storage in self._storages.values():
                silent_s = now - storage.answered_at
                # One that may be tried at once is left to a fetcher for a moment, also where it may not wait at all.
                grace_s = SLOW_S if storage.breaker.is_due and not storage.running else 0.0
                for turn in list(storage.waiting):
                    is_silent = silent_s >= max(limit_s, SLOW_S) and now - turn.since >= limit_s + grace_s
                    if is_silent or (turn.error and now - turn.since >= limit_s):
                        storage.waiting.remove(turn)
                        turn.error = turn.error or storage.breaker.last_error or f"no answer for {silent_s:.0f} s"
                        left.append(turn)
            self._count -= len(left)
            return left

    def states(self) -> dict[str, BreakerState]:
        """By entry of the settings: the worst state of what it allows, as far as that has been asked."""
        worst: dict[str, BreakerState] = {}
        with self._lock:
            for storage in self._storages.values():
                worst[storage.allowed] = max(storage.breaker.state, worst.get(storage.allowed, BreakerState.CLOSED))
        return worst

    def _forget_one_at_rest(self) -> None:
        if len(self._storages) >= _MOST_HOSTS:
            at_rest = next((host for host, storage in self._storages.items() if storage.is_at_rest), None)
            if at_rest is not None:
                del self._storages[at_rest]
