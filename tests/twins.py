"""In-memory twins of the clients, and one workbench that wires any stage as the pipeline does.

They keep the clients' promises (what they return, what they raise, in which order) and nothing else, so that faults can
be switched on: `store.away = True` and every call raises Unavailable until somebody switches it off. Integration tests
on the real servers hold the clients themselves to the same promises.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from worker.clients.fetch import Fetcher
from worker.clients.kafka import Outgoing
from worker.clients.redis import CacheEntry, ScoredImage
from worker.clients.triton import Inference, InferenceFailed
from worker.contract import Headers, Record, Scores, Verdict
from worker.errors import Unavailable
from worker.flow import Flow, HandOver
from worker.inflight import PublishOrder, SingleFlight
from worker.item import Batch, Item, Pixels
from worker.offsets import OffsetTracker
from worker.policy import Policy
from worker.retry import Dependency
from worker.settings import Settings
from worker.stages.decode import Decode
from worker.stages.infer import Infer, ModelWatch
from worker.stages.intake import Intake
from worker.stages.publish import Publish
from worker.telemetry.metrics import Metrics
from worker.telemetry.tracing import ItemTrace, Tracing

PATIENCE_S = 30.0
VERSION = "0123456789ab"
TOPIC = "images.incoming"
QUICK = {"retry": {"base_ms": 1, "max_ms": 5}, "intake": {"batch_max_wait_ms": 5}, "decode": {"threads": 1}}


def settings(**groups: dict[str, Any]) -> Settings:
    """Settings with short waits; `groups` over them."""
    return Settings(**{name: QUICK.get(name, {}) | groups.get(name, {}) for name in QUICK.keys() | groups.keys()})


def record(
    offset: int,
    value: bytes | None = b"x",
    *,
    key: bytes | None = None,
    partition: int = 0,
    headers: Headers | None = None,
) -> Record:
    return Record(TOPIC, partition, offset, 1_795_262_400_000 + offset, key, value, headers or [])


def wait_for(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> None:
    """Poll `condition`. Raises AssertionError naming what did not happen."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"did not happen: {what}"
        time.sleep(0.002)


class StoreTwin:
    """worker.clients.redis.Store in two dicts. `log` is shared with the producer's twin, so that orders can be compared."""

    def __init__(self, log: list[tuple[str, str]]) -> None:
        self.away = False
        self.calls = 0
        self.verdicts: dict[str, Verdict] = {}
        self.images: dict[tuple[str, str], ScoredImage] = {}
        self._log = log

    def _answer(self) -> None:
        self.calls += 1
        if self.away:
            raise Unavailable("redis", "twin: switched off")

    def cached(self, sha256s: Sequence[str], model_version: str) -> list[CacheEntry | None]:
        self._answer()
        found = [self.images.get((sha256, model_version)) for sha256 in sha256s]
        return [one and CacheEntry(one.scores, one.image.format, one.image.width, one.image.height) for one in found]

    def save(self, verdicts: Sequence[tuple[Verdict, str]], images: Sequence[ScoredImage]) -> None:
        self._answer()
        for verdict, as_json in verdicts:
            assert Verdict.model_validate_json(as_json) == verdict
            self.verdicts[verdict.image_id] = verdict
            self._log.append(("redis", verdict.image_id))
        for image in images:
            self.images[image.sha256, image.model_version] = image


class ProducerTwin:
    """worker.clients.kafka.Producer into a list. `refuse_next`: so many records are not acknowledged."""

    def __init__(self, log: list[tuple[str, str]]) -> None:
        self.away = False
        self.calls = 0
        self.refuse_next = 0
        self.sent: list[Outgoing] = []
        self._log = log

    def produce(self, records: Sequence[Outgoing]) -> list[int]:
        self.calls += 1
        if self.away:
            raise Unavailable("kafka", "twin: switched off")
        failed = list(range(min(self.refuse_next, len(records))))
        self.refuse_next -= len(failed)
        for one in records[len(failed) :]:
            self.sent.append(one)
            self._log.append(("kafka", (one.key or b"").decode()))
        return failed

    def to(self, topic: str) -> list[Outgoing]:
        return [one for one in self.sent if one.topic == topic]


class TritonTwin:
    """worker.clients.triton.Triton with a model of one line: the score is the first pixel's red over 255.

    `poison`: red values that make a call fail; `nan`: red values that are scored NaN; `ill`: every call fails;
    `reload_to`: the version changes during the next call.
    """

    def __init__(self) -> None:
        self.away = False
        self.ill = False
        self.version = VERSION
        self.reload_to: str | None = None
        self.poison: set[int] = set()
        self.nan: set[int] = set()
        self.batches: list[list[int]] = []

    def model_version(self) -> str:
        if self.away:
            raise Unavailable("triton", "twin: switched off")
        return self.version

    def infer(self, pixels: Pixels, *, timeout_s: float | None = None) -> Inference:
        assert pixels.dtype == np.uint8 and pixels.shape[1:] == (224, 224, 3) and pixels.flags.c_contiguous
        red = pixels[:, 0, 0, 0].astype(int).tolist()
        self.batches.append(red)
        if self.away:
            raise Unavailable("triton", "twin: switched off")
        if self.ill or self.poison & set(red):
            raise InferenceFailed("twin: cannot compute this")
        if self.reload_to is not None:
            self.version, self.reload_to = self.reload_to, None
        score = np.array([np.nan if value in self.nan else value / 255 for value in red], np.float32)
        return Inference(np.zeros((len(red), 192), np.float32), np.stack([score, score, score], axis=1))


