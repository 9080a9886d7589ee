"""Redis, then Kafka, then "done" to the offset tracker: the last stage, and the only one that ends an item.

A verdict is visible in Redis before its record appears. Results of a revoked partition are dropped (their scores still
go into the cache, so that the new owner's redo is cheap); whether it was revoked is asked again in each attempt,
because an attempt may have waited for minutes. Whatever is away is waited for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from worker import __version__
from worker.clients.kafka_producer import Outgoing, Producer
from worker.clients.redis import ScoredImage, Store, VerdictWrite
from worker.contract import MAX_IMAGE_ID_BYTES, Record, Verdict, verdict_headers
from worker.errors import Rejected, RejectReason
from worker.evidence import found
from worker.inflight import UnderWay
from worker.item import Ended, Item, Judgement
from worker.parking import Parking, parked_headers
from worker.queues import StageQueue
from worker.rejections import rejection_headers, without_rejection_headers
from worker.retry import Guarded
from worker.settings import Settings
from worker.stages.decide import facts_of, make_verdict, timestamp
from worker.stages.policy_watch import PolicyWatch
from worker.stages.stage import Stage, Tools

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Draft:
    """An ended item and, where it was judged, what is stored of it."""

    ended: Ended
    write: VerdictWrite | None = None

    @property
    def verdict(self) -> Verdict | None:
        """What is published, where it was judged."""
        return self.write.verdict if self.write else None

    @property
    def was_parked(self) -> bool:
        """Later records of its id may have been judged meanwhile."""
        return self.ended.item.record.parked is not None


class Publish(Stage):
    """`inbox` takes lists of ended items. One thread: whose turn it is, is its own business."""

    def __init__(
        self,
        settings: Settings,
        tools: Tools,
        under_way: UnderWay,
        policies: PolicyWatch,
        *,
        store: Guarded[Store],
        producer: Guarded[Producer],
        model_version: Callable[[], str],
        inbox: StageQueue[list[Ended]],
    ) -> None:
        self._settings = settings
        self._tools = tools
        self._under_way = under_way
        self._policies = policies
        self._store = store
        self._producer = producer
        self._model_version = model_version
        self._inbox = inbox
        self._held: dict[Item, Ended] = {}  # ended, but an earlier record of their id has not

    def step(self, wait_s: float) -> None:
        """End all that wait and have their turn."""
        waiting = [ended for piece in self._inbox.get_all(wait_s) for ended in piece]
        while ready := self._in_turn(waiting):
            with self._tools.tracing.batch("publish", [ended.item.trace for ended in ready]):
                waiting = self._publish(ready)

    def _in_turn(self, batch: Sequence[Ended]) -> list[Ended]:
        """Those whose turn it is; the others are held until the record before them has ended."""
        ready: list[Ended] = []
        waiting = deque(batch)
        while waiting:
            ended = waiting.popleft()
            if self._under_way.order.is_first(ended):
                ready.append(ended)
            else:
                self._held[ended.item] = ended
                # One of its followers may be the very item it waits for.
                waiting.extend(self._under_way.single_flight.land(ended))
        return ready

    def _publish(self, batch: Sequence[Ended]) -> list[Ended]:
        """End `batch`; returns the items that may be ended because of it."""
        started = self._tools.clock.monotonic()
        drafts = [self._draft(ended, started) for ended in batch]
        self._save(drafts)
        self._produce(drafts)
        finished = self._tools.clock.monotonic()
        for draft in drafts:
            self._end(draft, finished)
        self._tools.metrics.stage_seconds.labels(stage="publish").observe(finished - started)
        return self._released(batch)

    def _draft(self, ended: Ended, now: float) -> _Draft:
        item, judgement = ended.item, ended.outcome
        if not isinstance(judgement, Judgement) or not self._is_current(item):
            return _Draft(ended)
        total_ms = (item.queued_ms or 0.0) + (now - item.touched_at) * 1000
        name, now_s = self._settings.triton.model_name, self._tools.clock.time()
        verdict = make_verdict(ended, judgement, self._policies.policy, name, now_s=now_s, total_ms=total_ms)
        # A time that cannot be the record's says nothing: then it is as old as its verdict.
        age_s = (item.record.age_ms(now_s * 1000) or 0.0) / 1000
        return _Draft(ended, VerdictWrite(verdict, verdict.to_json(), timestamp(now_s - age_s)))

    def _is_current(self, item: Item) -> bool:
        return self._under_way.tracker.is_current(item.record.place, item.epoch)

    def _save(self, drafts: Sequence[_Draft]) -> None:
        """Verdicts of partitions that are still ours, and every score for the cache."""
        images = [image for draft in drafts if (image := _scored_image(draft.ended)) is not None]

        def save(store: Store) -> None:
            ours = [draft for draft in drafts if draft.verdict and self._is_current(draft.ended.item)]
            in_turn = [draft.write for draft in ours if draft.write and not draft.was_parked]
            late = [draft.write for draft in ours if draft.write and draft.was_parked]
            if ours or images:
                store.save(in_turn, images, late)

        self._store.call(save, self._tools.stop)

    def _produce(self, drafts: Sequence[_Draft]) -> None:
        """Until every record of a partition that is still ours is acknowledged; only what was not is sent again."""
        left = list(drafts)

        def produce(producer: Producer) -> list[_Draft]:
            ours = [draft for draft in left if self._is_current(draft.ended.item)]
            failed = producer.produce([self._outgoing(draft) for draft in ours]) if ours else []
            return [ours[index] for index in failed]

        while left:
            left = self._producer.call(produce, self._tools.stop)

    def _outgoing(self, draft: _Draft) -> Outgoing:
        ended, kafka = draft.ended, self._settings.kafka
        record = ended.item.record
        if draft.write is not None:
            verdict, as_json = draft.write.verdict, draft.write.as_json
            headers = verdict_headers(verdict, kafka.group_id, ended.item.trace.traceparent)
            return Outgoing(kafka.verdicts_topic, verdict.image_id.encode(), as_json.encode(), headers)
        if isinstance(ended.outcome, Parking):
            parking = ended.outcome
            detail = f"{parking.detail} (it cannot be parked: {kafka.retry_topic} refuses it, or is not there)"
            refused = Rejected(RejectReason.FETCH_FAILED, detail, stage="intake", attempts=parking.attempt)
            headers = parked_headers(record, parking)
            instead = self._rejection(ended, refused)
            return Outgoing(kafka.retry_topic, record.key, record.value, headers, instead=instead)
        assert isinstance(ended.outcome, Rejected), "a current item without a verdict was rejected"
        return self._rejection(ended, ended.outcome)

    def _rejection(self, ended: Ended, rejected: Rejected) -> Outgoing:
        record = ended.item.record
        headers = rejection_headers(
            record,
            rejected,
            image_id=ended.image_id or _as_received(record),
            sha256=ended.sha256,
            worker_version=__version__,
            model_version=self._model_version() or None,
        )
        own = len(headers) - len(without_rejection_headers(record.headers))
        return Outgoing(self._settings.kafka.rejected_topic, record.key, record.value, headers, own)

    def _end(self, draft: _Draft, now: float) -> None:
        """Count the item as done, unless its partition is somebody else's by now."""
        ended = draft.ended
        item, metrics = ended.item, self._tools.metrics
        item.release(self._under_way.admission)
        if not self._under_way.tracker.finish(item.record.place, item.epoch, item.record.offset):
            metrics.stale_results.inc()
            item.trace.finish("stale")
            return
        metrics.last_progress_timestamp_seconds.set(self._tools.clock.time())
        if item.queued_ms is not None:
            metrics.stage_seconds.labels(stage="queued").observe(item.queued_ms / 1000)
        metrics.stage_seconds.labels(stage="total").observe(now - item.touched_at)
        if isinstance(ended.outcome, Rejected):
            reason, stage, detail = ended.outcome.reason.value, ended.outcome.stage, ended.outcome.detail
            metrics.rejections.labels(reason=reason, stage=stage).inc()
            item.trace.finish("rejected")
            log.info(
                "image_rejected", image_id=ended.image_id, reason=reason, stage=stage, detail=detail, origin=item.origin
            )
        elif isinstance(ended.outcome, Parking):
            metrics.records_parked.inc()
            item.trace.finish("parked")
            log.info(
                "record_parked",
                image_id=ended.image_id,
                attempt=ended.outcome.attempt,
                detail=ended.outcome.detail,
                origin=item.origin,
            )
        elif draft.verdict is not None:
            self._count(ended, draft.verdict, ended.outcome)
            item.trace.finish("verdict")
            log.debug(
                "verdict_published",
                image_id=draft.verdict.image_id,
                decision=draft.verdict.decision,
                source=draft.verdict.source,
                origin=item.origin,
            )

    def _count(self, ended: Ended, verdict: Verdict, judgement: Judgement) -> None:
        metrics = self._tools.metrics
        for stage, took_ms in (("decode", judgement.decode_ms), ("infer", judgement.infer_ms)):
            if took_ms is not None:
                metrics.stage_seconds.labels(stage=stage).observe(took_ms / 1000)
        metrics.verdicts.labels(decision=verdict.decision, source=verdict.source).inc()
        for head, score in verdict.scores:
            metrics.scores.labels(head=head).observe(score)
        for kind, value in found(verdict.evidence):
            metrics.evidence.labels(kind=kind, value=value).inc()
        self._policies.observe(verdict)
        if (shadow := self._policies.shadow) is not None:
            would_be = shadow.decide(facts_of(ended, judgement, shadow.headers)).decision
            metrics.policy_shadow_decisions.labels(decision=verdict.decision, shadow=would_be).inc()

    def _released(self, batch: Sequence[Ended]) -> list[Ended]:
        """Followers of `batch` have their outcome now, and the next record of each id has its turn."""
        released: list[Ended] = []
        for ended in batch:
            released += self._under_way.single_flight.land(ended)
            following = self._under_way.order.leave(ended)
            if following is not None and (held := self._held.pop(following, None)) is not None:
                released.append(held)
        return released


def _as_received(record: Record) -> str:
    """The id that is none, for whoever looks for the record."""
    return (record.header("ce_id") or record.key or b"").decode("utf-8", "replace")[:MAX_IMAGE_ID_BYTES]


def _scored_image(ended: Ended) -> ScoredImage | None:
    judgement = ended.outcome
    if not isinstance(judgement, Judgement) or ended.sha256 is None or ended.image_id is None:
        return None
    return ScoredImage(
        ended.sha256,
        ended.image_id,
        judgement.model_version,
        judgement.scores,
        judgement.info,
        judgement.evidence,
        judgement.reader,
        list(judgement.detectors.values()),
    )
