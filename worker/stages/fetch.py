"""Reference -> encoded image: the claim check is redeemed, and the image goes back to Intake.

Several threads drive it. Which reference is next, and which has waited for its storage for long enough, is decided in
storages.py; the latter is parked (images.retry) until it is tried again, or given up once it has been for long enough.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from worker.clients.fetch import Fetcher
from worker.clients.fetch_uri import SCHEMES
from worker.errors import Rejected, RejectReason, Unavailable
from worker.inflight import UnderWay
from worker.item import Encoded, Ended, Identified, Referenced
from worker.parking import Parking
from worker.queues import Outlet, StageQueue
from worker.settings import ReferenceSettings, variable
from worker.stages.intake import Arrival
from worker.stages.stage import Stage, Tools
from worker.storages import Storages, Turn

_LOOK_AGAIN_S = 0.05  # while something waits for its storage


@dataclass(frozen=True, slots=True)
class ReferenceAccess:
    """What stands behind references. `can_park`: is there a retry topic? Without one a storage that is away ends its
    references.
    """

    fetcher: Fetcher
    storages: Storages
    can_park: Callable[[], bool]


class Fetch(Stage):
    """`inbox` takes references one by one; images go to `arrivals`, rejections and what is parked to `ended`."""

    def __init__(
        self,
        settings: ReferenceSettings,
        access: ReferenceAccess,
        tools: Tools,
        under_way: UnderWay,
        *,
        inbox: StageQueue[Referenced],
        arrivals: StageQueue[Sequence[Arrival]],
        ended: Outlet[list[Ended]],
    ) -> None:
        self._settings = settings
        self._fetcher = access.fetcher
        self._storages = access.storages
        self._tools = tools
        self._admission = under_way.admission
        self._keeps_images = under_way.keeps_images
        self._can_park = access.can_park
        self._inbox = inbox
        self._arrivals = arrivals
        self._ended = ended
        for allowed in access.fetcher.allowed:
            tools.metrics.storage_state.labels(storage=allowed)

    def step(self, wait_s: float) -> None:
        """Take what is new, let go of what has waited for too long, fetch one image."""
        self._accept(0.0 if len(self._storages) else wait_s)
        turn = self._storages.take()  # before any is let go: each is tried where its storage may be asked
        for late in self._storages.overdue():
            self._end(late.referenced, self._given_up(late))
        for allowed, state in self._storages.states().items():
            self._tools.metrics.storage_state.labels(storage=allowed).set(int(state))
        if turn is None:
            if len(self._storages):
                self._accept(min(wait_s, _LOOK_AGAIN_S))
            return
        self._admission.wait_to_fetch(self._tools.stop)
        self._fetch(turn)

    def _accept(self, wait_s: float) -> None:
        """Have one new reference wait for its storage, if there is one."""
        referenced = self._inbox.get(wait_s)
        if referenced is None:
            return
        try:
            address = self._fetcher.address(referenced.reference)
        except Rejected as rejected:
            self._end(referenced, rejected)
        else:
            self._storages.add(referenced, address)

    def _fetch(self, turn: Turn) -> None:
        referenced, started = turn.referenced, self._tools.clock.monotonic()
        try:
            data = self._fetcher.fetch(referenced.reference)
        except Unavailable as error:
            self._storages.failed(turn, error)
            return
        except Rejected as rejected:
            self._storages.answered(turn)
            self._end(referenced, rejected)
            return
        self._storages.answered(turn)
        scheme = self._count(referenced, "ok")
        self._tools.metrics.fetched_bytes.labels(scheme=scheme).inc(len(data))
        self._tools.metrics.stage_seconds.labels(stage="fetch").observe(self._tools.clock.monotonic() - started)
        image = Identified(referenced.item, referenced.image_id, hashlib.sha256(data).hexdigest())
        self._admission.release_reference()
        referenced.item.hold_fetched(self._admission, len(data))
        referenced.item.kept = data if self._keeps_images else None
        self._arrivals.put([Encoded(image, data)], self._tools.stop)

    def _given_up(self, turn: Turn) -> Rejected | Parking:
        """Parked, or rejected where it has been tried for long enough or cannot be parked."""
        item, clock = turn.referenced.item, self._tools.clock
        parked = item.record.parked
        now_ms = clock.time() * 1000
        since_ms = parked.since_ms if parked else now_ms - (clock.monotonic() - item.touched_at) * 1000
        attempt = (parked.attempt if parked else 0) + 1
        if now_ms - since_ms >= self._settings.give_up_s * 1000:
            why = f"{variable('references', 'give_up_s')}={self._settings.give_up_s}"
        elif not self._can_park():
            why = f"it cannot be parked: the topic of {variable('kafka', 'retry_topic')} is not there"
        else:
            return Parking(int(now_ms) + self._settings.retry_delay_s * 1000, int(since_ms), attempt, turn.error)
        return Rejected(RejectReason.FETCH_FAILED, f"{turn.error} ({why})", stage="intake", attempts=attempt)

    def _end(self, referenced: Referenced, outcome: Rejected | Parking) -> None:
        self._count(referenced, "rejected" if isinstance(outcome, Rejected) else "parked")
        self._admission.release_reference()
        self._ended.put([Ended(referenced.item, referenced.image_id, None, outcome)], self._tools.stop)

    def _count(self, referenced: Referenced, outcome: str) -> str:
        """Returns the scheme."""
        scheme = referenced.reference.uri.partition(":")[0].lower()
        if scheme in SCHEMES:  # a label must not be a producer's free choice
            self._tools.metrics.fetches.labels(scheme=scheme, outcome=outcome).inc()
        return scheme
