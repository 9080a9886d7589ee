"""Kafka -> records -> Intake, and offsets -> Kafka: the one thread that touches the consumer.

It polls whatever happens, so that the group keeps this worker: a full admission or a server that is away pauses the
partitions instead. An offset is committed once it and all before it have ended as a verdict or a rejection. Asked to
drain, it takes nothing new and goes on until what is under way has ended.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from worker.clients.kafka_consumer import Consumer
from worker.clock import StopSignal
from worker.contract import Partition, Record
from worker.errors import Stopping, Unavailable
from worker.inflight import UnderWay
from worker.item import Item
from worker.queues import StageQueue
from worker.retry import CircuitBreaker
from worker.settings import Settings
from worker.stages.intake import Arrival
from worker.stages.stage import Stage, Tools

log = structlog.get_logger(__name__)
POLL_S = 0.1
AWAY_S = 0.5  # between two polls while no broker answers
COMMIT_MS, LAST_COMMIT_MS = 5_000, 3_000
# What keeps us from consuming; where nothing does, there are more workers than partitions.
TELL_EVERY_S, ASK_AGAIN_S = 5.0, 60.0


class Poll(Stage):
    """Driven by the main thread once it has its consumer (`attach`). `assigned`, `heartbeat_at` and `joined_at` are for
    the probes.
    """

    def __init__(
        self,
        settings: Settings,
        tools: Tools,
        under_way: UnderWay,
        *,
        drain: StopSignal,
        breakers: Sequence[CircuitBreaker],
        arrivals: StageQueue[Sequence[Arrival]],
    ) -> None:
        self._settings = settings
        self._tools = tools
        self._under_way = under_way
        self._drain = drain
        self._breakers = breakers
        self._arrivals = arrivals
        self._consumer: Consumer | None = None
        self._paused = False
        self._commit_at = self._warn_at = self._tell_away_at = 0.0
        self._drain_until: float | None = None
        self.assigned: list[Partition] = []
        self.record_heartbeat()

    def record_heartbeat(self) -> None:
        """Called while the worker waits for its servers, before there is a group to be in."""
        self.heartbeat_at = self.joined_at = self._tools.clock.monotonic()

    def attach(self, consumer: Consumer) -> None:
        """Begin with `consumer`, whose rebalances go to `on_assigned` and `on_revoked`."""
        self._consumer = consumer
        self._commit_at = self.joined_at = self._tools.clock.monotonic()
        self._warn_at = self._commit_at + TELL_EVERY_S

    @property
    def has_incoming(self) -> bool:
        """Is a partition of the incoming topic ours? Those of the retry topic alone are no work."""
        return self._count_incoming() > 0

    def _count_incoming(self) -> int:
        return sum(partition.topic == self._settings.kafka.incoming_topic for partition in self.assigned)

    def can_park(self) -> bool:
        """Is there a retry topic?"""
        return self._consumer is not None and self._consumer.can_park

    def step(self, wait_s: float) -> None:
        """Admit what there is place for, commit about once a second. Raises Stopping once it has drained."""
        assert self._consumer is not None, "attach comes first"
        self.heartbeat_at = self._tools.clock.monotonic()
        if self._drain.is_set():
            self._drain_on(self._consumer, wait_s)
            return
        self._pause_or_resume(self._consumer)
        try:
            records = self._consumer.poll(int(wait_s * 1000), self._records_to_ask_for(), self._bytes_to_ask_for())
            if self._consumer.is_joined:
                self.joined_at = self.heartbeat_at
            self._admit(records)
            if self.heartbeat_at >= self._commit_at:
                self._commit_at = self.heartbeat_at + self._settings.kafka.commit_interval_ms / 1000
                self._under_way.tracker.pass_over(self._consumer.positions())  # all that was polled is admitted
                self._commit(self._consumer)
                self._observe(self._consumer)
            self._tell_what_keeps_us(self._consumer)
        except Unavailable as error:
            self._tell_away(error, "polling goes on")
            self._drain.wait(AWAY_S)

    def _drain_on(self, consumer: Consumer, wait_s: float) -> None:
        """Let what is under way finish and commit it; what the deadline cuts off is redelivered."""
        now = self.heartbeat_at
        if self._drain_until is None:
            self._drain_until = now + self._settings.run.drain_timeout_s
            consumer.set_paused(True)
            log.info("draining", unfinished=self._under_way.tracker.unfinished())
        left = self._under_way.tracker.unfinished()
        if not left or now >= self._drain_until:
            log.info("drained", unfinished=left, note="they are redelivered" if left else None)
            raise Stopping("drained")
        try:
            consumer.poll(int(wait_s * 1000), 1)
            self._commit(consumer, min(COMMIT_MS, max(100, int(1000 * (self._drain_until - now)))))
        except Unavailable as error:
            self._tell_away(error, "draining goes on")
            self._tools.stop.wait(wait_s)

    def _tell_away(self, error: Unavailable, action: str) -> None:
        """Every few seconds: each poll fails alike."""
        if self.heartbeat_at >= self._tell_away_at:
            self._tell_away_at = self.heartbeat_at + TELL_EVERY_S
            log.warning("kafka_away", error=error.detail, action=action)

    def commit_last(self) -> None:
        """What the other stages finished before they stopped."""
        if self._consumer is None:
            return
        try:
            self._commit(self._consumer, LAST_COMMIT_MS)
        except Unavailable as error:
            note = "the records are redelivered and yield the same verdicts"
            log.warning("last_commit_failed", error=error.detail, note=note)

    def on_assigned(self, partitions: list[Partition]) -> None:
        """From inside `poll`: new epochs begin. Cooperative: only what is new."""
        self._under_way.tracker.assign(partitions)
        self.assigned = sorted({*self.assigned, *partitions})
        self._tools.metrics.assigned_partitions.set(self._count_incoming())
        if partitions:
            self._tools.metrics.rebalances.inc()
            log.info("partitions_assigned", new=_shown(partitions), all=_shown(self.assigned))

    def on_revoked(self, partitions: list[Partition]) -> None:
        """From inside `poll` or `close`: these epochs end; what is under way for them is the new owner's."""
        fenced = self._under_way.tracker.revoke(partitions)
        self.assigned = sorted({*self.assigned} - {*partitions})
        self._tools.metrics.assigned_partitions.set(self._count_incoming())
        for partition in partitions:
            self._tools.metrics.forget_partition(partition.topic, partition.number)
        if partitions:
            log.info("partitions_revoked", gone=_shown(partitions), left=_shown(self.assigned), fenced=fenced)

    def _records_to_ask_for(self) -> int:
        """As many as may be admitted; at least one."""
        return max(1, min(self._settings.kafka.max_poll_records, self._under_way.admission.free_items))

    def _bytes_to_ask_for(self) -> int:
        """As many as may be admitted. The record that reaches them still comes."""
        admission = self._under_way.admission
        return max(1, admission.max_bytes - admission.bytes)

    def _admit(self, records: list[Record]) -> None:
        """Give each record its epoch and its place, and hand them to Intake."""
        if not records:
            return
        clock, metrics = self._tools.clock, self._tools.metrics
        now, now_ms = clock.monotonic(), clock.time() * 1000
        items: list[Item] = []
        for record in records:
            epoch = self._under_way.tracker.deliver(record.place, record.offset)
            if epoch is None:
                continue
            trace = self._tools.tracing.item(record.header("traceparent"))
            item = Item(record, epoch, now, queued_ms=None if record.parked else record.age_ms(now_ms), trace=trace)
            self._under_way.admission.admit(item.record.size_bytes)
            metrics.consumed_bytes.inc(len(record.value or b""))
            items.append(item)
        if items:
            metrics.records_consumed.inc(len(items))
            self._arrivals.put(items, self._tools.stop)

    def _pause_or_resume(self, consumer: Consumer) -> None:
        admission = self._under_way.admission
        away = [breaker.name for breaker in self._breakers if breaker.is_away]
        paused = admission.is_full or bool(away)
        if paused is self._paused:
            return
        self._paused = paused
        consumer.set_paused(paused)
        self._tools.metrics.paused.set(paused)
        if paused:
            cause = away[0] if away else "flow"
            self._tools.metrics.pauses.labels(cause=cause).inc()
            log.debug("paused", cause=cause, items=admission.items, bytes=admission.bytes)
        else:
            log.debug("resumed")

    def _commit(self, consumer: Consumer, timeout_ms: int = COMMIT_MS) -> None:
        tracker, metrics = self._under_way.tracker, self._tools.metrics
        offsets = tracker.committable()
        if not offsets:
            return
        try:
            done = consumer.commit(offsets, timeout_ms=timeout_ms)
        except Unavailable:
            metrics.commit_failures.inc()
            raise
        if done:
            tracker.committed(offsets)
            metrics.commits.inc()
        else:
            metrics.commit_failures.inc()

    def _observe(self, consumer: Consumer) -> None:
        admission, metrics = self._under_way.admission, self._tools.metrics
        metrics.flow_items.set(admission.items)
        metrics.flow_bytes.set(admission.bytes)
        for partition, waiting in consumer.waiting().items():
            lag = waiting + self._under_way.tracker.unfinished([partition])
            metrics.consumer_lag.labels(topic=partition.topic, partition=str(partition.number)).set(lag)

    def _tell_what_keeps_us(self, consumer: Consumer) -> None:
        """Every few seconds without partitions: why, where something is in the way."""
        if consumer.is_joined and self.has_incoming:
            self._warn_at = self.heartbeat_at + TELL_EVERY_S
        elif self.heartbeat_at >= self._warn_at:
            obstacle = consumer.obstacle()
            self._warn_at = self.heartbeat_at + (TELL_EVERY_S if obstacle else ASK_AGAIN_S)
            if obstacle:
                log.warning("nothing_to_consume", reason=obstacle)


def _shown(partitions: Sequence[Partition]) -> list[str]:
    return [f"{partition.topic}/{partition.number}" for partition in partitions]
