"""Reference -> encoded image: the claim check is redeemed, and the image goes back to Intake.

Several threads drive it. A storage that is away is waited for behind a circuit breaker of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from worker.clients.fetch import Fetcher
from worker.contract import ImageReference
from worker.errors import Rejected, Unavailable
from worker.inflight import UnderWay
from worker.item import Encoded, Ended, Identified, Referenced
from worker.queues import StageQueue
from worker.retry import CircuitBreaker
from worker.stages.intake import Arrival
from worker.stages.stage import Stage, Tools


class Storages:
    """A circuit breaker for each host or bucket that has failed once. Thread-safe."""

    def __init__(self, new_breaker: Callable[[], CircuitBreaker]) -> None:
        self._new_breaker = new_breaker
        self._breakers: dict[str, CircuitBreaker] = {}

    def breakers(self) -> dict[str, CircuitBreaker]:
        """By scheme and host or bucket."""
        return dict(self._breakers)

    def find(self, place: str) -> CircuitBreaker | None:
        return self._breakers.get(place)

    def add(self, place: str) -> CircuitBreaker:
        """Made when first needed: names that no rule allows must not pile up."""
        return self._breakers.setdefault(place, self._new_breaker())


class Fetch(Stage):
    """`inbox` takes references one by one; images go to `arrivals`, rejections to `ended`."""

    def __init__(
        self,
        fetcher: Fetcher,
        storages: Storages,
        tools: Tools,
        under_way: UnderWay,
        *,
        inbox: StageQueue[Referenced],
        arrivals: StageQueue[Sequence[Arrival]],
        ended: StageQueue[list[Ended]],
    ) -> None:
        self._fetcher = fetcher
        self._storages = storages
        self._tools = tools
        self._admission = under_way.admission
        self._inbox = inbox
        self._arrivals = arrivals
        self._ended = ended

    def step(self, wait_s: float) -> None:
        """Fetch one image, however long its storage is away."""
        referenced = self._inbox.get(wait_s)
        if referenced is None:
            return
        metrics, clock = self._tools.metrics, self._tools.clock
        started = clock.monotonic()
        self._admission.wait_to_fetch(self._tools.stop)
        fetched = self._fetch(referenced)
        scheme = referenced.reference.uri.partition(":")[0].lower()
        if scheme in ("file", "https", "s3"):  # a label must not be a producer's free choice
            outcome = "ok" if isinstance(fetched, Encoded) else "rejected"
            metrics.fetches.labels(scheme=scheme, outcome=outcome).inc()
            if isinstance(fetched, Encoded):
                metrics.fetched_bytes.labels(scheme=scheme).inc(len(fetched.data))
        metrics.stage_seconds.labels(stage="fetch").observe(clock.monotonic() - started)
        if isinstance(fetched, Encoded):
            referenced.item.hold_fetched(self._admission, len(fetched.data))
            self._arrivals.put([fetched], self._tools.stop)
        else:
            self._ended.put([fetched], self._tools.stop)

    def _fetch(self, referenced: Referenced) -> Encoded | Ended:
        try:
            data = self._bytes_behind(referenced.reference)
        except Rejected as rejected:
            return Ended(referenced.item, referenced.image_id, None, rejected)
        sha256 = hashlib.sha256(data).hexdigest()
        return Encoded(Identified(referenced.item, referenced.image_id, sha256), data)

    def _bytes_behind(self, reference: ImageReference) -> bytes:
        """The image. Raises Rejected or Stopping."""
        place = "/".join(reference.uri.split("/", 3)[:3]).lower()  # scheme and host or bucket
        breaker = self._storages.find(place)
        if breaker is None:
            try:
                return self._fetcher.fetch(reference)
            except Unavailable:
                breaker = self._storages.add(place)
        return breaker.call(lambda: self._fetcher.fetch(reference), self._tools.stop)
