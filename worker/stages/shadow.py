"""A second model version on a sample of the traffic, beside the one that decides: scores compared, nothing decided.

It may be slow, fail or be away: what it cannot take is dropped and counted, never waited for. Disagreements and score
differences are metrics; each comparison also goes into the Redis stream `assay:shadow:<model>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import structlog

from worker.clients.redis import Store
from worker.clients.triton import InferenceFailed, Triton
from worker.contract import HEADS, Scores
from worker.crop import Pixels
from worker.errors import Unavailable
from worker.item import Ended, Judgement
from worker.queues import StageQueue
from worker.settings import ShadowSettings
from worker.stages.decide import facts_of, timestamp, to_scores
from worker.stages.policy_watch import PolicyWatch
from worker.stages.stage import Stage, Tools

log = structlog.get_logger(__name__)
WARN_EVERY_S = 60.0


def is_sampled(sha256: str, share: float) -> bool:
    """Is this image in the sample? By its hash, so that every worker and every redelivery says the same."""
    return int(sha256[:8], 16) < share * 2**32


@dataclass(frozen=True, slots=True)
class _Sample:
    """Judged images and their pixels, row by row."""

    judged: list[tuple[Ended, Judgement]]
    pixels: Pixels


class Shadow(Stage):
    """Takes batches from Infer without making it wait, and compares them in a thread of its own."""

    def __init__(
        self, settings: ShadowSettings, tools: Tools, policies: PolicyWatch, *, triton: Triton, store: Store
    ) -> None:
        self._settings = settings
        self._tools = tools
        self._policies = policies
        self._triton = triton
        self._store = store
        self._inbox: StageQueue[_Sample] = StageQueue(clock=tools.clock)
        self._warned_at = float("-inf")
        self._version = ""

    def offer(self, batch: Sequence[Ended], pixels: Pixels) -> None:
        """Sample a batch whose items have their outcomes. Never blocks."""
        judged = [
            (row, ended, ended.outcome)
            for row, ended in enumerate(batch)
            if isinstance(ended.outcome, Judgement) and is_sampled(ended.sha256 or "0", self._settings.share)
        ]
        if not judged:
            return
        if len(self._inbox) >= self._settings.waiting_batches:
            self._tools.metrics.shadow_images.labels(outcome="dropped").inc(len(judged))
            return
        rows = [row for row, _, _ in judged]
        pairs = [(ended, judgement) for _, ended, judgement in judged]
        self._inbox.put(_Sample(pairs, np.ascontiguousarray(pixels[rows])), self._tools.stop)

    def step(self, wait_s: float) -> None:
        """Compare one sample; what fails is counted and forgotten."""
        sample = self._inbox.get(wait_s)
        if sample is None:
            return
        try:
            self._compare(sample)
        except (Unavailable, InferenceFailed, ValueError) as error:
            self._tools.metrics.shadow_images.labels(outcome="failed").inc(len(sample.judged))
            now = self._tools.clock.monotonic()
            if now - self._warned_at > WARN_EVERY_S:
                self._warned_at = now
                note = "verdicts do not depend on it"
                log.warning("shadow_failed", model=self._settings.model_name, error=str(error), note=note)

    def _compare(self, sample: _Sample) -> None:
        version, scores = self._infer(sample.pixels)
        comparisons = [
            self._comparison(ended, judgement, theirs, version)
            for (ended, judgement), theirs in zip(sample.judged, scores, strict=True)
        ]
        self._store.add_comparisons(self._settings.model_name, comparisons, self._settings.stream_max_items)
        self._tools.metrics.shadow_images.labels(outcome="compared").inc(len(comparisons))

    def _infer(self, pixels: Pixels) -> tuple[str, list[Scores]]:
        """Scores and the version that gave them: asked again when it has changed meanwhile."""
        while True:
            scores = [to_scores(row) for row in self._triton.infer(pixels).scores]
            version = self._triton.model_version()
            if version == self._version:
                return version, scores
            self._version = version
            self._tools.metrics.shadow_model(self._settings.model_name, version)

    def _comparison(self, ended: Ended, judgement: Judgement, theirs: Scores, version: str) -> dict[str, str]:
        metrics = self._tools.metrics
        policy = self._policies.policy
        facts = facts_of(ended, judgement, policy.headers)
        decision, shadow = policy.decide(facts).decision, policy.decide(replace(facts, scores=theirs)).decision
        metrics.shadow_decisions.labels(decision=decision, shadow=shadow).inc()
        fields = {
            "image_id": ended.image_id or "",
            "sha256": ended.sha256 or "",
            "model": judgement.model_version,
            "shadow_model": version,
            "decision": decision,
            "shadow_decision": shadow,
            "at": timestamp(self._tools.clock.time()),
        }
        for head in HEADS:
            ours, other = getattr(judgement.scores, head), getattr(theirs, head)
            metrics.shadow_score_difference.labels(head=head).observe(abs(ours - other))
            fields |= {f"score_{head}": repr(ours), f"shadow_score_{head}": repr(other)}
        return fields
