"""A second model version on a sample of the traffic, beside the one that decides: scores compared, nothing decided.

It may be slow, fail or be away: what it cannot take is dropped and counted, never waited for. Disagreements and score
differences are metrics; each comparison also goes into the Redis stream `assay:shadow:<model>`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import structlog

from worker.clients.redis import Store
from worker.clients.triton import InferenceFailed, Triton
from worker.contract import HEADS, Scores
from worker.errors import Stopping, Unavailable
from worker.flow import HandOver
from worker.item import Batch, Item, Pixels
from worker.policy import Policy
from worker.retry import StopSignal
from worker.settings import ShadowSettings
from worker.stages.decide import decide, timestamp, to_scores
from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)
IDLE_S = 0.2
TOLD_EVERY_S = 60.0


def is_sampled(sha256: str, share: float) -> bool:
    """Is this image in the sample? By its hash, so that every worker and every redelivery says the same."""
    return int(sha256[:8], 16) < share * 2**32


class Shadow:
    """Takes batches from Infer without making it wait; `run` is the body of its own thread."""

    def __init__(
        self,
        settings: ShadowSettings,
        *,
        triton: Triton,
        store: Store,
        policy: Policy,
        metrics: Metrics,
        stop: StopSignal,
    ) -> None:
        self._settings = settings
        self._triton = triton
        self._store = store
        self._policy = policy
        self._metrics = metrics
        self._stop = stop
        self._inbox: HandOver[Batch] = HandOver()
        self._told_at = float("-inf")
        self._version = ""

    def offer(self, items: Sequence[Item], pixels: Pixels) -> None:
        """Sample a batch whose items have their scores. Never blocks."""
        chosen = [
            row
            for row, item in enumerate(items)
            if item.scores is not None and is_sampled(item.sha256 or "0", self._settings.share)
        ]
        if not chosen:
            return
        if len(self._inbox) >= self._settings.waiting_batches:
            self._metrics.shadow_images.labels(outcome="dropped").inc(len(chosen))
            return
        self._inbox.put(Batch([items[row] for row in chosen], np.ascontiguousarray(pixels[chosen])), self._stop)

    def run(self) -> None:
        """Work until `stop` is set."""
        while not self._stop.is_set():
            try:
                batch = self._inbox.get(IDLE_S)
            except Stopping:
                return
            if batch is None or batch.pixels is None:
                continue
            try:
                self._compare(batch.items, batch.pixels)
            except (Unavailable, InferenceFailed, ValueError) as error:
                self._metrics.shadow_images.labels(outcome="failed").inc(len(batch.items))
                if time.monotonic() - self._told_at > TOLD_EVERY_S:
                    self._told_at = time.monotonic()
                    log.warning(
                        "shadow_failed",
                        model=self._settings.model_name,
                        error=str(error),
                        note="verdicts do not depend on it",
                    )

    def _compare(self, items: Sequence[Item], pixels: Pixels) -> None:
        version, scores = self._infer(pixels)
        comparisons = [self._comparison(item, theirs, version) for item, theirs in zip(items, scores, strict=True)]
        self._store.add_comparisons(self._settings.model_name, comparisons, self._settings.stream_max_items)
        self._metrics.shadow_images.labels(outcome="compared").inc(len(items))

    def _infer(self, pixels: Pixels) -> tuple[str, list[Scores]]:
        """Scores and the version that gave them: asked again when it has changed meanwhile."""
        while True:
            scores = [to_scores(row) for row in self._triton.infer(pixels).scores]
            version = self._triton.model_version()
            if version == self._version:
                return version, scores
            self._version = version
            self._metrics.shadow_model(self._settings.model_name, version)

    def _comparison(self, item: Item, theirs: Scores, version: str) -> dict[str, str]:
        assert item.scores is not None
        decision, shadow = decide(item.scores, self._policy)[0], decide(theirs, self._policy)[0]
        self._metrics.shadow_decisions.labels(decision=decision, shadow=shadow).inc()
        fields = {
            "image_id": item.image_id or "",
            "sha256": item.sha256 or "",
            "model": item.model_version or "",
            "shadow_model": version,
            "decision": decision,
            "shadow_decision": shadow,
            "at": timestamp(time.time()),
        }
        for head in HEADS:
            ours, other = getattr(item.scores, head), getattr(theirs, head)
            self._metrics.shadow_score_difference.labels(head=head).observe(abs(ours - other))
            fields |= {f"score_{head}": repr(ours), f"shadow_score_{head}": repr(other)}
        return fields
