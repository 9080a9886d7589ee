"""In-memory twins of the clients, and one workbench that wires any stage as the pipeline does.

They keep the clients' promises (what they return, what they raise, in which order) and nothing else, so that faults can
be switched on: `store.away = True` and every call raises Unavailable until somebody switches it off. Integration tests
on the real servers hold the clients themselves to the same promises.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from worker.admission import Admission
from worker.clients.fetch import Fetcher
from worker.clients.kafka_producer import Outgoing
from worker.clients.redis import CacheEntry, ScoredImage, VerdictWrite
from worker.clients.triton import Inference, InferenceFailed
from worker.clock import SYSTEM_CLOCK, Clock, StopFlag
from worker.contract import Headers, ImageInfo, Partition, Record, Scores, Verdict, overtakes, was_replaced
from worker.crop import Pixels, View
from worker.errors import Rejected, Unavailable
from worker.examine.body import Body
from worker.examine.findings import Examined, Findings
from worker.examine.provenance.reader import ProvenanceReader
from worker.inflight import UnderWay
from worker.item import DecodedBatch, Encoded, Ended, Identified, Item, Judgement
from worker.model import ModelWatch
from worker.pipeline import Clients, Driven, Queues, wire
from worker.queues import StageQueue
from worker.retry import CircuitBreaker, Guarded
from worker.settings import Settings
from worker.stages.policy_watch import PolicyWatch
from worker.stages.stage import Stage, Tools, drive
from worker.storages import Storages
from worker.telemetry.metrics import Metrics
from worker.telemetry.tracing import ItemTrace, Tracing

PATIENCE_S = float(os.environ.get("TEST_PATIENCE_S", "30"))  # `make mutate` has less
VERSION = "0123456789ab"
TOPIC = "images.incoming"
P0, P1 = Partition(TOPIC, 0), Partition(TOPIC, 1)
QUICK = {"retry": {"base_ms": 1, "max_ms": 5}, "intake": {"batch_max_wait_ms": 5}}


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
    """worker.clients.redis.Store in two dicts. `log` is shared with the producer's twin, so that orders can be
    compared.
    """

    def __init__(self, log: list[tuple[str, str]]) -> None:
        self.away = False
        self.calls = 0
        self.verdicts: dict[str, Verdict] = {}
        self.images: dict[tuple[str, str], ScoredImage] = {}
        self.detectors: dict[tuple[str, str], dict[str, float]] = {}
        self._log = log

    def _answer(self) -> None:
        self.calls += 1
        if self.away:
            raise Unavailable("redis", "twin: switched off")

    def cached(self, sha256s: Sequence[str], model_version: str) -> list[CacheEntry | None]:
        self._answer()
        found = [self.images.get((sha256, model_version)) for sha256 in sha256s]
        return [one and cache_entry(one) for one in found]

    def save(
        self,
        verdicts: Sequence[VerdictWrite],
        images: Sequence[ScoredImage],
        late: Sequence[VerdictWrite] = (),
    ) -> None:
        self._answer()
        stored = {image_id: verdict.to_json() for image_id, verdict in self.verdicts.items()}
        for verdict, as_json, _ in [
            *[one for one in verdicts if not was_replaced(stored.get(one[0].image_id), one[0], one.recorded_at)],
            *[one for one in late if not overtakes(stored.get(one[0].image_id), one[0])],
        ]:
            assert Verdict.model_validate_json(as_json) == verdict
            self.verdicts[verdict.image_id] = verdict
            self._log.append(("redis", verdict.image_id))
        for image in images:
            self.images[image.sha256, image.model_version] = image
            self.detectors |= {(image.sha256, found.version): found.scores for found in image.detectors}

    def detector_scores(self, sha256s: Sequence[str], version: str) -> list[dict[str, float] | None]:
        self._answer()
        return [self.detectors.get((sha256, version)) for sha256 in sha256s]


def cache_entry(one: ScoredImage) -> CacheEntry:
    """What the cache gives back for what was written."""
    info = one.image
    facts = (info.format, info.width, info.height, info.jpeg_quality, info.frames)
    return CacheEntry(one.scores, *facts, one.evidence, one.reader)


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


class ExaminerTwin:
    """worker.examine.pool.Pool without processes: the same decoders, but DALI, in the caller's thread."""

    def __init__(self, settings: Settings, clock: Clock = SYSTEM_CLOCK, view: View | None = None) -> None:
        self._limits = settings.limits
        self._clock = clock
        self._size_px = (view or View()).size
        self._body = Body("none", None if view else ProvenanceReader(None), view)
        self._done: list[Examined[Any]] = []
        self._woken = False
        self._changed = threading.Condition()
        self.may_submit = True
        self.trouble = ""
        self.largest = 0

    def tell_slow(self, told: Callable[[Any], None]) -> None:
        """Nothing is slow here."""

    def submit(self, batch: Sequence[tuple[Any, bytes]]) -> None:
        good: list[tuple[Any, Findings]] = []
        bad: list[tuple[Any, Rejected]] = []
        self.largest = max(self.largest, len(batch))
        pixels = np.zeros((len(batch), *self._size_px, 3), np.uint8)
        for token, data in batch:
            try:
                header = self._body.read(data, self._limits.max_image_bytes, self._limits.max_image_pixels)
                row = pixels[len(good)]
                self._body.decode_one(header, row)
                good.append((token, self._body.findings(header, row, with_evidence=True)))
            except Rejected as rejected:
                bad.append((token, rejected))
        self._done.append(Examined(good, bad, pixels[: len(good)], None))

    def wait(self, timeout_s: float) -> list[Examined[Any]]:
        with self._changed:
            self._clock.wait_for(self._changed, lambda: bool(self._done) or self._woken, timeout_s)
            self._woken = False
        done, self._done = self._done, []
        return done

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def close(self) -> None:
        pass


