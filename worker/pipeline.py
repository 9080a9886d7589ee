"""The whole flow on one screen: which rooms an image passes, who hands it to whom, and how a worker starts, drains and
stops.

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
from worker.stages.poll import Poll
from worker.stages.publish import Publish
from worker.stages.shadow import Shadow
from worker.telemetry.certificates import certificate_files
from worker.telemetry.health import HealthServer
from worker.telemetry.metrics import Metrics
from worker.telemetry.tracing import Tracing

log = structlog.get_logger(__name__)
ROOMS_S = (
    3.0  # for all rooms together: a call that hangs is cut off, so that the group is left before the grace period ends
)


class Pipeline:
    """One worker. `run` is its whole life; `request_stop` begins the drain. `on_ready(http_port)` is told once it
    consumes.

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
        self._threads: list[threading.Thread] = []

        self.flow = Flow(settings.flow)
        self.tracker = OffsetTracker()
        self._order = PublishOrder()
        self._kafka, self._redis, self._triton_server = (
            self._dependency(name) for name in ("kafka", "redis", "triton")
        )
        self._storages: dict[str, Dependency] = {}

        self._fetcher = Fetcher(settings.references, settings.limits, sleep=self._sleep)
        self._store = Store(settings.redis)
        self._triton = Triton(settings.triton, settings.intake.batch_max_items)
        self._watch = ModelWatch(self._triton, settings.triton.model_name, self.metrics)
        self._tracing = Tracing(settings.tracing, __version__)
        self._intake_inbox: HandOver[list[Item]] = HandOver()
        self._poll = Poll(
            settings,
            dependencies=lambda: (self._redis, self._triton_server, self._kafka, *self._storages.values()),
            tracker=self.tracker,
            flow=self.flow,
            intake=self._intake_inbox,
            metrics=self.metrics,
            tracing=self._tracing,
            drain=self._stop_requested,
            stop=self._stop,
        )
        self._monitor = Monitor(
            settings,
            store=self._store,
            triton=self._triton,
            watch=self._watch,
            breakers=(self._redis, self._triton_server),
            metrics=self.metrics,
            poll=self._poll,
        )

    def run(self, on_ready: Callable[[int], None] = lambda _port: None) -> None:
        """Start, consume until `request_stop`, drain, stop."""
        server = HealthServer(
            self.settings.http.host, self.settings.http.port, self.metrics, self._monitor.livez, self._monitor.readyz
        )
        server.start()
        self._describe()
        try:
            consumer, producer = self._start()
            on_ready(server.port)
            try:
                self._poll.run(consumer)
                self._poll.drain(consumer)
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
            settings.decode,
            flow=self.flow,
            inbox=decode_inbox,
            infer=infer_inbox,
            publish=publish_inbox,
            tracing=self._tracing,
            stop=stop,
        )
        intake = Intake(
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
            inbox=self._intake_inbox,
            decode=decode_inbox,
            publish=publish_inbox,
            metrics=metrics,
            stop=stop,
        )
        self._open("publish", publish.run)
        for number in range(settings.triton.calls_in_flight):
            self._open(f"infer-{number}", infer.run)
        self._open("decode", decode.run)
        self._open("intake", intake.run)
        return self._wait_for(
            self._kafka, lambda: Consumer(settings.kafka, self._poll.on_assigned, self._poll.on_revoked), deadline
        ), producer

    def _halt(self, consumer: Consumer, producer: Producer) -> None:
        """Stop the rooms, commit what they finished, leave the group."""
        self._stop.set()
        deadline = time.monotonic() + ROOMS_S
        for thread in self._threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
        self._poll.commit_last(consumer)
        for close in (
            consumer.close,
            producer.close,
            self._monitor.stop,
            self._fetcher.close,
            self._triton.close,
            self._store.close,
        ):
            try:
                close()
            except (AssayError, OSError) as error:
                log.warning("close_failed", error=str(error))

    def _open(self, name: str, body: Callable[[], None]) -> None:
        """Start a room. An exception that leaves it is a defect: the worker stops, and tells."""

        def guarded() -> None:
            try:
                body()
            except BaseException as error:  # re-raised by `run`
                if self._stop.is_set():  # its client was closed under it, because it did not end by itself
                    log.warning("room_cut_off", room=name, error=str(error))
                    return
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
        triton = Triton(self.settings.shadow_triton, self.settings.intake.batch_max_items)
        shadow = Shadow(
            settings, triton=triton, store=self._store, policy=self.policy, metrics=self.metrics, stop=self._stop
        )
        self._open("shadow", shadow.run)
        return shadow

    def _wait_for(self, dependency: Dependency, operation: Callable[[], Any], deadline: float | None) -> Any:
        """The result of `operation` once the dependency is there. Raises Unavailable past the deadline, Stopping on a
        signal.
        """
        told_at = time.monotonic()
        while True:
            try:
                result = operation()
            except Unavailable as error:
                now = time.monotonic()
                if deadline is not None and now > deadline:
                    hint = "raise ASSAY_RUN__STARTUP_TIMEOUT_S to wait for longer"
                    raise Unavailable(
                        error.dependency,
                        f"{error.detail} (not there within {self.settings.run.startup_timeout_s} s; {hint})",
                    ) from error
                if now >= told_at:
                    log.warning("waiting_for", dependency=error.dependency, error=error.detail)
                    told_at = now + 5
                self._poll.is_moving()
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
