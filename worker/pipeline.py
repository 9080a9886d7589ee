"""The whole flow on one screen: which rooms an image passes, who hands it to whom, and how a worker starts, drains and stops.

    Kafka ──poll──▶ Intake ──▶ Decode ──▶ Infer x n ──▶ Publish ──▶ Redis, then Kafka
      ▲               │ bad, or known to the cache        ▲  │
      │               └───────────────────────────────────┘  ▼
      └──────── commit of the contiguous finished prefix ── offsets

One thread each; only the poll thread touches the consumer. Every record admitted ends in Publish, as a verdict or as a
rejection; whatever a room waits for (Redis, Triton, a storage) fills the flow, a full flow pauses the partitions, and
the poll thread goes on polling so that the group keeps this worker.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import structlog

from worker import __version__
from worker.clients.fetch import Fetcher
from worker.clients.kafka import Consumer, Producer
from worker.clients.redis import Store
from worker.clients.triton import Triton
from worker.contract import Record
from worker.errors import AssayError, Stopping, Unavailable
from worker.flow import Flow, HandOver
from worker.inflight import PublishOrder, SingleFlight
from worker.item import Batch, Item
from worker.monitor import Monitor
from worker.offsets import OffsetTracker
from worker.policy import load_policy
from worker.retry import BreakerState, Dependency
from worker.settings import Settings
from worker.stages.decode import Decode
from worker.stages.infer import Infer, ModelWatch
from worker.stages.intake import Intake
from worker.stages.publish import Publish
from worker.stages.shadow import Shadow
from worker.telemetry.certificates import certificate_files
from worker.telemetry.health import HealthServer
from worker.telemetry.metrics import Metrics
from worker.telemetry.tracing import Tracing

log = structlog.get_logger(__name__)
POLL_MS = 100


class Pipeline:
    """One worker. `run` is its whole life; `request_stop` begins the drain. `on_ready(http_port)` is told once it consumes.

    Raises SettingsError for what is wrong with the settings, Unavailable where a dependency does not come up in time,
    and whatever a stage broke with: the process then ends, and what was not committed is redelivered.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics(certificates=certificate_files(settings))
        self.policy = load_policy(settings.policy.path)
        self._stop_requested = threading.Event()  # begin to drain
        self._stop = threading.Event()  # every room stops at once
        self._broken: BaseException | None = None
        self._beat = self._joined_at = time.monotonic()
        self._threads: list[threading.Thread] = []

        self.flow = Flow(settings.flow)
        self.tracker = OffsetTracker()
        self._order = PublishOrder()
        self._kafka, self._redis, self._triton_server = (self._dependency(name) for name in ("kafka", "redis", "triton"))
        self._storages: dict[str, Dependency] = {}

        self._fetcher = Fetcher(settings.references, settings.limits, sleep=self._sleep)
        self._store = Store(settings.redis)
        self._triton = Triton(settings.triton, settings.intake.batch_max_items)
        self._watch = ModelWatch(self._triton, settings.triton.model_name, self.metrics)
        self._tracing = Tracing(settings.tracing, __version__)
        self._monitor = Monitor(
            settings,
            store=self._store,
            triton=self._triton,
            watch=self._watch,
            breakers=(self._redis, self._triton_server),
            metrics=self.metrics,
            assigned=lambda: self._assigned,
            beat=lambda: self._beat,
            joined=lambda: self._joined_at,
        )
        self._assigned: list[int] = []
        self._paused = False

    # ── life cycle ────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, on_ready: Callable[[int], None] = lambda _port: None) -> None:
        """Start, consume until `request_stop`, drain, stop."""
        server = HealthServer(self.settings.http.host, self.settings.http.port, self.metrics, self._monitor.livez, self._monitor.readyz)
        server.start()
        self._describe()
        try:
            consumer, producer = self._start()
            on_ready(server.port)
            try:
                self._consume(consumer)
                self._drain(consumer)
            finally:
                self._halt(consumer, producer)
        except Stopping:
            log.info("stopped_before_start")
        finally:
            self._stop.set()
            self._monitor.stop()
            self._tracing.close()
            server.stop()
        if self._broken is not None:
            raise self._broken

    def request_stop(self) -> None:
        """Drain and stop; asked a second time, stop at once (what is not finished is redelivered)."""
        if self._stop_requested.is_set():
            self._stop.set()
        self._stop_requested.set()

    def handle_signals(self) -> None:
        """SIGTERM and SIGINT drain. Called from the main thread."""

        def handle(number: int, _frame: FrameType | None) -> None:
            log.info("signal", name=signal.Signals(number).name, action="draining")
            self.request_stop()

        signal.signal(signal.SIGTERM, handle)
        signal.signal(signal.SIGINT, handle)

    def _start(self) -> tuple[Consumer, Producer]:
        """Wait for the three servers, then open the rooms from the last to the first."""
        settings, stop, metrics = self.settings, self._stop, self.metrics
        deadline = time.monotonic() + settings.run.startup_timeout_s if settings.run.startup_timeout_s else None
        self._monitor.start()
        self._wait_for(self._redis, self._store.ping, deadline)
        self._wait_for(self._triton_server, self._watch.refresh, deadline)
        producer = self._wait_for(self._kafka, lambda: Producer(settings.kafka), deadline)

        publish_inbox: HandOver[list[Item]] = HandOver()
        decode_inbox: HandOver[Batch] = HandOver(capacity=2)
        infer_inbox: HandOver[Batch] = HandOver(capacity=1)
        single_flight = SingleFlight()
        publish = Publish(
            settings,
            policy=self.policy,
            store=self._store,
            redis=self._redis,
            producer=producer,
            kafka=self._kafka,
            tracker=self.tracker,
            flow=self.flow,
            order=self._order,
            single_flight=single_flight,
            model_version=lambda: self._watch.version,
            inbox=publish_inbox,
            metrics=metrics,
            tracing=self._tracing,
            stop=stop,
        )
        infer = Infer(
            settings.triton,
            dependency=self._triton_server,
            watch=self._watch,
            inbox=infer_inbox,
            publish=publish_inbox,
            metrics=metrics,
            tracing=self._tracing,
            stop=stop,
            shadow=self._open_shadow(),
        )
        decode = Decode(
            settings.decode, flow=self.flow, inbox=decode_inbox, infer=infer_inbox, publish=publish_inbox, tracing=self._tracing, stop=stop
        )
        self._intake = Intake(
            settings,
            store=self._store,
            redis=self._redis,
            fetcher=self._fetcher,
            storages=self._storages,
            new_storage=lambda: self._dependency("storage"),
            flow=self.flow,
            order=self._order,
            single_flight=single_flight,
            model_version=lambda: self._watch.version,
            decode=decode_inbox,
            publish=publish_inbox,
            metrics=metrics,
            stop=stop,
        )
        self._open("publish", publish.run)
        for number in range(settings.triton.calls_in_flight):
            self._open(f"infer-{number}", infer.run)
        self._open("decode", decode.run)
        self._open("intake", self._intake.run)
        return self._wait_for(self._kafka, lambda: Consumer(settings.kafka, self._on_assigned, self._on_revoked), deadline), producer

    def _consume(self, consumer: Consumer) -> None:
        """The poll loop: admit records while there is room, commit about once a second."""
        self._joined_at = time.monotonic()
        commit_at = time.monotonic()
        average_bytes = 1.0
        while not self._stop_requested.is_set() and self._broken is None:
            self._beat = time.monotonic()
            self._pause_or_resume(consumer)
            room_bytes = max(0, self.flow.max_bytes - self.flow.bytes)
            most = max(1, min(self.settings.kafka.max_poll_records, self.flow.room, int(room_bytes / average_bytes)))
            try:
                records = consumer.poll(POLL_MS, most)
                if consumer.is_joined:
                    self._joined_at = self._beat
                self._admit(records)
                if records:
                    average_bytes = max(average_bytes * 0.9, sum(len(r.value or b"") for r in records) / len(records), 1.0)
                if self._beat >= commit_at:
                    commit_at = self._beat + self.settings.kafka.commit_interval_ms / 1000
                    self._commit(consumer)
                    self._observe(consumer)
            except Unavailable as error:
                log.warning("kafka_away", error=error.detail, action="polling goes on")
                self._stop_requested.wait(0.5)

    def _drain(self, consumer: Consumer) -> None:
        """Let what is under way finish and commit it; what the deadline cuts off is redelivered."""
        deadline = time.monotonic() + self.settings.run.drain_timeout_s
        consumer.set_paused(True)
        while self.tracker.unfinished() and time.monotonic() < deadline and not self._stop.is_set() and self._broken is None:
            self._beat = time.monotonic()
            try:
                consumer.poll(POLL_MS, 1)
                self._commit(consumer)
            except Unavailable as error:
                log.warning("kafka_away", error=error.detail, action="draining goes on")
                time.sleep(POLL_MS / 1000)
        left = self.tracker.unfinished()
        log.info("drained", unfinished=left, note="they are redelivered" if left else None)

    def _halt(self, consumer: Consumer, producer: Producer) -> None:
        """Stop the rooms, commit what they finished, leave the group."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=10)
        try:
            self._commit(consumer)
        except Unavailable as error:
            log.warning("last_commit_failed", error=error.detail, note="the records are redelivered and yield the same verdicts")
        for close in (consumer.close, producer.close, self._fetcher.close, self._triton.close, self._store.close):
            try:
                close()
            except (AssayError, OSError) as error:
                log.warning("close_failed", error=str(error))

    # ── poll thread ───────────────────────────────────────────────────────────────────────────────────────────────

    def _admit(self, records: list[Record]) -> None:
        """Give each record its epoch and its place in the flow, and hand them to Intake."""
        now, now_ms = time.monotonic(), time.time() * 1000
        items = []
        for record in records:
            epoch = self.tracker.deliver(record.partition, record.offset)
            if epoch is None:
                continue
            size = len(record.value or b"")
            item = Item(record, epoch, touched_at=now, queued_ms=max(0.0, now_ms - record.timestamp_ms), held_bytes=size)
            item.trace = self._tracing.item(record.header("traceparent"))
            self.flow.admit(size)
            self.metrics.consumed_bytes.inc(size)
            items.append(item)
        if items:
            self.metrics.records_consumed.inc(len(items))
            self._intake.inbox.put(items, self._stop)

    def _pause_or_resume(self, consumer: Consumer) -> None:
        away = [
            dependency.name for dependency in (self._redis, self._triton_server, self._kafka, *list(self._storages.values())) if dependency.is_away
        ]
        paused = self.flow.is_full or bool(away)
        if paused is self._paused:
            return
        self._paused = paused
        consumer.set_paused(paused)
        self.metrics.paused.set(paused)
        if paused:
            cause = away[0] if away else "flow"
            self.metrics.pauses.labels(cause=cause).inc()
            log.debug("paused", cause=cause, items=self.flow.items, bytes=self.flow.bytes)
        else:
            log.debug("resumed")

    def _commit(self, consumer: Consumer) -> None:
        offsets = self.tracker.committable()
        if not offsets:
            return
        try:
            done = consumer.commit(offsets, timeout_ms=5_000)
        except Unavailable:
            self.metrics.commit_failures.inc()
            raise
        if done:
            self.tracker.committed(offsets)
            self.metrics.commits.inc()
        else:
            self.metrics.commit_failures.inc()

    def _observe(self, consumer: Consumer) -> None:
        self.metrics.flow_items.set(self.flow.items)
        self.metrics.flow_bytes.set(self.flow.bytes)
        for partition, waiting in consumer.waiting().items():
            lag = waiting + self.tracker.unfinished([partition])
            self.metrics.consumer_lag.labels(topic=self.settings.kafka.incoming_topic, partition=str(partition)).set(lag)

    def _on_assigned(self, partitions: list[int]) -> None:
        """From inside `poll`: new epochs begin. Cooperative: only what is new."""
        self.tracker.assign(partitions)
        self._assigned = sorted({*self._assigned, *partitions})
        self.metrics.assigned_partitions.set(len(self._assigned))
        if partitions:
            self.metrics.rebalances.inc()
            log.info("partitions_assigned", new=partitions, all=self._assigned)

    def _on_revoked(self, partitions: list[int]) -> None:
        """From inside `poll` or `close`: these epochs end; what is under way for them is the new owner's."""
        fenced = self.tracker.revoke(partitions)
        self._assigned = sorted({*self._assigned} - {*partitions})
        self.metrics.assigned_partitions.set(len(self._assigned))
        for partition in partitions:
            self.metrics.forget_partition(self.settings.kafka.incoming_topic, partition)
        if partitions:
            log.info("partitions_revoked", gone=partitions, left=self._assigned, fenced=fenced)

    # ── helpers ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _open(self, name: str, body: Callable[[], None]) -> None:
        """Start a room. An exception that leaves it is a defect: the worker stops, and tells."""

        def guarded() -> None:
            try:
                body()
            except BaseException as error:  # re-raised by `run`
                log.exception("room_broken", room=name)
                self._broken = error
                self._stop.set()

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _open_shadow(self) -> Shadow | None:
        """The room of the shadow model, where a share of the traffic is meant for it."""
        settings = self.settings.shadow
        if not settings.share:
            return None
        beside = self.settings.triton.model_copy(update={"model_name": settings.model_name, "shared_memory": "off", "reload_unhealthy": False})
        triton = Triton(beside, self.settings.intake.batch_max_items)
        shadow = Shadow(settings, triton=triton, store=self._store, policy=self.policy, metrics=self.metrics, stop=self._stop)
        self._open("shadow", shadow.run)
        return shadow

    def _wait_for(self, dependency: Dependency, operation: Callable[[], Any], deadline: float | None) -> Any:
        """The result of `operation` once the dependency is there. Raises Unavailable past the deadline, Stopping on a signal."""
        told_at = time.monotonic()
        while True:
            try:
                result = operation()
            except Unavailable as error:
                now = time.monotonic()
                if deadline is not None and now > deadline:
                    hint = "raise ASSAY_RUN__STARTUP_TIMEOUT_S to wait for longer"
                    raise Unavailable(
                        error.dependency, f"{error.detail} (not there within {self.settings.run.startup_timeout_s} s; {hint})"
                    ) from error
                if now >= told_at:
                    log.warning("waiting_for", dependency=error.dependency, error=error.detail)
                    told_at = now + 5
                self._beat = self._joined_at = now
                if self._stop_requested.wait(0.5):
                    raise Stopping(f"stopped while waiting for {error.dependency}") from None
            else:
                dependency.succeeded()
                return result

    def _dependency(self, name: str) -> Dependency:
        def on_change(name: str, state: BreakerState) -> None:
            self.metrics.breaker_state.labels(dependency=name).set(int(state))

        def on_retry(name: str) -> None:
            self.metrics.dependency_failures.labels(dependency=name).inc()
            self.metrics.retries.labels(dependency=name).inc()

        return Dependency(name, self.settings.retry, on_change=on_change, on_retry=on_retry)

    def _sleep(self, seconds: float) -> None:
        """A pause that the stop cuts short. Raises Stopping."""
        if self._stop.wait(seconds):
            raise Stopping("stopped while pausing")

    def _describe(self) -> None:
        self.metrics.build(__version__)
        self.metrics.policy(self.policy.name, self.policy.ref.version)
        self.metrics.flow_items_limit.set(self.flow.max_items)
        self.metrics.flow_bytes_limit.set(self.flow.max_bytes)
        kafka = self.settings.kafka
        log.info(
            "starting",
            version=__version__,
            group=kafka.group_id,
            topic=kafka.incoming_topic,
            policy=self.policy.name,
            policy_version=self.policy.ref.version,
        )
