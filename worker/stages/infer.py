"""Pixels -> scores. A server that is away is waited for; an image that fails alone, again and again, is rejected.

The scores and the model version in a verdict belong together: the version is read before and after each call, and a
batch that a reload fell into is inferred again.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from worker.clients.triton import Inference, InferenceFailed
from worker.crop import Pixels
from worker.errors import Rejected, RejectReason, Unavailable
from worker.item import Decoded, DecodedBatch, Ended, Judgement, Outcome
from worker.model import ModelWatch, canary
from worker.queues import Outlet, StageQueue
from worker.retry import Guarded
from worker.settings import TritonSettings
from worker.stages.decide import to_scores
from worker.stages.shadow import Shadow
from worker.stages.stage import Stage, Tools

log = structlog.get_logger(__name__)


class Infer(Stage):
    """Driven by `calls_in_flight` threads; each step is one batch."""

    def __init__(
        self,
        settings: TritonSettings,
        tools: Tools,
        model: Guarded[ModelWatch],
        shadow: Shadow | None,
        *,
        inbox: StageQueue[DecodedBatch],
        ended: Outlet[list[Ended]],
    ) -> None:
        self._max_attempts = settings.max_attempts
        self._tools = tools
        self._model = model
        self._shadow = shadow
        self._inbox = inbox
        self._ended = ended

    def step(self, wait_s: float) -> None:
        """Judge one batch."""
        batch = self._inbox.get(wait_s)
        if batch is None:
            return
        with self._tools.tracing.batch("infer", [decoded.image.item.trace for decoded in batch.images]):
            outcomes = self._judge(batch.images, batch.pixels)
        ended = [Ended.of(decoded.image, outcome) for decoded, outcome in zip(batch.images, outcomes, strict=True)]
        if self._shadow is not None:
            self._shadow.offer(ended, batch.pixels)
        if batch.lease is not None:
            batch.lease.release()
        self._ended.put(ended, self._tools.stop)

    def _judge(self, images: Sequence[Decoded], pixels: Pixels) -> list[Outcome]:
        """For each image a judgement, or a rejection. Raises Stopping."""
        started = self._tools.clock.monotonic()
        failures = 0
        while True:
            try:
                version, inference = self._model.call(
                    lambda model: _infer_by_one_version(model, pixels), self._tools.stop
                )
                scores = [to_scores(row) for row in inference.scores]
            except (InferenceFailed, ValueError) as error:
                # A model that is ill for everybody is no image's fault.
                self._model.call(_check_canary, self._tools.stop)
                if len(images) > 1:
                    half = len(images) // 2
                    log.warning("batch_failed", items=len(images), error=str(error), action="trying its halves")
                    return self._judge(images[:half], pixels[:half]) + self._judge(images[half:], pixels[half:])
                failures += 1
                if failures >= self._max_attempts:
                    detail = f"the model fails on this image alone: {error}"
                    return [Rejected(RejectReason.INFERENCE_FAILED, detail, stage="infer", attempts=failures)]
                continue
            break
        elapsed_ms = (self._tools.clock.monotonic() - started) * 1000
        return [
            Judgement(
                decoded.info,
                score,
                version,
                decode_ms=decoded.decode_ms,
                infer_ms=elapsed_ms,
                evidence=decoded.evidence
                if nearest is None
                else decoded.evidence.model_copy(update={"nearest": nearest}),
                reader=decoded.reader,
            )
            for decoded, score, nearest in zip(images, scores, inference.nearest or [None] * len(images), strict=True)
        ]


def _infer_by_one_version(model: ModelWatch, pixels: Pixels) -> tuple[str, Inference]:
    """Scores of `pixels`, and the version that was served before and after the call."""
    while True:
        before = model.version
        inference = model.infer(pixels)
        after = model.refresh()
        if after == before:
            return after, inference


def _check_canary(model: ModelWatch) -> None:
    """Does the model score a picture that is surely no reason to fail? Raises Unavailable where it does not."""
    try:
        to_scores(model.infer(canary()).scores[0])
    except (InferenceFailed, ValueError) as error:
        raise Unavailable("triton", f"the model fails on a plain picture too: {error}") from error
