"""Record -> image: id, SHA-256, limits, cache look-up; then batches by count, bytes or deadline.

What needs no model (a bad record, bytes known to the cache) goes straight to the publisher; a reference goes to Fetch
and comes back as an encoded image. Nothing here parses an image's bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from worker.contract import REFERENCE_CONTENT_TYPE, ImageReference, Record, resolve_image_id
from worker.errors import Rejected, RejectReason
from worker.inflight import UnderWay
from worker.item import Encoded, Ended, Identified, Item, Judgement, Referenced
from worker.model import HashCache
from worker.queues import Outlet, StageQueue
from worker.settings import Settings
from worker.stages.stage import Stage, Tools

Arrival: TypeAlias = Item | Encoded  # a record from Kafka, or an image that a reference led to


class Intake(Stage):
    """`inbox` takes lists of arrivals. One thread: the batch that is being filled is its own."""

    def __init__(
        self,
        settings: Settings,
        tools: Tools,
        under_way: UnderWay,
        cache: HashCache,
        *,
        inbox: StageQueue[Sequence[Arrival]],
        references: StageQueue[Referenced],
        encoded: StageQueue[list[Encoded]],
        ended: Outlet[list[Ended]],
    ) -> None:
        self._settings = settings.intake
        self._max_image_bytes = settings.limits.max_image_bytes
        self._tools = tools
        self._under_way = under_way
        self._cache = cache
        self._inbox = inbox
        self._references = references
        self._encoded = encoded
        self._ended = ended
        self._batch: list[Encoded] = []
        self._batch_bytes = 0

    def step(self, wait_s: float) -> None:
        """Take all arrivals; send the batch once it is full or its oldest image has waited for long enough."""
        pieces = self._inbox.get_all(min(wait_s, self._time_left_s()) if self._batch else wait_s)
        self._take([arrival for piece in pieces for arrival in piece])
        if self._batch and self._time_left_s() <= 0:
            self._send()

    def _take(self, arrivals: Sequence[Arrival]) -> None:
        """Identify the arrivals, look the images among them up, and send each on its way."""
        ended: list[Ended] = []
        leaders: list[Encoded] = []
        to_read: list[Encoded] = []  # scores are known, the evidence is another reader's
        followers = 0
        for arrival in arrivals:
            identified = self._identify(arrival) if isinstance(arrival, Item) else arrival
            if isinstance(identified, Ended):
                ended.append(identified)
            elif isinstance(identified, Referenced):
                self._under_way.admission.admit_reference()
                self._references.put(identified, self._tools.stop)
            elif self._under_way.single_flight.join(identified.image, self._under_way.admission):
                leaders.append(identified)
            else:
                followers += 1
                identified.image.item.kept = None
                identified.image.item.release_fetched(self._under_way.admission)
        self._tools.metrics.coalesced_items.inc(followers)
        version, entries = self._cache.look_up([leader.image.sha256 for leader in leaders], self._tools.stop)
        for leader, entry in zip(leaders, entries, strict=True):
            if entry is None:
                self._add(leader)
                continue
            info = entry.info(len(leader.data))
            known = Judgement(
                info, entry.scores, version, from_cache=True, evidence=entry.evidence, reader=entry.reader
            )
            if entry.reader != self._cache.reader:
                to_read.append(replace(leader, known=known))
                continue
            leader.image.item.release_fetched(self._under_way.admission)
            ended.append(Ended.of(leader.image, known))
        if ended:
            self._ended.put(ended, self._tools.stop)
        for at in range(0, len(to_read), self._settings.batch_max_items):
            self._encoded.put(to_read[at : at + self._settings.batch_max_items], self._tools.stop)

    def _identify(self, item: Item) -> Encoded | Referenced | Ended:
        """Find out id and hash of a record, and whether its image is here."""
        record = item.record
        value = record.value or b""
        value_sha256 = record.omitted.sha256 if record.omitted else hashlib.sha256(value).hexdigest()
        reference: ImageReference | None = None
        unreadable: Rejected | None = None
        is_reference = bool(value) and record.content_type == REFERENCE_CONTENT_TYPE and not record.unreadable
        if is_reference:
            try:
                reference = ImageReference.parse(value)
            except Rejected as rejected:
                unreadable = rejected  # the id is found out first, so that the rejection carries it
        sha256 = None if is_reference else value_sha256
        named = reference.id if reference else None
        try:
            image_id = resolve_image_id(record, self._settings.id_sources, value_sha256, named)
        except Rejected as rejected:
            return Ended(item, None, sha256, _unreadable(record) or rejected)
        self._under_way.order.enter(image_id, item)
        if reference is not None:
            item.reference_uri = reference.uri
            return Referenced(item, image_id, reference)
        bad = _unreadable(record) or unreadable or self._objection(record)
        if bad is not None:
            return Ended(item, image_id, sha256, bad)
        return Encoded(Identified(item, image_id, value_sha256), value)

    def _objection(self, record: Record) -> Rejected | None:
        """What is wrong with a value by its size alone."""
        size = record.omitted.size_bytes if record.omitted else len(record.value or b"")
        if not size:
            return Rejected(RejectReason.EMPTY, "the record has no value", stage="intake")
        limit = self._max_image_bytes
        if size > limit:
            detail = f"{size} bytes; ASSAY_LIMITS__MAX_IMAGE_BYTES={limit}"
            return Rejected(RejectReason.TOO_LARGE, detail, stage="intake")
        if record.omitted:
            detail = f"{size} bytes are passed over when read; raise ASSAY_KAFKA__MAX_RECORD_BYTES"
            return Rejected(RejectReason.TOO_LARGE, detail, stage="intake")
        return None

    def _add(self, encoded: Encoded) -> None:
        if self._batch and self._batch_bytes + len(encoded.data) > self._settings.batch_max_bytes:
            self._send()
        self._batch.append(encoded)
        self._batch_bytes += len(encoded.data)
        if len(self._batch) >= self._settings.batch_max_items:
            self._send()

    def _time_left_s(self) -> float:
        """Until the batch must leave: its oldest image has waited for long enough."""
        oldest = self._batch[0].image.item.touched_at
        return max(0.0, oldest + self._settings.batch_max_wait_ms / 1000 - self._tools.clock.monotonic())

    def _send(self) -> None:
        batch, self._batch = self._batch, []
        self._tools.metrics.batch_items.observe(len(batch))
        self._tools.metrics.batch_bytes.observe(self._batch_bytes)
        self._batch_bytes = 0
        self._encoded.put(batch, self._tools.stop)


def _unreadable(record: Record) -> Rejected | None:
    """Its bytes on the wire could not be read (kafka_batches.py); whatever else is wrong with it does not count."""
    if not record.unreadable:
        return None
    return Rejected(RejectReason.UNREADABLE_RECORD, record.unreadable, stage="poll")
