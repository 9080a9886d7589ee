"""Every metric of the worker, in one file: name, type, labels, unit and one line of meaning (docs/metrics.md is
generated from it).

A `Metrics` owns its registry, so that tests and several workers in one process do not clash. Label values that are
known beforehand are there from the start at 0: a counter that first appears at 1 loses its first step in `rate()`.

Use:  metrics = Metrics(); metrics.verdicts.labels(decision="fake", source="model").inc(); metrics.model("code",
      "0123456789ab")
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

from worker.contract import HEADS
from worker.errors import RejectReason
from worker.evidence import C2paState, Declared, Watermark
from worker.telemetry.certificates import CertificateExpiry
from worker.telemetry.detector_metrics import DetectorMetrics
from worker.telemetry.metric_doc import PREFIX, MetricDoc

DEPENDENCIES = ("kafka", "redis", "triton")
STAGES = ("queued", "fetch", "decode", "infer", "publish", "total")

_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_ITEMS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_BYTES_BUCKETS = tuple(2**exponent for exponent in range(14, 29, 2))  # 16 KiB to 256 MiB
_SCORE_BUCKETS = tuple(step / 20 for step in range(1, 21))

disable_created_metrics()  # type: ignore[no-untyped-call]  # a `_created` series beside each counter doubles the scrape and nobody reads it


class Metrics:
    """All metrics of one worker.

    `certificates`: the PEM files of the settings (`certificate_files`); their expiry is read at each scrape, so that a
    rotation shows at once.
    """

    def __init__(self, *, certificates: Sequence[Path] = ()) -> None:
        self.registry = CollectorRegistry()
        self.docs: list[MetricDoc] = []
        self._outcomes()
        self._cache()
        self._batches()
        self._flow()
        self._consumer()
        self._dependencies()
        self._shadow()
        buckets = {"scores": _SCORE_BUCKETS, "items": _ITEMS_BUCKETS, "seconds": _SECONDS_BUCKETS}
        self.detectors = DetectorMetrics(self._counter, self._gauge, self._histogram, buckets)
        self._running()
        self._expect_labels()
        self.docs.append(CertificateExpiry.DOC)
        self.registry.register(CertificateExpiry(certificates))
        ProcessCollector(registry=self.registry)  # process_*: memory, CPU, descriptors, under their usual names

    def _outcomes(self) -> None:
        """What came in and what became of it."""
        self.records_consumed = self._counter(
            "records_consumed", "Records taken from the incoming topic.", unit="records"
        )
        self.consumed_bytes = self._counter("consumed_bytes", "Size of the values of these records.", unit="bytes")
        self.verdicts = self._counter(
            "verdicts", "Verdicts stored and acknowledged.", unit="verdicts", labels=("decision", "source")
        )
        self.rejections = self._counter(
            "rejections", "Rejected records, acknowledged.", unit="records", labels=("reason", "stage")
        )
        self.stale_results = self._counter(
            "stale_results",
            "Results dropped because their partition had been revoked; the new owner redoes them.",
            unit="records",
        )
        self.scores = self._histogram(
            "scores",
            "Scores P(fake) of each head, model and cache alike: watch it for drift.",
            unit="1",
            buckets=_SCORE_BUCKETS,
            labels=("head",),
        )

        self.evidence = self._counter(
            "evidence",
            "Verdicts on images with such evidence: declared, c2pa, tool, source_type, aigc or watermark.",
            unit="verdicts",
            labels=("kind", "value"),
        )

    def _cache(self) -> None:
        """Cache and coalescing."""
        self.cache_lookups = self._counter(
            "cache_lookups", "Look-ups of an image hash, result hit or miss.", unit="look-ups", labels=("result",)
        )
        self.coalesced_items = self._counter(
            "coalesced_items",
            "Items that waited for an equal image in work instead of a run of their own.",
            unit="items",
        )

    def _batches(self) -> None:
        """Batches and time."""
        self.batch_items = self._histogram(
            "batch_items", "Images in a batch handed to decoding.", unit="images", buckets=_ITEMS_BUCKETS
        )
        self.batch_bytes = self._histogram(
            "batch_bytes", "Encoded size of such a batch.", unit="bytes", buckets=_BYTES_BUCKETS
        )
        self.decode_attempts = self._counter(
            "decode_attempts",
            "Images that a decoding process has answered for (outcome ok), or that alone ended one: by signal, "
            "timeout, memory, exit or defect.",
            unit="images",
            labels=("outcome",),
        )
        self.decoder_restarts = self._counter(
            "decoder_restarts",
            "Decoding processes that ended, by cause; slow: an image took longer than its header announced, and goes "
            "on in the slow lane; start: one ended before it could work.",
            unit="processes",
            labels=("cause",),
        )
        self.slow_images = self._gauge("slow_images", "Images that wait in the slow lane of decoding.", unit="images")
        self.stage_seconds = self._histogram(
            "stage_seconds",
            "Time of one item in a stage; queued runs from the Kafka timestamp to the first touch, total from there "
            "to the acknowledged verdict.",
            unit="seconds",
            buckets=_SECONDS_BUCKETS,
            labels=("stage",),
        )
        self.last_progress_timestamp_seconds = self._gauge(
            "last_progress_timestamp_seconds",
            "When a record was last finished, Unix time; 0 before the first.",
            unit="seconds",
        )

    def _flow(self) -> None:
        """What is under way, and back-pressure."""
        self.flow_items = self._gauge("flow_items", "Records in work.", unit="records")
        self.flow_items_limit = self._gauge(
            "flow_items_limit", "Records in work at which consumption pauses.", unit="records"
        )
        self.flow_bytes = self._gauge("flow_bytes", "Encoded bytes in work.", unit="bytes")
        self.flow_bytes_limit = self._gauge(
            "flow_bytes_limit", "Encoded bytes in work at which consumption pauses.", unit="bytes"
        )
        self.paused = self._gauge("paused", "1 while consumption is paused.", unit="1")
        self.pauses = self._counter(
            "pauses",
            "Pauses of consumption, by cause: flow (high water) or a dependency.",
            unit="pauses",
            labels=("cause",),
        )

    def _consumer(self) -> None:
        """The Kafka consumer."""
        self.consumer_lag = self._gauge(
            "consumer_lag_records",
            "Records between the committed offset and the end of the partition.",
            unit="records",
            labels=("topic", "partition"),
        )
        self.assigned_partitions = self._gauge(
            "assigned_partitions", "Partitions of the incoming topic assigned to this worker.", unit="partitions"
        )
        self.rebalances = self._counter("rebalances", "Changes of the assignment.", unit="rebalances")
        self.commits = self._counter("commits", "Offset commits acknowledged.", unit="commits")
        self.commit_failures = self._counter(
            "commit_failures", "Offset commits refused or timed out; the next one covers them.", unit="commits"
        )

    def _dependencies(self) -> None:
        """The servers and storages, and the calls to them."""
        self.dependency_up = self._gauge(
            "dependency_up", "1 while Kafka, Redis and Triton answer the probe.", unit="1", labels=("dependency",)
        )
        self.dependency_failures = self._counter(
            "dependency_failures", "Calls that failed.", unit="calls", labels=("dependency",)
        )
        self.retries = self._counter(
            "retries", "Calls made again after a failure.", unit="calls", labels=("dependency",)
        )
        self.breaker_state = self._gauge(
            "breaker_state", "Circuit breaker: 0 closed, 1 half-open, 2 open.", unit="1", labels=("dependency",)
        )
        self.triton_calls = self._counter(
            "triton_calls", "Inference calls, outcome ok or error.", unit="calls", labels=("outcome",)
        )
        self.triton_calls_in_flight = self._gauge("triton_calls_in_flight", "Inference calls under way.", unit="calls")
        self.storage_state = self._gauge(
            "storage_state",
            "Circuit breaker of each host, bucket or folder that the settings allow: 0 closed, 1 half-open, 2 open.",
            unit="1",
            labels=("storage",),
        )
        self.records_parked = self._counter(
            "records_parked", "References that went to the retry topic because their storage is away.", unit="records"
        )
        self.fetches = self._counter(
            "fetches",
            "References by what became of them: ok, rejected, or parked because their storage is away.",
            unit="fetches",
            labels=("scheme", "outcome"),
        )
        self.fetched_bytes = self._counter(
            "fetched_bytes", "Size of the images fetched by reference.", unit="bytes", labels=("scheme",)
        )

    def _shadow(self) -> None:
        """The shadow model: a second version on a sample of the traffic."""
        self.shadow_images = self._counter(
            "shadow_images",
            "Images sampled for the shadow model, outcome compared, dropped (it is behind) or failed.",
            unit="images",
            labels=("outcome",),
        )
        self.shadow_decisions = self._counter(
            "shadow_decisions",
            "Decisions of the model in use beside what the shadow model would have decided.",
            unit="images",
            labels=("decision", "shadow"),
        )
        self.shadow_score_difference = self._histogram(
            "shadow_score_difference",
            "Absolute difference of the two models' scores.",
            unit="1",
            buckets=_SCORE_BUCKETS,
            labels=("head",),
        )
        self.shadow_model_info = self._gauge(
            "shadow_model_info", "1 for the shadow model.", unit="1", labels=("name", "version")
        )

    def _running(self) -> None:
        """What runs."""
        self.model_info = self._gauge("model_info", "1 for the model in use.", unit="1", labels=("name", "version"))
        self.policy_info = self._gauge("policy_info", "1 for the policy in use.", unit="1", labels=("name", "version"))
        self.policy_reload_failed = self._gauge(
            "policy_reload_failed",
            "1 while a policy file is broken or gone and the policy before it stays in force, else 0.",
            unit="1",
        )
        meaning = "1 where the policy was calibrated with the served model, 0 where with another; else absent."
        self.docs.append(MetricDoc(PREFIX + "policy_calibrated", "gauge", (), "1", meaning))
        self.policy_calibrated = Gauge(PREFIX + "policy_calibrated", meaning, registry=None)
        self._calibrated_is_shown = False
        self.policy_shadow_info = self._gauge(
            "policy_shadow_info", "1 for the shadow policy.", unit="1", labels=("name", "version")
        )
        self.policy_shadow_decisions = self._counter(
            "policy_shadow_decisions",
            "Verdicts by what the policy decided and what the shadow policy would have.",
            unit="verdicts",
            labels=("decision", "shadow"),
        )
        self.drift_distance = self._gauge(
            "drift_distance",
            "Population stability index of the latest window of scores against the calibration's, by head and format.",
            unit="1",
            labels=("head", "format"),
        )
        self.drift_detected = self._gauge(
            "drift_detected",
            "1 where the latest window's scores are no mixture of the calibration's real and generated images, else 0.",
            unit="1",
            labels=("head", "format"),
        )
        self.drift_fake_share = self._gauge(
            "drift_fake_share",
            "Share of generated images in the mixture that is nearest to the latest window.",
            unit="1",
            labels=("head", "format"),
        )
        self.build_info = self._gauge(
            "build_info", "1; the worker's version and its Python.", unit="1", labels=("version", "python")
        )

    def model(self, name: str, version: str) -> None:
        """The model in use, in place of the one before."""
        self.model_info.clear()
        self.model_info.labels(name=name, version=version).set(1)

    def shadow_model(self, name: str, version: str) -> None:
        """The shadow model, in place of the one before."""
        self.shadow_model_info.clear()
        self.shadow_model_info.labels(name=name, version=version).set(1)

    def policy(self, name: str, version: str) -> None:
        """The policy in use, in place of the one before."""
        self.policy_info.clear()
        self.policy_info.labels(name=name, version=version).set(1)

    def shadow_policy(self, name: str, version: str) -> None:
        """The shadow policy, in place of the one before."""
        self.policy_shadow_info.clear()
        self.policy_shadow_info.labels(name=name, version=version).set(1)

    def calibrated(self, *, fits: bool | None) -> None:
        """Whether the policy was calibrated with the served model; None where it does not say."""
        self.policy_calibrated.set(fits or False)
        if (fits is not None) != self._calibrated_is_shown:
            (self.registry.register if fits is not None else self.registry.unregister)(self.policy_calibrated)
            self._calibrated_is_shown = fits is not None

    def forget_drift(self) -> None:
        """What was measured against another calibration."""
        for gauge in (self.drift_distance, self.drift_detected, self.drift_fake_share):
            gauge.clear()

    def build(self, version: str) -> None:
        """The worker's version."""
        self.build_info.clear()
        self.build_info.labels(version=version, python=platform.python_version()).set(1)

    def forget_partition(self, topic: str, partition: int) -> None:
        """Drop the lag of a partition that was taken away, lest its last value stands. Unknown ones are fine."""
        self.consumer_lag.remove_by_labels({"topic": topic, "partition": str(partition)})

    def _expect_labels(self) -> None:
        for decision, source in itertools.product(("real", "fake", "review"), ("model", "cache")):
            self.verdicts.labels(decision=decision, source=source)
        for reason, stage in itertools.product(RejectReason, ("poll", "intake", "decode", "infer")):
            self.rejections.labels(reason=reason.value, stage=stage)
        for dependency in DEPENDENCIES:
            self.dependency_up.labels(dependency=dependency)
            self.dependency_failures.labels(dependency=dependency)
            self.retries.labels(dependency=dependency)
            self.breaker_state.labels(dependency=dependency)
        for kind, literal in (("declared", Declared), ("c2pa", C2paState), ("watermark", Watermark)):
            for value in get_args(literal):
                self.evidence.labels(kind=kind, value=value)
        # Storages are asked by nobody but their references, and are no reason to pause; each has a state of its own.
        self.dependency_failures.labels(dependency="storage")
        deaths = ("signal", "exit", "timeout", "memory", "defect")
        expected: list[tuple[Any, Sequence[str]]] = [
            (self.pauses, ("flow", *DEPENDENCIES)),
            (self.cache_lookups, ("hit", "miss")),
            (self.decode_attempts, ("ok", *deaths)),
            (self.decoder_restarts, (*deaths, "slow", "start")),
            (self.triton_calls, ("ok", "error")),
            (self.scores, HEADS),
            (self.shadow_score_difference, HEADS),
            (self.shadow_images, ("compared", "dropped", "failed")),
            (self.stage_seconds, STAGES),
            (self.fetched_bytes, ("file", "https", "s3")),
        ]
        for metric, values in expected:
            for value in values:
                metric.labels(value)
        for decision, shadow in itertools.product(("real", "fake", "review"), repeat=2):
            self.shadow_decisions.labels(decision=decision, shadow=shadow)
            self.policy_shadow_decisions.labels(decision=decision, shadow=shadow)
        for scheme, outcome in itertools.product(("file", "https", "s3"), ("ok", "rejected", "parked")):
            self.fetches.labels(scheme=scheme, outcome=outcome)

    def _counter(self, name: str, meaning: str, *, unit: str, labels: tuple[str, ...] = ()) -> Counter:
        self.docs.append(MetricDoc(f"{PREFIX}{name}_total", "counter", labels, unit, meaning))
        return Counter(PREFIX + name, meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, *, unit: str, labels: tuple[str, ...] = ()) -> Gauge:
        self.docs.append(MetricDoc(PREFIX + name, "gauge", labels, unit, meaning))
        return Gauge(PREFIX + name, meaning, labels, registry=self.registry)

    def _histogram(
        self, name: str, meaning: str, *, unit: str, buckets: Sequence[float], labels: tuple[str, ...] = ()
    ) -> Histogram:
        self.docs.append(MetricDoc(PREFIX + name, "histogram", labels, unit, meaning))
        return Histogram(PREFIX + name, meaning, labels, buckets=buckets, registry=self.registry)


def metric_docs() -> Iterator[MetricDoc]:
    """Every metric in the order of this file, for docs/metrics.md."""
    yield from Metrics().docs
