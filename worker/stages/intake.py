"""Record -> item: image id, reference, limits, SHA-256, cache look-up; then batches by count, bytes or deadline.

One thread runs it; references are fetched by a small pool and come back through the inbox. An item that needs no model
(bad, or known to the cache) goes straight to the publisher.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from worker.clients.fetch import Fetcher
from worker.clients.redis import Store
from worker.contract import REFERENCE_CONTENT_TYPE, ImageInfo, ImageReference, resolve_image_id
from worker.errors import Rejected, RejectReason, Stopping, Unavailable
from worker.flow import Flow, HandOver
from worker.imaging import check_limits, peek
from worker.inflight import PublishOrder, SingleFlight
from worker.item import Batch, Item
from worker.retry import Dependency, StopSignal
from worker.settings import Settings
from worker.telemetry.metrics import Metrics

IDLE_S = 0.2


class Intake:
    """`inbox` takes lists of new items, and items whose reference has been fetched."""

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store,
        redis: Dependency,
        fetcher: Fetcher,
        storages: dict[str, Dependency],
        new_storage: Callable[[], Dependency],
        flow: Flow,
        order: PublishOrder,
        single_flight: SingleFlight,
        model_version: Callable[[], str],
        inbox: HandOver[list[Item]],
        decode: HandOver[Batch],
        publish: HandOver[list[Item]],
        metrics: Metrics,
        stop: StopSignal,
    ) -> None:
        self._settings = settings
        self._store = store
        self._redis = redis
        self._fetcher = fetcher
        self._storages = storages
        self._new_storage = new_storage
        self._flow = flow
        self._order = order
        self._single_flight = single_flight
        self._model_version = model_version
        self._decode = decode
        self._publish = publish
        self._metrics = metrics
        self._stop = stop
        self._batch: list[Item] = []
        self._batch_bytes = 0
        self._broken: Exception | None = None  # a defect in the pool, for `run` to end with
        self._inbox = inbox
        self._pool = ThreadPoolExecutor(settings.references.concurrency, thread_name_prefix="fetch")

    def run(self) -> None:
        """Work until `stop` is set."""
        try:
            while not self._stop.is_set():
                if self._broken is not None:
                    raise self._broken
                pieces = self._inbox.get_all(min(IDLE_S, self._time_left_s()))
                self._take([item for piece in pieces for item in piece])
                if self._batch and self._time_left_s() <= 0:
                    self._send()
        except Stopping:
            return
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _take(self, items: Sequence[Item]) -> None:
        """Identify `items`, look the images among them up, and send each on its way."""
        images: list[Item] = []
        ended: list[Item] = []
        for item in items:
            try:
                if self._identify(item):
                    images.append(item)
            except Rejected as rejected:
                item.rejected = rejected
                ended.append(item)
        leaders = []
        for item in images:
            if self._single_flight.join(item):
                leaders.append(item)
            else:
                item.let_go_fetched(self._flow)
        self._metrics.coalesced_items.inc(len(images) - len(leaders))
        for item, hit in zip(leaders, self._look_up(leaders), strict=True):
            if hit:
                ended.append(item)
                continue
            try:
                item.image = peek(item.data)
                check_limits(item.image, self._settings.limits)
            except Rejected as rejected:
                item.rejected = rejected
                ended.append(item)
            else:
                self._add(item)
        for item in ended:
            item.let_go_fetched(self._flow)
        if ended:
            self._publish.put(ended, self._stop)

    def _identify(self, item: Item) -> bool:
        """Fill in id, data and hash. True where the image is here, False where it is being fetched. Raises Rejected."""
        if item.image_id is not None:  # a reference comes back from the pool
            if item.rejected is not None:
                raise item.rejected
            item.sha256 = hashlib.sha256(item.data).hexdigest()
            return True
        value = item.record.value or b""
        value_sha256 = hashlib.sha256(value).hexdigest()
        reference: ImageReference | None = None
        unreadable: Rejected | None = None
        if value and item.record.content_type == REFERENCE_CONTENT_TYPE:
            try:
                reference = ImageReference.parse(value)
            except Rejected as rejected:
                unreadable = rejected  # the id is found out first, so that the rejection carries it
        else:
            item.sha256 = value_sha256
        image_id = resolve_image_id(
            item.record, self._settings.intake.id_sources, value_sha256, reference.id if reference else None
        )
        item.image_id = image_id
        self._order.enter(item)
        if unreadable is not None:
            raise unreadable
        if not value:
            raise Rejected(RejectReason.EMPTY, "the record has no value", stage="intake")
        if reference is not None:
            self._pool.submit(self._fetch, item, reference)
            return False
        limit = self._settings.limits.max_image_bytes
        if len(value) > limit:
            raise Rejected(
                RejectReason.TOO_LARGE, f"{len(value)} bytes; ASSAY_LIMITS__MAX_IMAGE_BYTES={limit}", stage="intake"
            )
        item.data = value
        return True

    def _fetch(self, item: Item, reference: ImageReference) -> None:
        """In the pool: get the image and put the item back into the inbox. A storage that is away is waited for."""
        scheme = reference.uri.partition(":")[0].lower()
        started = time.monotonic()
        try:
            self._flow.wait_to_fetch(self._stop)
            item.data = self._fetched(reference)
        except Rejected as rejected:
            item.rejected = rejected
            outcome = "rejected"
        except Stopping:
            return
        except Exception as error:  # noqa: BLE001  # leaves the room like any other defect
            self._broken = error
            return
        else:
            outcome = "ok"
            item.hold_fetched(self._flow)
            self._metrics.fetched_bytes.labels(scheme=scheme).inc(len(item.data))
        if scheme in ("file", "https", "s3"):  # a label must not be a producer's free choice
            self._metrics.fetches.labels(scheme=scheme, outcome=outcome).inc()
        self._metrics.stage_seconds.labels(stage="fetch").observe(time.monotonic() - started)
        self._inbox.put([item], self._stop)

    def _fetched(self, reference: ImageReference) -> bytes:
        """The image, however long its storage is away. Raises Rejected or Stopping."""
        place = "/".join(
            reference.uri.split("/", 3)[:3]
        ).lower()  # scheme and host or bucket: each has a breaker of its own
        if place not in self._storages:  # made when first needed: names that no rule allows must not pile up
            try:
                return self._fetcher.fetch(reference)
            except Unavailable:
                self._storages.setdefault(place, self._new_storage())
        return self._storages[place].call(lambda: self._fetcher.fetch(reference), self._stop)

    def _look_up(self, items: Sequence[Item]) -> list[bool]:
        """For each item whether the cache knew its scores (and has given it them)."""
        if not items or not self._settings.cache.enabled:
            return [False] * len(items)
        version = self._model_version()
        hashes = [item.sha256 or "" for item in items]
        entries = self._redis.call(lambda: self._store.cached(hashes, version), self._stop)
        for item, entry in zip(items, entries, strict=True):
            if entry is not None:
                item.scores, item.model_version, item.from_cache = entry.scores, version, True
                item.image = ImageInfo(
                    format=entry.format, width=entry.width, height=entry.height, bytes=len(item.data)
                )
        hits = [entry is not None for entry in entries]
        self._metrics.cache_lookups.labels(result="hit").inc(sum(hits))
        self._metrics.cache_lookups.labels(result="miss").inc(len(hits) - sum(hits))
        return hits

    def _add(self, item: Item) -> None:
        if self._batch_bytes + len(item.data) > self._settings.intake.batch_max_bytes and self._batch:
            self._send()
        self._batch.append(item)
        self._batch_bytes += len(item.data)
        if len(self._batch) >= self._settings.intake.batch_max_items:
            self._send()

    def _time_left_s(self) -> float:
        """Until the batch must leave: its oldest image has waited for long enough."""
        if not self._batch:
            return IDLE_S
        return max(0.0, self._batch[0].touched_at + self._settings.intake.batch_max_wait_ms / 1000 - time.monotonic())

    def _send(self) -> None:
        batch, self._batch = self._batch, []
        self._metrics.batch_items.observe(len(batch))
        self._metrics.batch_bytes.observe(self._batch_bytes)
        self._batch_bytes = 0
        self._decode.put(Batch(batch), self._stop)
