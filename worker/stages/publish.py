"""Redis, then Kafka, then "done" to the offset tracker: the last room, and the only one that ends an item.

A verdict is visible in Redis before its record appears. Results of a revoked partition are dropped (their scores still
go into the cache, so that the new owner's redo is cheap). Whatever is away is waited for.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

import structlog

from worker import __version__
from worker.clients.kafka import Outgoing, Producer
from worker.clients.redis import ScoredImage, Store
from worker.contract import MAX_IMAGE_ID_BYTES, Record, Verdict, rejection_headers, verdict_headers
from worker.errors import Stopping
from worker.flow import Flow, HandOver
from worker.inflight import PublishOrder, SingleFlight
from worker.item import Item
from worker.offsets import OffsetTracker
from worker.policy import Policy
from worker.retry import Dependency, StopSignal
from worker.settings import Settings
from worker.stages.decide import make_verdict
from worker.telemetry.metrics import Metrics
from worker.telemetry.tracing import Tracing

log = structlog.get_logger(__name__)
IDLE_S = 0.2


class Publish:
    """The last room. `inbox` takes lists of items that have scores or a rejection."""

    def __init__(
        self,
        settings: Settings,
        *,
        policy: Policy,
        store: Store,
        redis: Dependency,
        producer: Producer,
        kafka: Dependency,
        tracker: OffsetTracker,
        flow: Flow,
        order: PublishOrder,
        single_flight: SingleFlight,
        model_version: Callable[[], str],
        inbox: HandOver[list[Item]],
        metrics: Metrics,
        tracing: Tracing,
        stop: StopSignal,
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._policy_ref = policy.ref
        self._store = store
        self._redis = redis
        self._producer = producer
        self._kafka = kafka
        self._tracker = tracker
        self._flow = flow
        self._order = order
        self._single_flight = single_flight
        self._model_version = model_version
        self._inbox = inbox
        self._metrics = metrics
        self._tracing = tracing
        self._stop = stop
        self._held: set[Item] = set()  # ended, but an earlier record of their id has not

    def run(self) -> None:
        """Work until `stop` is set."""
        try:
            while not self._stop.is_set():
                items = [item for piece in self._inbox.get_all(IDLE_S) for item in piece]
                while ready := self._in_turn(items):
                    with self._tracing.batch("publish", [item.trace for item in ready]):
                        items = self._publish(ready)
        except Stopping:
            return

    def _in_turn(self, items: Sequence[Item]) -> list[Item]:
        """Those whose turn it is; the others are held until the record before them has ended."""
        ready: list[Item] = []
        waiting = deque(items)
        while waiting:
            item = waiting.popleft()
            if self._order.is_first(item):
                ready.append(item)
            else:
                self._held.add(item)
                waiting.extend(self._single_flight.land(item))  # one of its followers may be the very item it waits for
        return ready

    def _publish(self, items: Sequence[Item]) -> list[Item]:
        """End `items`; returns the items that may be ended because of it."""
        current = [item for item in items if self._tracker.is_current(item.record.partition, item.epoch)]
        started = time.monotonic()
        verdicts = {item: self._verdict(item, started) for item in current if item.rejected is None}
        texts = {item: verdict.to_json() for item, verdict in verdicts.items()}
        images = [_scored_image(item) for item in items if item.scores is not None]
        if verdicts or images:
            pairs = [(verdict, texts[item]) for item, verdict in verdicts.items()]
            self._redis.call(lambda: self._store.save(pairs, images), self._stop)
        self._produce([self._outgoing(item, verdicts.get(item), texts.get(item)) for item in current])
        finished = time.monotonic()
        for item in items:
            self._end(item, verdicts.get(item), finished)
        self._metrics.stage_seconds.labels(stage="publish").observe(finished - started)
        return self._released(items)

    def _verdict(self, item: Item, now: float) -> Verdict:
        total_ms = item.queued_ms + (now - item.touched_at) * 1000
        return make_verdict(
            item, self._policy, self._policy_ref, self._settings.triton.model_name, now_s=time.time(), total_ms=total_ms
        )

    def _outgoing(self, item: Item, verdict: Verdict | None, text: str | None) -> Outgoing:
        record = item.record
        if verdict is not None and text is not None:
            headers = verdict_headers(verdict, self._settings.kafka.group_id, item.trace.traceparent)
            return Outgoing(self._settings.kafka.verdicts_topic, verdict.image_id.encode(), text.encode(), headers)
        assert item.rejected is not None
        headers = rejection_headers(
            record,
            item.rejected,
            image_id=item.image_id or _as_received(record),
            sha256=item.sha256,
            worker_version=__version__,
            model_version=self._model_version() or None,
        )
        return Outgoing(self._settings.kafka.rejected_topic, record.key, record.value, headers)

    def _produce(self, outgoing: Sequence[Outgoing]) -> None:
        """Until every record is acknowledged; only what was not is sent again."""
        left = list(outgoing)
        while left:
            sending = left
            failed = self._kafka.call(lambda sending=sending: self._producer.produce(sending), self._stop)  # type: ignore[misc]
            left = [sending[index] for index in failed]

    def _end(self, item: Item, verdict: Verdict | None, now: float) -> None:
        record, metrics = item.record, self._metrics
        self._flow.release(item.held_bytes)
        if not self._tracker.finish(record.partition, item.epoch, record.offset):
            metrics.stale_results.inc()
            item.trace.finish("stale")
            return
        metrics.last_progress_timestamp_seconds.set_to_current_time()
        metrics.stage_seconds.labels(stage="queued").observe(item.queued_ms / 1000)
        metrics.stage_seconds.labels(stage="total").observe(now - item.touched_at)
        if item.decode_ms is not None:
            metrics.stage_seconds.labels(stage="decode").observe(item.decode_ms / 1000)
        if item.infer_ms is not None:
            metrics.stage_seconds.labels(stage="infer").observe(item.infer_ms / 1000)
        if verdict is not None:
            metrics.verdicts.labels(decision=verdict.decision, source=verdict.source).inc()
            for head, score in verdict.scores:
                metrics.scores.labels(head=head).observe(score)
            item.trace.finish("verdict")
            log.debug(
                "verdict_published",
                image_id=verdict.image_id,
                decision=verdict.decision,
                source=verdict.source,
                origin=item.origin,
            )
        elif item.rejected is not None:
            reason, stage = item.rejected.reason.value, item.rejected.stage
            metrics.rejections.labels(reason=reason, stage=stage).inc()
            item.trace.finish("rejected")
            log.info(
                "image_rejected",
                image_id=item.image_id,
                reason=reason,
                stage=stage,
                detail=item.rejected.detail,
                origin=item.origin,
            )

    def _released(self, items: Sequence[Item]) -> list[Item]:
        """Followers of `items` have their result now, and the next record of each id has its turn."""
        released: list[Item] = []
        for item in items:
            released += self._single_flight.land(item)
            following = self._order.leave(item)
            if following in self._held:
                self._held.discard(following)
                released.append(following)
        return released


def _as_received(record: Record) -> str:
    """The id that is none, for whoever looks for the record."""
    return (record.header("ce_id") or record.key or b"").decode("utf-8", "replace")[:MAX_IMAGE_ID_BYTES]


def _scored_image(item: Item) -> ScoredImage:
    assert item.sha256 is not None
    assert item.image_id is not None
    assert item.model_version is not None
    assert item.scores is not None
    assert item.image is not None
    return ScoredImage(item.sha256, item.image_id, item.model_version, item.scores, item.image)
