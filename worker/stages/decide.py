"""Scores and policy -> decision and reasons -> verdict. Pure functions: same input, same verdict."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from worker.contract import Decision, ModelRef, PolicyRef, Scores, Timings, Verdict, verdict_id
from worker.item import Ended, Judgement
from worker.policy import Policy


def to_scores(row: np.ndarray) -> Scores:
    """float32 [3] -> Scores, each the shortest decimal that is this float32, so that JSON carries no false digits.

    Raises ValueError for a number that is no probability.
    """
    linear, knn, svm = (min(max(float(str(value)), 0.0), 1.0) if np.isfinite(value) else value for value in row)
    return Scores(linear=linear, knn=knn, svm=svm)


def decide(scores: Scores, policy: Policy) -> tuple[Decision, list[str]]:
    """The decision, and the comparison that led to it in words an auditor can check."""
    score: float = getattr(scores, policy.head)
    shown = f"{policy.head} {_shown(score, policy)}"
    if score >= policy.fake_from:
        return "fake", [f"{shown} >= {_exact(policy.fake_from)}"]
    if score < policy.real_below:
        return "real", [f"{shown} < {_exact(policy.real_below)}"]
    return "review", [f"{_exact(policy.real_below)} <= {shown} < {_exact(policy.fake_from)}"]


def _exact(limit: float) -> str:
    """A threshold as the policy has it: 0.1234564 must not read as 0.123456 beside a score between the two."""
    short = f"{limit:g}"
    return short if float(short) == limit else repr(limit)


def _shown(score: float, policy: Policy) -> str:
    """Four digits, or all of them where four would read as the other side of a threshold (0.64999 is not 0.65)."""
    rounded = float(f"{score:.4g}")
    same_side = all((rounded >= limit) == (score >= limit) for limit in (policy.fake_from, policy.real_below))
    return f"{rounded:g}" if same_side else repr(score)


def timestamp(epoch_s: float) -> str:
    """UTC with milliseconds, as in `decided_at`."""
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def make_verdict(
    ended: Ended,
    judgement: Judgement,
    policy: Policy,
    policy_ref: PolicyRef,
    model_name: str,
    *,
    now_s: float,
    total_ms: float,
) -> Verdict:
    """The verdict on a judged image. `now_s`: seconds since the epoch."""
    assert ended.image_id is not None, "only an identified image is judged"
    assert ended.sha256 is not None, "only an image that was had is judged"
    decision, reasons = decide(judgement.scores, policy)
    return Verdict(
        verdict_id=verdict_id(ended.image_id, ended.sha256, judgement.model_version, policy_ref.version),
        image_id=ended.image_id,
        sha256=ended.sha256,
        decision=decision,
        reasons=reasons,
        scores=judgement.scores,
        model=ModelRef(name=model_name, version=judgement.model_version),
        policy=policy_ref,
        image=judgement.info,
        source="cache" if judgement.from_cache else "model",
        decided_at=timestamp(now_s),
        timings_ms=Timings(
            queued=_rounded(ended.item.queued_ms),
            decode=_rounded(judgement.decode_ms),
            infer=_rounded(judgement.infer_ms),
            total=round(total_ms, 3),
        ),
    )


def _rounded(duration_ms: float | None) -> float | None:
    return None if duration_ms is None else round(duration_ms, 3)