class Workbench:
    """Flow, tracker, twins, dependencies and hand-overs, as `Pipeline` wires them; stages are made from it."""

    def __init__(
        self, wanted: Settings | None = None, *, decode_capacity: int = 100, infer_capacity: int = 100
    ) -> None:
        self.settings = wanted or settings()
        self.stop = threading.Event()
        self.log: list[tuple[str, str]] = []
        self.store, self.producer, self.triton = StoreTwin(self.log), ProducerTwin(self.log), TritonTwin()
        self.tracing = Tracing(self.settings.tracing, "test")
        self.metrics = Metrics()
        self.flow = Flow(self.settings.flow)
        self.tracker = OffsetTracker()
        self.tracker.assign([0, 1])
        self.order, self.single_flight = PublishOrder(), SingleFlight()
        self.redis, self.kafka, self.triton_server = (
            Dependency(name, self.settings.retry) for name in ("redis", "kafka", "triton")
        )
        self.storages: dict[str, Dependency] = {}
        self.watch = ModelWatch(self.triton, self.settings.triton.model_name, self.metrics)  # type: ignore[arg-type]
        self.watch.refresh()
        self.intake_inbox: HandOver[list[Item]] = HandOver()
        self.decode_inbox: HandOver[Batch] = HandOver(decode_capacity)
        self.infer_inbox: HandOver[Batch] = HandOver(infer_capacity)
        self.publish_inbox: HandOver[list[Item]] = HandOver()

    def admit(self, *records: Record) -> list[Item]:
        """What the poll loop does with records."""
        items = []
        for one in records:
            epoch = self.tracker.deliver(one.partition, one.offset)
            assert epoch is not None
            size = len(one.value or b"")
            self.flow.admit(size)
            items.append(
                Item(
                    one,
                    epoch,
                    touched_at=time.monotonic(),
                    queued_ms=1.0,
                    held_bytes=size,
                    trace=ItemTrace(one.header("traceparent")),
                )
            )
        return items

    def intake(self, fetcher: Any = None) -> Intake:
        """The intake of this workbench, which `take` then feeds."""
        self._intake = Intake(
            self.settings,
            store=self.store,  # type: ignore[arg-type]
            redis=self.redis,
            fetcher=fetcher or Fetcher(self.settings.references, self.settings.limits),
            storages=self.storages,
            new_storage=lambda: Dependency("storage", self.settings.retry),
            flow=self.flow,
            order=self.order,
            single_flight=self.single_flight,
            model_version=lambda: self.watch.version,
            inbox=self.intake_inbox,
            decode=self.decode_inbox,
            publish=self.publish_inbox,
            metrics=self.metrics,
            stop=self.stop,
        )
        return self._intake

    def take(self, *records: Record) -> list[Item]:
        """Admit records and hand them to the intake."""
        items = self.admit(*records)
        self.intake_inbox.put(items, self.stop)
        return items

    def line(self) -> tuple[Callable[[], None], ...]:
        """The bodies of all stages, two of them inferring."""
        return self.intake().run, self.decode().run, self.infer().run, self.infer().run, self.publish().run

    def decode(self) -> Decode:
        return Decode(
            self.settings.decode,
            flow=self.flow,
            inbox=self.decode_inbox,
            infer=self.infer_inbox,
            publish=self.publish_inbox,
            tracing=self.tracing,
            stop=self.stop,
        )

    def infer(self) -> Infer:
        return Infer(
            self.settings.triton,
            dependency=self.triton_server,
            watch=self.watch,
            inbox=self.infer_inbox,
            publish=self.publish_inbox,
            metrics=self.metrics,
            tracing=self.tracing,
            stop=self.stop,
        )

    def publish(self) -> Publish:
        policy = Policy()
        return Publish(
            self.settings,
            policy=policy,
            store=self.store,  # type: ignore[arg-type]
            redis=self.redis,
            producer=self.producer,  # type: ignore[arg-type]
            kafka=self.kafka,
            tracker=self.tracker,
            flow=self.flow,
            order=self.order,
            single_flight=self.single_flight,
            model_version=lambda: self.watch.version,
            inbox=self.publish_inbox,
            metrics=self.metrics,
            tracing=self.tracing,
            stop=self.stop,
        )

    @contextmanager
    def running(self, *bodies: Callable[[], None]) -> Iterator[list[threading.Thread]]:
        """Each body in a thread of its own; stopped and joined at the end, and whatever one broke with is raised."""
        broken: list[BaseException] = []

        def guarded(body: Callable[[], None]) -> None:
            try:
                body()
            except BaseException as error:  # noqa: BLE001 - raised below, in the test's own thread
                broken.append(error)

        threads = [threading.Thread(target=guarded, args=(body,), daemon=True) for body in bodies]
        for thread in threads:
            thread.start()
        try:
            yield threads
        finally:
            self.stop.set()
            for thread in threads:
                thread.join(PATIENCE_S)
            assert not any(thread.is_alive() for thread in threads), "a stage did not end on stop"
        if broken:
            raise broken[0]

    def published(self) -> list[Item]:
        """What waits for the publisher now."""
        return [item for piece in self.publish_inbox.get_all(0) for item in piece]

    def metric(self, name: str, /, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def tensor(*reds: int) -> Pixels:
    """uint8 [N, 224, 224, 3], each image of one red."""
    pixels = np.zeros((len(reds), 224, 224, 3), np.uint8)
    pixels[:, :, :, 0] = np.array(reds, np.uint8)[:, None, None]
    return pixels


def scores(value: float) -> Scores:
    return Scores(linear=value, knn=value, svm=value)
