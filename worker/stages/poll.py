"""Kafka -> records -> Intake, and offsets -> Kafka: the one thread that touches the consumer.

It polls whatever happens, so that the group keeps this worker: a full flow or a dependency that is away pauses the
partitions instead. An offset is committed once it and all before it have ended as a verdict or a rejection.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import structlog

from worker.clients.kafka import Consumer
from worker.contract import Record
from worker.errors import Unavailable
from worker.flow import Flow, HandOver
from worker.item import Item
from worker.offsets import OffsetTracker
from worker.retry import Dependency, StopSignal
from worker.settings import Settings
from worker.telemetry.metrics import Metrics
from worker.telemetry.tracing import Tracing

log = structlog.get_logger(__name__)
POLL_MS = 100
COMMIT_MS, LAST_COMMIT_MS = 5_000, 3_000
TELL_EVERY_S, ASK_AGAIN_S = (
    5.0,
    60.0,
)  # what keeps us from consuming; where nothing does, there are more workers than partitions


class Poll:
    """`run` consumes until a drain is asked for, `drain` lets the rest finish. `assigned`, `beat` and `joined_at` are
    for the probes.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        dependencies: Callable[[], Iterable[Dependency]],
        tracker: OffsetTracker,
        flow: Flow,
        intake: HandOver[list[Item]],
        metrics: Metrics,
        tracing: Tracing,
        drain: StopSignal,
        stop: StopSignal,
    ) -> None:
        self._settings = settings
        self._dependencies = dependencies
        self._tracker = tracker
        self._flow = flow
        self._intake = intake
        self._metrics = metrics
        self._tracing = tracing
        self._drain = drain
        self._stop = stop
        self._paused = False
        self._average_bytes = 1.0
        self.assigned: list[int] = []
        self.is_moving()

    def is_moving(self) -> None:
        """Called while the worker waits for its servers, before there is a group to be in."""
        self.beat = self.joined_at = time.monotonic()

    def run(self, consumer: Consumer) -> None:
        """The poll loop: admit records while there is room, commit about once a second."""
        commit_at = self.joined_at = time.monotonic()
        tell_at = commit_at + TELL_EVERY_S
        while not self._drain.is_set() and not self._stop.is_set():
            self.beat = time.monotonic()
            self._pause_or_resume(consumer)
            try:
                records = consumer.poll(POLL_MS, self._room())
                if consumer.is_joined:
                    self.joined_at = self.beat
                self._admit(records)
                if self.beat >= commit_at:
                    commit_at = self.beat + self._settings.kafka.commit_interval_ms / 1000
                    self._commit(consumer)
                    self._observe(consumer)
                if consumer.is_joined and self.assigned:
                    tell_at = self.beat + TELL_EVERY_S
                elif self.beat >= tell_at:
                    obstacle = consumer.obstacle()
                    tell_at = self.beat + (TELL_EVERY_S if obstacle else ASK_AGAIN_S)
                    if obstacle:
                        log.warning("nothing_to_consume", reason=obstacle)
            except Unavailable as error:
                log.warning("kafka_away", error=error.detail, action="polling goes on")
                self._drain.wait(0.5)

    def drain(self, consumer: Consumer) -> None:
        """Let what is under way finish and commit it; what the deadline cuts off is redelivered."""
        deadline = time.monotonic() + self._settings.run.drain_timeout_s
        consumer.set_paused(True)
        while self._tracker.unfinished() and time.monotonic() < deadline and not self._stop.is_set():
            self.beat = time.monotonic()
            try:
                consumer.poll(POLL_MS, 1)
                self._commit(consumer, min(COMMIT_MS, max(POLL_MS, int(1000 * (deadline - time.monotonic())))))
            except Unavailable as error:
                log.warning("kafka_away", error=error.detail, action="draining goes on")
                time.sleep(POLL_MS / 1000)
        left = self._tracker.unfinished()
        log.info("drained", unfinished=left, note="they are redelivered" if left else None)

    def commit_last(self, consumer: Consumer) -> None:
        """What the rooms finished before they stopped."""
        try:
            self._commit(consumer, LAST_COMMIT_MS)
        except Unavailable as error:
            log.warning(
                "last_commit_failed", error=error.detail, note="the records are redelivered and yield the same verdicts"
            )

    def on_assigned(self, partitions: list[int]) -> None:
        """From inside `poll`: new epochs begin. Cooperative: only what is new."""
        self._tracker.assign(partitions)
        self.assigned = sorted({*self.assigned, *partitions})
        self._metrics.assigned_partitions.set(len(self.assigned))
        if partitions:
            self._metrics.rebalances.inc()
            log.info("partitions_assigned", new=partitions, all=self.assigned)

    def on_revoked(self, partitions: list[int]) -> None:
        """From inside `poll` or `close`: these epochs end; what is under way for them is the new owner's."""
        fenced = self._tracker.revoke(partitions)
        self.assigned = sorted({*self.assigned} - {*partitions})
        self._metrics.assigned_partitions.set(len(self.assigned))
        for partition in partitions:
            self._metrics.forget_partition(self._settings.kafka.incoming_topic, partition)
        if partitions:
            log.info("partitions_revoked", gone=partitions, left=self.assigned, fenced=fenced)

    def _room(self) -> int:
        """Records to ask for: as many as the flow has room for, by count and by the bytes that records have lately."""
        room_bytes = max(0, self._flow.max_bytes - self._flow.bytes)
        return max(
            1, min(self._settings.kafka.max_poll_records, self._flow.room, int(room_bytes / self._average_bytes))
        )

    def _admit(self, records: list[Record]) -> None:
        """Give each record its epoch and its place in the flow, and hand them to Intake."""
        if not records:
            return
        now, now_ms = time.monotonic(), time.time() * 1000
        items = []
        for record in records:
            epoch = self._tracker.deliver(record.partition, record.offset)
            if epoch is None:
                continue
            size = len(record.value or b"")
            item = Item(
                record, epoch, touched_at=now, queued_ms=max(0.0, now_ms - record.timestamp_ms), held_bytes=size
            )
            item.trace = self._tracing.item(record.header("traceparent"))
            self._flow.admit(size)
            self._metrics.consumed_bytes.inc(size)
            items.append(item)
        if items:
            self._metrics.records_consumed.inc(len(items))
            self._intake.put(items, self._stop)
        self._average_bytes = max(
            self._average_bytes * 0.9, sum(len(r.value or b"") for r in records) / len(records), 1.0
        )

    def _pause_or_resume(self, consumer: Consumer) -> None:
        away = [dependency.name for dependency in self._dependencies() if dependency.is_away]
        paused = self._flow.is_full or bool(away)
        if paused is self._paused:
            return
        self._paused = paused
        consumer.set_paused(paused)
        self._metrics.paused.set(paused)
        if paused:
            cause = away[0] if away else "flow"
            self._metrics.pauses.labels(cause=cause).inc()
            log.debug("paused", cause=cause, items=self._flow.items, bytes=self._flow.bytes)
        else:
            log.debug("resumed")

    def _commit(self, consumer: Consumer, timeout_ms: int = COMMIT_MS) -> None:
        offsets = self._tracker.committable()
        if not offsets:
            return
        try:
            done = consumer.commit(offsets, timeout_ms=timeout_ms)
        except Unavailable:
            self._metrics.commit_failures.inc()
            raise
        if done:
            self._tracker.committed(offsets)
            self._metrics.commits.inc()
        else:
            self._metrics.commit_failures.inc()

    def _observe(self, consumer: Consumer) -> None:
        self._metrics.flow_items.set(self._flow.items)
        self._metrics.flow_bytes.set(self._flow.bytes)
        for partition, waiting in consumer.waiting().items():
            lag = waiting + self._tracker.unfinished([partition])
            self._metrics.consumer_lag.labels(topic=self._settings.kafka.incoming_topic, partition=str(partition)).set(
                lag
            )
