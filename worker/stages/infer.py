"""Pixels -> scores. A server that is away is waited for; an image that fails alone, again and again, is rejected.

The scores and the model version in a verdict belong together: the version is read before and after each call, and a
batch that a reload fell into is inferred again.
"""

from __future__ import annotations

import threading
import time

import numpy as np
import structlog

from worker.clients.triton import Inference, InferenceFailed, Triton
from worker.errors import Rejected, RejectReason, Stopping, Unavailable
from worker.flow import HandOver
from worker.item import Batch, Item, Pixels
from worker.retry import Dependency, StopSignal
from worker.settings import TritonSettings
from worker.stages.decide import to_scores
from worker.stages.shadow import Shadow
from worker.telemetry.metrics import Metrics
from worker.telemetry.tracing import Tracing

log = structlog.get_logger(__name__)
CANARY: Pixels = np.zeros((1, 224, 224, 3), np.uint8)
IDLE_S = 0.2


class ModelWatch:
    """The model: its calls, its version, and when it last answered. Thread-safe."""

    def __init__(self, triton: Triton, model_name: str, metrics: Metrics) -> None:
        self._triton = triton
        self._name = model_name
        self._metrics = metrics
        self._lock = threading.Lock()
        self._version = ""
        self._calls = 0
        self._last_success = float("-inf")

    @property
    def version(self) -> str:
        """12 hex digits; empty before the first `refresh`."""
        return self._version

    def idle_s(self) -> float:
        """Seconds since a call last succeeded; 0 while one is under way."""
        return 0.0 if self._calls else time.monotonic() - self._last_success

    def infer(self, pixels: Pixels, timeout_s: float | None = None) -> Inference:
        """One call. Raises Unavailable or InferenceFailed."""
        with self._lock:
            self._calls += 1
            self._metrics.triton_calls_in_flight.set(self._calls)
        outcome = "error"
        try:
            inference = self._triton.infer(pixels, timeout_s=timeout_s)
            self._last_success = time.monotonic()
            outcome = "ok"
        finally:
            with self._lock:
                self._calls -= 1
                self._metrics.triton_calls_in_flight.set(self._calls)
            self._metrics.triton_calls.labels(outcome=outcome).inc()
        return inference

    def refresh(self) -> str:
        """Ask the server. Raises Unavailable."""
        version = self._triton.model_version()
        with self._lock:
            if version != self._version:
                log.info("model_version", model=self._name, version=version, before=self._version or None)
                self._version = version
                self._metrics.model(self._name, version)
        return version


class Infer:
    """The third room; `run` is the body of each of `calls_in_flight` threads."""

    def __init__(
        self,
        settings: TritonSettings,
        *,
        dependency: Dependency,
        watch: ModelWatch,
        inbox: HandOver[Batch],
        publish: HandOver[list[Item]],
        metrics: Metrics,
        tracing: Tracing,
        stop: StopSignal,
        shadow: Shadow | None = None,
    ) -> None:
        self._shadow = shadow
        self._settings = settings
        self._dependency = dependency
        self._watch = watch
        self._inbox = inbox
        self._publish = publish
        self._metrics = metrics
        self._tracing = tracing
        self._stop = stop

    def run(self) -> None:
        """Work until `stop` is set."""
        try:
            while not self._stop.is_set():
                batch = self._inbox.get(IDLE_S)
                if batch is not None:
                    assert batch.pixels is not None
                    with self._tracing.batch("infer", [item.trace for item in batch.items]):
                        self._judge(batch.items, batch.pixels)
                    if self._shadow is not None:
                        self._shadow.offer(batch.items, batch.pixels)
                    self._publish.put(batch.items, self._stop)
        except Stopping:
            return

    def _judge(self, items: list[Item], pixels: Pixels) -> None:
        """Give each item its scores, or a rejection. Raises Stopping."""
        started = time.monotonic()
        failures = 0
        while True:
            try:
                version, inference = self._dependency.call(lambda: self._infer(pixels), self._stop)
                scores = [to_scores(row) for row in inference.scores]
            except (InferenceFailed, ValueError) as error:
                self._dependency.call(self._canary, self._stop)  # a model that is ill for everybody is no image's fault
                if len(items) > 1:
                    half = len(items) // 2
                    log.warning("batch_failed", items=len(items), error=str(error), action="trying its halves")
                    self._judge(items[:half], pixels[:half])
                    self._judge(items[half:], pixels[half:])
                    return
                failures += 1
                if failures >= self._settings.max_attempts:
                    detail = f"the model fails on this image alone: {error}"
                    items[0].rejected = Rejected(
                        RejectReason.INFERENCE_FAILED, detail, stage="infer", attempts=failures
                    )
                    return
                continue
            break
        elapsed_ms = (time.monotonic() - started) * 1000
        for item, score in zip(items, scores, strict=True):
            item.scores, item.model_version, item.infer_ms = score, version, elapsed_ms

    def _infer(self, pixels: Pixels) -> tuple[str, Inference]:
        while True:
            before = self._watch.version
            inference = self._watch.infer(pixels)
            after = self._watch.refresh()
            if after == before:
                return after, inference

    def _canary(self) -> None:
        """Does the model score a black image? Raises Unavailable where it does not."""
        try:
            scores = self._watch.infer(CANARY).scores
        except InferenceFailed as error:
            raise Unavailable("triton", f"the model fails on a plain image too: {error}") from error
        if not np.isfinite(scores).all():
            raise Unavailable("triton", "the model's scores of a plain image are no numbers")
