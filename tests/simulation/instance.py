"""One worker in the simulation: the real stages, wired as the pipeline wires them, each thread a task of the hub.

What `Pipeline` does around them (wait for the servers, drive the poll in the main thread, drain, halt, commit, leave)
is done here in the same order on the twins.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from unittest import mock

from tests.simulation import detector
from tests.simulation.clock import VirtualClock, VirtualStop, policy
from tests.simulation.hub import Process, Task
from tests.simulation.kafka import Broker, LibraryTwin, ProducerTwin
from tests.simulation.plan import BATCH_ITEMS, HOSTS, MAX_IMAGE_BYTES, Plan
from tests.simulation.servers import ExaminerTwin, FetcherTwin, RedisServer, StoreTwin, TritonServer, TritonTwin
from tests.simulation.world import World
from worker.admission import Admission
from worker.clients import kafka_consumer
from worker.clients.kafka_consumer import Consumer
from worker.errors import Stopping, Unavailable
from worker.inflight import UnderWay
from worker.model import ModelWatch
from worker.pipeline import STAGES_END_S, Clients, Queues, wire
from worker.queues import StageQueue
from worker.retry import CircuitBreaker, Guarded
from worker.settings import Settings
from worker.stages.policy_watch import PolicyWatch, also_decides
from worker.stages.poll import Poll
from worker.stages.publish import Publish
from worker.stages.stage import Stage, Tools, drive
from worker.storages import Storages
from worker.telemetry.tracing import Tracing


class _NoMetrics:
    """Takes every number and keeps none: counting costs more than the rest of a stage."""

    def __getattr__(self, name: str) -> _NoMetrics:
        return self

    def __call__(self, *args: object, **labels: object) -> _NoMetrics:
        return self


METRICS: Any = _NoMetrics()
TRACING = Tracing(Settings().tracing, "simulated")
WATCH_S = 1.0
POLL_S = 0.3
IDLE_S = 1.0  # both longer than the pipeline's: an idle stage costs steps and shows nothing


@lru_cache
def variant(number: int, has_detector: bool = False) -> Settings:
    """One of a few dozen settings: small limits, so that every mark is reached."""
    items = (2, 4, 6, 16)[number % 4]
    return Settings.model_validate(
        {
            "retry": {"base_ms": 10, "max_ms": (100, 400)[number % 2], "breaker_failures": (1, 3)[number // 2 % 2]},
            "intake": {"batch_max_items": BATCH_ITEMS[number // 4 % 4], "batch_max_wait_ms": (0, 5, 40)[number % 3]},
            "flow": {
                "max_items": items,
                "low_water": (0.5, 1.0)[number % 2],
                "max_references": (1, 4)[number // 3 % 2],
            },
            "limits": {"max_image_bytes": MAX_IMAGE_BYTES},
            "kafka": {"commit_interval_ms": (50, 300)[number // 3 % 2], "max_poll_records": (1, 3, 64)[number % 3]},
            "triton": {"calls_in_flight": (1, 2, 3)[number // 5 % 3]},
            "cache": {"enabled": number % 5 != 0},
            "references": {
                "schemes": ["https"],
                "https_hosts": [host.partition("//")[2] for host in HOSTS],
                "concurrency": (1, 2, 4)[number % 3],
                "wait_ms": (0, 200, 5000)[number // 2 % 3],
                "retry_delay_s": (1, 2)[number // 7 % 2],
            },
            "run": {"drain_timeout_s": (1, 20)[number % 2]},
            "detectors": detector.SETTINGS if has_detector else {},
        }
    )


def policy_version(plan: Plan) -> str:
    """Of the built-in policy: which images a detector sees is part of it."""
    return policy((*also_decides(variant(0, plan.has_detector)).items(),)).ref.version


class _Bounded(Admission):
    """Says so where more is admitted than the high mark allows, or more is released than was admitted."""

    def admit(self, size_bytes: int) -> None:
        """Count one record."""
        super().admit(size_bytes)
        if self.items > self.max_items:
            raise AssertionError(f"{self.items} items are admitted, {self.max_items} is the mark")

    def release(self, size_bytes: int, *, aside: bool = False) -> None:
        """Count it no more."""
        super().release(size_bytes, aside=aside)
        if min(self.items, self.aside, self.bytes) < 0:
            raise AssertionError(f"{self.items} items, {self.aside} aside and {self.bytes} bytes are left")

    def set_aside(self) -> bool:
        """Count it apart."""
        was_set = super().set_aside()
        if self.items < 0 or self.aside > self.max_aside:
            raise AssertionError(f"{self.items} items and {self.aside} aside, {self.max_aside} is the mark")
        return was_set


class Worker:
    """A process: alive until it is killed, or has drained. `ended` tells how."""

    def __init__(
        self,
        world: World,
        name: str,
        broker: Broker,
        redis: RedisServer,
        triton: TritonServer,
        other: detector.DetectorServer,
    ) -> None:
        hub = world.hub
        self.name = name
        self.process = Process(name)
        self.settings = variant(world.plan.variant % 120, world.plan.has_detector)
        self.ended = ""
        self._world = world
        self._clock = VirtualClock(hub)
        self._drain, self._stop = VirtualStop(hub), VirtualStop(hub)
        self._tools = Tools(METRICS, TRACING, self._stop, self._clock)
        bounded = _Bounded(self.settings.flow, self._clock)
        self.under_way = UnderWay(bounded, keeps_images=world.plan.has_detector)
        self.queues = _queues(self._clock)
        self._kafka, self._redis, self._triton = (self._breaker(one) for one in ("kafka", "redis", "triton"))
        self._storages = Storages(
            self.settings.references,
            lambda address: self._breaker(address.host),
            crowded=self.settings.flow.max_references // 2,
            clock=self._clock,
        )
        self._store = StoreTwin(world, self.process, redis)
        self._examiner = ExaminerTwin(world, self.process)
        model = TritonTwin(world, self.process, triton)
        self._model = ModelWatch(model, "code", METRICS, self._clock)  # type: ignore[arg-type]
        self._beside = detector.Beside(world, self.process, other, self.settings, self._tools, self._breaker)
        panel = self._beside.panel
        self._policies = PolicyWatch(self.settings, self._tools, lambda: self._model.version, panel.versions)
        self.poll = Poll(
            self.settings,
            self._tools,
            self.under_way,
            drain=self._drain,
            breakers=(self._redis, self._triton, self._kafka, *panel.breakers),
            arrivals=self.queues.arrivals,
        )
        self.publish: Publish | None = None
        self.consumer: Consumer | None = None
        self.library: LibraryTwin | None = None
        self.tasks: list[Task] = []
        self._broken: list[tuple[str, BaseException]] = []
        self._producer = ProducerTwin(world, self.process, broker)
        self._broker = broker
        self.main = hub.spawn(name, self._run, self.process)

    @property
    def is_alive(self) -> bool:
        return not self.process.is_dead and self.main.is_alive

    @property
    def is_idle(self) -> bool:
        """Nothing is under way here, and nothing waits to be polled."""
        waits = self.library is not None and self.library._has_records()
        admission = self.under_way.admission
        return admission.items + admission.aside == 0 and not self.poll._paused and not waits

    def request_stop(self) -> None:
        """What SIGTERM does."""
        self._world.note("stop", self.name, self.settings.run.drain_timeout_s)
        self._drain.set()

    def errors(self) -> list[tuple[str, BaseException]]:
        """What its threads broke with."""
        ended = [(task.name, task.error) for task in (self.main, *self.tasks) if task.error is not None]
        return self._broken or ended

    def leftovers(self) -> dict[str, object]:
        """What is still counted, waited for or held: nothing, once all is done."""
        admission = self.under_way.admission
        counted: dict[str, object] = {
            "admitted items": admission.items,
            "aside": admission.aside,
            "admitted bytes": admission.bytes,
            "fetched bytes": admission._fetched_bytes,
            "references": admission.references,
            "waiting for storages": len(self._storages),
            "unfinished": self.under_way.tracker.unfinished(),
            "lines of ids": len(self.under_way.order),
            "flights": len(self.under_way.single_flight),
            "leases": len(self._examiner.leases) + self._beside.leases,
            "held by publish": len(self.publish._held) if self.publish else 0,
            "paused": self.poll._paused,
        }
        for name in ("arrivals", "references", "encoded", "decoded", "ended"):
            counted[f"queue {name}"] = len(getattr(self.queues, name))
        return {name: count for name, count in counted.items() if count}

    def _breaker(self, name: str) -> CircuitBreaker:
        return CircuitBreaker(name, self.settings.retry, clock=self._clock, uniform=self._world.rng.uniform)

    def _run(self) -> None:
        try:
            self._start()
            drive(self.poll, self._stop, POLL_S)
        except Stopping:
            self.ended = "stopped before it started"
        except Exception as error:
            self._break(self.name, error)
            raise
        finally:
            if not self.process.is_dead:
                self._halt()

    def _start(self) -> None:
        while True:
            try:
                self._store.ping()
                self._model.refresh()
                self._beside.refresh()
                break
            except Unavailable:
                if self._drain.wait(0.5):
                    raise Stopping("stopped while waiting") from None
        clients = Clients(
            store=Guarded(self._store, self._redis),  # type: ignore[arg-type]
            producer=Guarded(self._producer, self._kafka),  # type: ignore[arg-type]
            model=Guarded(self._model, self._triton),
            fetcher=FetcherTwin(self._world, self.process),  # type: ignore[arg-type]
            storages=self._storages,
            can_park=self.poll.can_park,
            examiner=self._examiner,
            panel=self._beside.panel if self._beside.panel.detectors else None,
        )
        for driven in wire(self.settings, self._policies, self._tools, self.under_way, self.queues, clients):
            if isinstance(driven.stage, Publish):
                self.publish = driven.stage
            for number in range(driven.threads):
                self._open(f"{self.name}.{driven.name}{number or ''}", driven.stage)
        self.tasks.append(self._world.hub.spawn(f"{self.name}.watch", self._watch, self.process))
        library = self.library = LibraryTwin(self._world, self.process, self._broker)

        def its_library(*_: object, **__: object) -> LibraryTwin:
            return library

        with mock.patch.object(kafka_consumer, "RecordConsumer", its_library):
            poll = self.poll
            self.consumer = Consumer(self.settings.kafka, poll.on_assigned, poll.on_revoked, self._clock)
        self.poll.attach(self.consumer)

    def _open(self, name: str, stage: Stage) -> None:
        def body() -> None:
            try:
                drive(stage, self._stop, IDLE_S)
            except Exception as error:
                self._break(name, error)
                raise

        self.tasks.append(self._world.hub.spawn(name, body, self.process))

    def _break(self, name: str, error: Exception) -> None:
        """The history ends with this, and says so: the task itself may never get to its end."""
        self._broken.append((name, error))
        self._world.is_broken = True

    def _watch(self) -> None:
        """Of the monitor: the version is followed while nothing is inferred."""
        while not self._stop.wait(WATCH_S):
            try:
                self._model.refresh()
            except Unavailable:
                continue

    def _halt(self) -> None:
        hub = self._world.hub
        self._stop.set()
        hub.wait(lambda: not any(task.is_alive for task in self.tasks), STAGES_END_S)
        self.poll.commit_last()
        if self.consumer is not None:
            self.consumer.close()
        self.ended = self.ended or "drained"
        self._world.note("ended", self.name, self.ended)


def _queues(clock: VirtualClock) -> Queues:
    """The pipeline's queues, with its capacities, on the virtual clock."""
    plain = Queues()
    names: Sequence[str] = ("arrivals", "references", "encoded", "decoded", "ended")
    return Queues(**{name: StageQueue(getattr(plain, name)._capacity, clock) for name in names})
