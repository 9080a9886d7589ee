"""Facts and policy -> decision, reasons, labels -> verdict. Pure functions: same input, same verdict."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime

import numpy as np

from worker.contract import ModelRef, Origin, Scores, Timings, Verdict, verdict_id
from worker.item import Ended, Judgement
from worker.policy import Facts, Policy, named_headers

_ROUNDING = 1e-4  # a score further outside of [0, 1] is no score


def to_scores(row: np.ndarray) -> Scores:
    """float32 [3] -> Scores, each the shortest decimal that is this float32, so that JSON carries no false digits.

    Raises ValueError for a number that is no probability; what rounding carried past an end is cut.
    """
    linear, knn, svm = (
        min(max(float(str(value)), 0.0), 1.0) if -_ROUNDING <= value <= 1 + _ROUNDING else float(value) for value in row
    )
    return Scores(linear=linear, knn=knn, svm=svm)


def timestamp(epoch_s: float) -> str:
    """UTC with milliseconds, as in `decided_at`."""
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def facts_of(ended: Ended, judgement: Judgement, headers: Collection[str]) -> Facts:
    """What a policy that names `headers` decides on."""
    return Facts(
        judgement.scores,
        judgement.info,
        judgement.evidence,
        judgement.detectors,
        named_headers(ended.item.record, headers),
    )


def make_verdict(
    ended: Ended, judgement: Judgement, policy: Policy, model_name: str, *, now_s: float, total_ms: float
) -> Verdict:
    """The verdict on a judged image. `now_s`: seconds since the epoch."""
    assert ended.image_id is not None, "only an identified image is judged"
    assert ended.sha256 is not None, "only an image that was had is judged"
    source, ref = ended.item.record.source, policy.ref
    facts = facts_of(ended, judgement, policy.headers)
    outcome = policy.decide(facts)
    return Verdict(
        verdict_id=verdict_id(ended.image_id, ended.sha256, judgement.versions, ref.version),
        image_id=ended.image_id,
        sha256=ended.sha256,
        decision=outcome.decision,
        reasons=list(outcome.reasons),
        scores=facts.scores,
        model=ModelRef(name=model_name, version=judgement.model_version),
        policy=ref,
        image=facts.image,
        source="cache" if judgement.from_cache else "model",
        decided_at=timestamp(now_s),
        timings_ms=Timings(
            queued=_rounded(ended.item.queued_ms),
            decode=_rounded(judgement.decode_ms),
            infer=_rounded(judgement.infer_ms),
            total=round(total_ms, 3),
        ),
        origin=Origin(
            topic=source.topic, partition=source.partition, offset=source.offset, uri=ended.item.reference_uri
        ),
        detectors=dict(facts.detectors),
        evidence=facts.evidence,
        labels=list(outcome.labels),
        headers=dict(facts.headers),
    )


def _rounded(duration_ms: float | None) -> float | None:
    return None if duration_ms is None else round(duration_ms, 3)
