"""The whole flow on one screen: which stages an image passes, who hands it to whom, and how a worker starts, drains and
stops.

    Kafka ──poll──▶ Intake ──────▶ Decode ──▶ Infer x n ──▶ Publish ──▶ Redis, then Kafka
      ▲             │  ▲  │ bad, or known to the cache         ▲  │
      │             ▼  │  └────────────────────────────────────┤  ▼
      │           Fetch x n ──── cannot be had ────────────────┘
      └──────── commit of the contiguous finished prefix ── offsets

Each stage keeps one contract (stages/stage.py) and one loop drives them all, in threads of their own; Poll has the main
thread, because only it may touch the consumer. Every record admitted ends in Publish, as a verdict or as a rejection;
whatever a stage waits for (Redis, Triton, a storage) fills the admission, a full admission pauses the partitions, and
the poll goes on so that the group keeps this worker.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import structlog

from worker import __version__
from worker.admission import Admission
from worker.clients.fetch import Fetcher
from worker.clients.kafka_consumer import Consumer
from worker.clients.kafka_producer import Producer
from worker.clients.redis import Store
from worker.clients.triton import Triton, pixel_regions
from worker.clock import StopFlag
from worker.errors import Stopping, Unavailable
from worker.examine.findings import Examiner
from worker.examine.pool import BATCHES, Pool
from worker.examine.provenance.trust import load_anchors, reader_version
from worker.inflight import UnderWay
from worker.item import Address, DecodedBatch, Encoded, Ended, Referenced
from worker.model import HashCache, ModelWatch
from worker.monitor import Monitor
from worker.queues import Outlet, StageQueue
from worker.retry import BreakerState, CircuitBreaker, Guarded
from worker.settings import Settings
from worker.stages.decode import Decode, Handed
from worker.stages.fetch import Fetch, ReferenceAccess
from worker.stages.infer import Infer
from worker.stages.intake import Arrival, Intake
from worker.stages.panel import Panel
from worker.stages.policy_watch import PolicyWatch
from worker.stages.poll import POLL_S, Poll
from worker.stages.publish import Publish
from worker.stages.shadow import Shadow
from worker.stages.stage import Driven, Stage, Tools, drive
from worker.storages import Storages
from worker.telemetry.certificates import certificate_files
from worker.telemetry.health import HealthServer
from worker.telemetry.metrics import Metrics
from worker.telemetry.tracing import Tracing
from worker.watchdog import Watchdog

log = structlog.get_logger(__name__)
# For all stages together: a call that hangs is cut off, so that the group is left before the grace period ends.
STAGES_END_S = 3.0
WARN_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Queues:
    """What travels between the stages."""

    arrivals: StageQueue[Sequence[Arrival]] = field(default_factory=StageQueue)
    references: StageQueue[Referenced] = field(default_factory=StageQueue)
    encoded: StageQueue[list[Encoded]] = field(default_factory=lambda: StageQueue(capacity=2))
    decoded: StageQueue[DecodedBatch] = field(default_factory=lambda: StageQueue(capacity=1))
    ended: StageQueue[list[Ended]] = field(default_factory=StageQueue)


@dataclass(frozen=True, slots=True)
class Clients:
    """Everything outside that the stages ask."""

    store: Guarded[Store]
    producer: Guarded[Producer]
    model: Guarded[ModelWatch]
    fetcher: Fetcher
    storages: Storages
    can_park: Callable[[], bool]
    examiner: Examiner[Handed]
    shadow: Shadow | None = None
    panel: Panel | None = None


def wire(
    settings: Settings, policies: PolicyWatch, tools: Tools, under_way: UnderWay, queues: Queues, clients: Clients
) -> list[Driven]:
    """All stages but Poll, from the last to the first, so that each finds the next one open."""
    publish = Publish(
        settings,
        tools,
        under_way,
        policies,
        store=clients.store,
        producer=clients.producer,
        model_version=lambda: clients.model.client.version,
        inbox=queues.ended,
    )
    ended: Outlet[list[Ended]] = queues.ended
    consults: list[Driven] = []
    if clients.panel is not None:
        ended, consults = clients.panel.stages(clients.store, queues.ended)
    infer = Infer(settings.triton, tools, clients.model, clients.shadow, inbox=queues.decoded, ended=ended)
    decode = Decode(
        clients.examiner,
        tools,
        under_way,
        inbox=queues.encoded,
        decoded=queues.decoded,
        ended=ended,
    )
    fetch = Fetch(
        settings.references,
        ReferenceAccess(clients.fetcher, clients.storages, clients.can_park),
        tools,
        under_way,
        inbox=queues.references,
        arrivals=queues.arrivals,
        ended=queues.ended,
    )
    intake = Intake(
        settings,
        tools,
        under_way,
        _hash_cache(settings, tools, clients),
        inbox=queues.arrivals,
        references=queues.references,
        encoded=queues.encoded,
        ended=ended,
    )
    fetchers = settings.references.concurrency if settings.references.schemes else 1
    return [
        Driven("publish", publish),
        Driven("policy", policies),
        *consults,
        *([Driven("shadow", clients.shadow)] if clients.shadow else []),
        Driven("infer", infer, settings.triton.calls_in_flight),
        Driven("decode", decode),
        Driven("fetch", fetch, fetchers),
        Driven("intake", intake),
    ]


def _hash_cache(settings: Settings, tools: Tools, clients: Clients) -> HashCache:
    reader = reader_version(load_anchors(settings.evidence.c2pa_trust_path))
    enabled = settings.cache.enabled
    return HashCache(clients.store, clients.model.client, tools.metrics, enabled=enabled, reader=reader)


class Pipeline:
    """One worker. `run` is its whole life; `request_stop` begins the drain. `on_ready(http_port)` is told once it
    consumes.

    Raises SettingsError for what is wrong with the settings, Unavailable where a server does not come up in time,
    and whatever a stage broke with: the process then ends, and what was not committed is redelivered.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics(certificates=certificate_files(settings))
        self._drain = StopFlag()  # take nothing new, end what is under way
        self._stop = StopFlag()  # every stage stops at once
        self._broken: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._closes: list[Callable[[], None]] = []  # in the order in which they are called

        self._tools = Tools(self.metrics, Tracing(settings.tracing, __version__), self._stop)
        self._under_way = UnderWay(Admission(settings.flow), keeps_images=bool(settings.detectors.names))
        self._queues = Queues()
        self._kafka, self._redis, self._triton = (self._breaker(name) for name in ("kafka", "redis", "triton"))
        self._storages = Storages(settings.references, self._storage_breaker, crowded=settings.flow.max_references // 2)
        self._store = Store(settings.redis)
        # In decoding, handed on, waiting for a call, in calls: no batch waits for a region.
        self._regions = pixel_regions(
            settings.triton, BATCHES + 2 + settings.triton.calls_in_flight, settings.intake.batch_max_items
        )
        self._pool: Pool[Handed] = Pool(
            settings.decode, settings.limits, self._regions, self.metrics, settings.evidence.c2pa_trust_path
        )
        self._model_client = Triton(settings.triton, settings.intake.batch_max_items, self._regions)
        self._model = ModelWatch(self._model_client, settings.triton.model_name, self.metrics)
        self._panel = Panel(settings, self._tools, self._breaker)
        self.policies = PolicyWatch(settings, self._tools, lambda: self._model.version, self._panel.versions)
        self._poll = Poll(
            settings,
            self._tools,
            self._under_way,
            drain=self._drain,
            breakers=(self._redis, self._triton, self._kafka),
            arrivals=self._queues.arrivals,
        )
        self._watchdog = Watchdog(
            lambda: self._poll.heartbeat_at,
            self._drain,
            stall_s=settings.run.stall_timeout_s,
            drain_s=settings.run.drain_timeout_s,
        )
        self._monitor = Monitor(
            settings,
            store=self._store,
            triton=self._model_client,
            watch=self._model,
            breakers=(self._redis, self._triton, self._kafka, *self._panel.breakers),
            metrics=self.metrics,
            poll=self._poll,
            decoding_trouble=lambda: self._pool.trouble or self._panel.trouble,
        )

    def run(self, on_ready: Callable[[int], None] = lambda _port: None) -> None:
        """Start, consume until `request_stop`, drain, stop."""
        settings, monitor = self.settings, self._monitor
        server = HealthServer(settings.http.host, settings.http.port, self.metrics, monitor.livez, monitor.readyz)
        server.start()
        self._watchdog.start()
        self._describe()
        self._closes += [
            monitor.stop,
            self._pool.close,
            self._model_client.close,
            self._panel.close,
            self._regions.unlink,
            self._store.close,
            self._tools.tracing.close,
        ]
        try:
            self._start()
            on_ready(server.port)
            drive(self._poll, self._stop, POLL_S)
        except Stopping:
            log.info("stopped_before_start")
        finally:
            self._halt()
            server.stop()
            self._watchdog.stop()
        if self._broken is not None:
            raise self._broken

    def request_stop(self) -> None:
        """Drain and stop; asked a second time, stop at once (what is not finished is redelivered). Takes no lock."""
        if self._drain.is_set():
            self._stop.set()
        self._drain.set()

    def handle_signals(self) -> None:
        """SIGTERM and SIGINT drain, SIGHUP takes up a changed policy. Called from the main thread.

        The handler sets flags and nothing else: it may interrupt the main thread while that holds a lock, a log's too.
        """

        def handle(_number: int, _frame: FrameType | None) -> None:
            self.request_stop()

        signal.signal(signal.SIGTERM, handle)
        signal.signal(signal.SIGINT, handle)
        signal.signal(signal.SIGHUP, lambda *_: self.policies.request_reload())

    def _start(self) -> None:
        """Wait for the three servers, open the stages from the last to the first, join the group."""
        settings, clock = self.settings, self._tools.clock
        timeout_s = settings.run.startup_timeout_s
        deadline = clock.monotonic() + timeout_s if timeout_s else None
        self._monitor.start()
        self._wait_for(self._redis, self._store.ping, deadline)
        self._wait_for(self._triton, self._model.refresh, deadline)
        for detector in self._panel.detectors:
            self._wait_for(detector.watch.breaker, detector.watch.client.refresh, deadline)
        producer = self._wait_for(self._kafka, lambda: Producer(settings.kafka), deadline)
        self._closes.insert(0, producer.close)
        fetcher = Fetcher(settings.references, settings.limits, sleep=self._sleep)
        self._closes.append(fetcher.close)
        clients = Clients(
            store=Guarded(self._store, self._redis),
            producer=Guarded(producer, self._kafka),
            model=Guarded(self._model, self._triton),
            fetcher=fetcher,
            storages=self._storages,
            can_park=self._poll.can_park,
            examiner=self._pool,
            shadow=self._open_shadow(),
            panel=self._panel if self._panel.detectors else None,
        )
        for driven in wire(settings, self.policies, self._tools, self._under_way, self._queues, clients):
            for number in range(driven.threads):
                self._open(driven.name if driven.threads == 1 else f"{driven.name}-{number}", driven.stage)
        poll = self._poll
        consumer = self._wait_for(
            self._kafka, lambda: Consumer(settings.kafka, poll.on_assigned, poll.on_revoked), deadline
        )
        self._closes.insert(0, consumer.close)
        self._closes.insert(0, poll.commit_last)
        poll.attach(consumer)

    def _halt(self) -> None:
        """Stop the stages, commit what they finished, leave the group and close everything, whatever goes wrong."""
        self._stop.set()
        deadline = self._tools.clock.monotonic() + STAGES_END_S
        for thread in self._threads:
            thread.join(timeout=max(0.0, deadline - self._tools.clock.monotonic()))
        for close in self._closes:
            self._poll.record_heartbeat()  # still moving
            try:
                close()
            except Exception as error:  # noqa: BLE001  # the others are closed all the same
                log.warning("close_failed", what=close.__qualname__, error=str(error) or type(error).__name__)

    def _open(self, name: str, stage: Stage) -> None:
        """Drive a stage in a thread. An exception that leaves it is a defect: the worker stops, and tells."""

        def body() -> None:
            try:
                drive(stage, self._stop)
            except BaseException as error:  # re-raised by `run`
                if self._stop.is_set():  # its client was closed under it, because it did not end by itself
                    log.warning("stage_cut_off", stage=name, error=str(error))
                    return
                log.exception("stage_broken", stage=name)
                self._broken = error
                self._stop.set()

        thread = threading.Thread(target=body, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _open_shadow(self) -> Shadow | None:
        """The stage of the shadow model, where a share of the traffic is meant for it."""
        settings = self.settings.shadow
        if not settings.share:
            return None
        triton = Triton(self.settings.shadow_triton, self.settings.intake.batch_max_items)
        self._closes.append(triton.close)
        return Shadow(settings, self._tools, self.policies, triton=triton, store=self._store)

    def _wait_for(self, breaker: CircuitBreaker, operation: Callable[[], Any], deadline: float | None) -> Any:
        """The result of `operation` once the server is there. Raises Unavailable past the deadline, Stopping on a
        signal.
        """
        warn_at = self._tools.clock.monotonic()
        while True:
            try:
                result = operation()
            except Unavailable as error:
                now = self._tools.clock.monotonic()
                if deadline is not None and now > deadline:
                    waited = f"not there within {self.settings.run.startup_timeout_s} s"
                    hint = "raise ASSAY_RUN__STARTUP_TIMEOUT_S to wait for longer"
                    raise Unavailable(error.dependency, f"{error.detail} ({waited}; {hint})") from error
                if now >= warn_at:
                    log.warning("waiting_for", dependency=error.dependency, error=error.detail)
                    warn_at = now + WARN_EVERY_S
                self._poll.record_heartbeat()
                if self._drain.wait(0.5):
                    raise Stopping(f"stopped while waiting for {error.dependency}") from None
            else:
                breaker.succeeded()
                return result

    def _storage_breaker(self, address: Address) -> CircuitBreaker:
        """Its state is told by Fetch, for each entry of the settings; its failures count together."""
        failures = self.metrics.dependency_failures.labels(dependency="storage")
        return CircuitBreaker(address.host, self.settings.retry, on_retry=lambda _host: failures.inc())

    def _breaker(self, name: str) -> CircuitBreaker:
        def on_change(name: str, state: BreakerState) -> None:
            self.metrics.breaker_state.labels(dependency=name).set(int(state))

        def on_retry(name: str) -> None:
            self.metrics.dependency_failures.labels(dependency=name).inc()
            self.metrics.retries.labels(dependency=name).inc()

        return CircuitBreaker(name, self.settings.retry, on_change=on_change, on_retry=on_retry)

    def _sleep(self, seconds: float) -> None:
        """A pause that the stop cuts short. Raises Stopping."""
        if self._stop.wait(seconds):
            raise Stopping("stopped while pausing")

    def _describe(self) -> None:
        self.metrics.build(__version__)
        self.metrics.flow_items_limit.set(self._under_way.admission.max_items)
        self.metrics.flow_bytes_limit.set(self._under_way.admission.max_bytes)
        kafka = self.settings.kafka
        log.info(
            "starting",
            version=__version__,
            group=kafka.group_id,
            topic=kafka.incoming_topic,
            policy=self.policies.policy.name,
            policy_version=self.policies.policy.ref.version,
        )