class Workbench:
    """Everything under way, twins, breakers and queues, wired by the pipeline's own `wire`; `stage` finds one of
    them.
    """

    def __init__(
        self,
        wanted: Settings | None = None,
        *,
        fetcher: Any = None,
        encoded_capacity: int = 100,
        decoded_capacity: int = 100,
    ) -> None:
        self.settings = wanted or settings()
        self.stop = StopFlag()
        self.log: list[tuple[str, str]] = []
        self.store, self.producer, self.triton = StoreTwin(self.log), ProducerTwin(self.log), TritonTwin()
        self.metrics = Metrics()
        self.tools = Tools(self.metrics, Tracing(self.settings.tracing, "test"), self.stop)
        self.under_way = UnderWay(Admission(self.settings.flow))
        self.admission, self.tracker = self.under_way.admission, self.under_way.tracker
        self.order, self.single_flight = self.under_way.order, self.under_way.single_flight
        self.tracker.assign([P0, P1])
        self.queues = Queues(
            encoded=StageQueue(capacity=encoded_capacity), decoded=StageQueue(capacity=decoded_capacity)
        )
        self.redis, self.kafka, self.triton_server = (
            CircuitBreaker(name, self.settings.retry) for name in ("redis", "kafka", "triton")
        )
        self.can_park = True
        self.storages = Storages(
            self.settings.references,
            lambda address: CircuitBreaker(address.host, self.settings.retry),
            crowded=self.settings.flow.max_references // 2,
        )
        watched: Any = self.triton
        self.model = ModelWatch(watched, self.settings.triton.model_name, self.metrics)
        self.model.refresh()
        self.examiner = ExaminerTwin(self.settings)
        store: Any = self.store
        producer: Any = self.producer
        clients = Clients(
            store=Guarded(store, self.redis),
            producer=Guarded(producer, self.kafka),
            model=Guarded(self.model, self.triton_server),
            fetcher=fetcher or Fetcher(self.settings.references, self.settings.limits),
            storages=self.storages,
            can_park=lambda: self.can_park,
            examiner=self.examiner,
        )
        self.policies = PolicyWatch(self.settings, self.tools, lambda: self.model.version)
        self.line = wire(self.settings, self.policies, self.tools, self.under_way, self.queues, clients)

    def driven(self, name: str) -> Driven:
        """One of the wired stages."""
        return next(driven for driven in self.line if driven.name == name)

    def admit(self, *records: Record) -> list[Item]:
        """What Poll does with records."""
        items = []
        for one in records:
            epoch = self.tracker.deliver(one.place, one.offset)
            assert epoch is not None
            trace = ItemTrace(one.header("traceparent"))
            items.append(Item(one, epoch, touched_at=time.monotonic(), queued_ms=1.0, trace=trace))
            self.admission.admit(items[-1].record.size_bytes)
        return items

    def take(self, *records: Record) -> list[Item]:
        """Admit records and hand them to the intake."""
        items = self.admit(*records)
        self.queues.arrivals.put(items, self.stop)
        return items

    def identified(self, *records: Record, ids: str | None = None, shas: str | None = None) -> list[Encoded]:
        """Images as Intake hands them on; `ids` and `shas` give one letter or digit to each."""
        made = []
        for number, item in enumerate(self.admit(*records)):
            image_id = ids[number] if ids else f"id-{number}"
            sha256 = shas[number] * 64 if shas else f"{number:064x}"
            self.order.enter(image_id, item)
            made.append(Encoded(Identified(item, image_id, sha256), item.record.value or b""))
        return made

    @contextmanager
    def running(self, *names: str) -> Iterator[list[threading.Thread]]:
        """The stages of these names (all where none is given), each in its threads; stopped and joined at the end, and
        whatever one broke with is raised.
        """
        chosen = [driven for driven in self.line if not names or driven.name in names]
        with self.driving(*[driven.stage for driven in chosen for _ in range(driven.threads)]) as threads:
            yield threads

    @contextmanager
    def driving(self, *stages: Stage) -> Iterator[list[threading.Thread]]:
        """Each stage in a thread of its own."""
        broken: list[BaseException] = []

        def guarded(stage: Stage) -> None:
            try:
                drive(stage, self.stop)
            except BaseException as error:  # noqa: BLE001 - raised below, in the test's own thread
                broken.append(error)

        threads = [threading.Thread(target=guarded, args=(stage,), daemon=True) for stage in stages]
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

    def published(self) -> list[Ended]:
        """What waits for the publisher now."""
        return [ended for piece in self.queues.ended.get_all(0) for ended in piece]

    def encoded(self) -> list[Encoded]:
        """What waits for decoding now."""
        return [encoded for batch in self.queues.encoded.get_all(0) for encoded in batch]

    def decoded(self) -> list[DecodedBatch]:
        """What waits for the model now."""
        return self.queues.decoded.get_all(0)

    def metric(self, name: str, /, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def judged(encoded: Encoded, value: float) -> Ended:
    """The image with the score `value` from all heads."""
    info = ImageInfo(format="png", width=640, height=480, bytes=1)
    return Ended.of(encoded.image, Judgement(info, scores(value), VERSION))


def tensor(*reds: int) -> Pixels:
    """uint8 [N, 224, 224, 3], each image of one red."""
    pixels = np.zeros((len(reds), 224, 224, 3), np.uint8)
    pixels[:, :, :, 0] = np.array(reds, np.uint8)[:, None, None]
    return pixels


def scores(value: float) -> Scores:
    return Scores(linear=value, knn=value, svm=value)
