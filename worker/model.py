"""The model that decides: its calls, its version, and when it last answered; and the look-up of what it said before."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import structlog

from worker.clients.redis import CacheEntry, Store
from worker.clients.triton import Inference, Triton
from worker.clock import SYSTEM_CLOCK, Clock, StopSignal
from worker.crop import CROP_PX, Pixels
from worker.retry import Guarded
from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


def canary() -> Pixels:
    """A picture to try the model with, uint8 [1, 224, 224, 3]: slopes and grain, another one each time.

    One that never changes, or is all black, may be scored by a model that fails on everything else.
    """
    random = np.random.default_rng()
    slope = np.linspace(0, random.uniform(60, 180), CROP_PX, dtype=np.float32)
    picture = slope[:, None, None] + slope[None, :, None] * random.uniform(0, 0.4, 3).astype(np.float32)
    grain = random.uniform(0, 40, (CROP_PX, CROP_PX, 3)).astype(np.float32)
    pixels: Pixels = np.clip(picture + grain, 0, 255).astype(np.uint8)[None]
    return pixels


class ModelWatch:
    """Follows the model behind `triton`. Thread-safe."""

    def __init__(self, triton: Triton, model_name: str, metrics: Metrics, clock: Clock = SYSTEM_CLOCK) -> None:
        self._triton = triton
        self._name = model_name
        self._metrics = metrics
        self._clock = clock
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
        return 0.0 if self._calls else self._clock.monotonic() - self._last_success

    def infer(self, pixels: Pixels, timeout_s: float | None = None) -> Inference:
        """One call. Raises Unavailable or InferenceFailed."""
        with self._lock:
            self._calls += 1
            self._metrics.triton_calls_in_flight.set(self._calls)
        outcome = "error"
        try:
            inference = self._triton.infer(pixels, timeout_s=timeout_s)
            self._last_success = self._clock.monotonic()
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


class HashCache:
    """Scores of bytes that this version of the model has seen before.

    `reader`: the version of what reads evidence now; that of another one is not used again.
    """

    def __init__(
        self, store: Guarded[Store], model: ModelWatch, metrics: Metrics, *, enabled: bool, reader: str = ""
    ) -> None:
        self.reader = reader
        self._store = store
        self._model = model
        self._metrics = metrics
        self._enabled = enabled

    def look_up(self, sha256s: Sequence[str], stop: StopSignal) -> tuple[str, list[CacheEntry | None]]:
        """The model's version, and for each hash what it said of those bytes. Raises Stopping."""
        version = self._model.version
        if not sha256s or not self._enabled:
            return version, [None] * len(sha256s)
        entries = self._store.call(lambda store: store.cached(sha256s, version), stop)
        hits = sum(entry is not None for entry in entries)
        self._metrics.cache_lookups.labels(result="hit").inc(hits)
        self._metrics.cache_lookups.labels(result="miss").inc(len(entries) - hits)
        return version, entries
