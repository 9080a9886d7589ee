"""The explanation of one stored verdict: what it stands on, how near it was to another, and what speaks for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from worker.clients.triton import InferenceFailed
from worker.contract import Decision, PolicyRef, Scores, Verdict
from worker.crop import Pixels
from worker.errors import Unavailable
from worker.evidence import Evidence
from worker.explain import decode, occlusion, origin, subject
from worker.explain.gone import Gone
from worker.explain.margins import Margin, margins, without_evidence
from worker.explain.subject import Subject
from worker.policy import Facts, Policy
from worker.settings import Settings

T = TypeVar("T")


class Window(BaseModel):
    """A part of the crop, in its pixels."""

    model_config = ConfigDict(frozen=True)

    left: int
    top: int
    right: int
    bottom: int


class AttributionMap(BaseModel):
    """What covering each part takes from a head's logit: above 0 it speaks for fake, below 0 for real."""

    model_config = ConfigDict(frozen=True)

    detector: str = Field(description="whose map it is: `code`, or a detector beside it")
    head: str
    width: int = Field(description="of what that detector looks at, in pixels")
    height: int
    score: float = Field(description="of the whole crop by the model served now")
    model_version: str
    window_px: int
    stride_px: int
    grid: list[list[float]] = Field(description="rows of windows, from the crop's upper left corner")
    strongest: Window = Field(description="the part that speaks most for the decision")


class Explanation(BaseModel):
    """All that can be said about a verdict now; `missing` names what cannot, and why."""

    model_config = ConfigDict(frozen=True)

    image_id: str
    verdict_id: str
    decision: Decision
    reasons: list[str]
    labels: list[str]
    scores: Scores
    policy: PolicyRef = Field(description="the policy that decided")
    margins: list[Margin] = Field(description="by the policy in force here")
    changes: list[str] = Field(description="what would change the decision, in words")
    evidence: Evidence
    attribution: AttributionMap | None
    missing: list[str]
    verdict_timings_ms: dict[str, float | None]
    took_ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class Explained:
    """With the pixels that the pictures are drawn from, where they could be had."""

    explanation: Explanation
    pixels: Pixels | None = None
    attribution: occlusion.Attribution | None = None


def explain(
    settings: Settings, policy: Policy, verdict: Verdict, data: bytes | None = None, detector: str | None = None
) -> Explained:
    """`data`: the image's bytes where they are at hand; else they are read again from where the verdict says.

    `detector`: whose map is drawn; without it that of the score which decided.
    """
    missing: list[str] = []
    took_ms: dict[str, float] = {}
    if policy.ref.version != verdict.policy.version:
        missing.append(
            f"the policy that decided ({verdict.policy.name} {verdict.policy.version}): margins and changes are those "
            f"of the one in force here ({policy.name} {policy.ref.version})"
        )
    if verdict.evidence.nearest.fake.distance is None:
        missing.append("nearest neighbours: the model that judged the image does not say them")
    facts = Facts.of(verdict)
    pixels = attribution = drawn = None
    with decode.Decoder() as decoder:
        found = _timed(took_ms, "margins", lambda: margins(policy, facts))
        about = subject.deciding(found, verdict.decision, detector)
        try:
            if data is None:
                data = _timed(took_ms, "bytes", lambda: origin.read_again(settings, verdict.origin, verdict.sha256))
            encoded = data
            with subject.served(settings, about) as served:
                pixels = seen = _timed(took_ms, "decode", lambda: decoder.look(encoded, served.view))
                attribution = _timed(took_ms, "map", lambda: served.attribute(seen))
            drawn = _map(attribution, seen, served.about, served.version, fake=verdict.decision != "real")
            judged_by = subject.version_that_judged(verdict, about)
            if judged_by not in (None, served.version):
                missing.append(f"a map of the model that judged ({judged_by}): {served.version} is served now")
        except Gone as gone:
            missing.append(f"the image's bytes, and with them the map: {gone}")
        except (Unavailable, InferenceFailed) as error:
            missing.append(f"the map: {error}")
    explanation = Explanation(
        image_id=verdict.image_id,
        verdict_id=str(verdict.verdict_id),
        decision=verdict.decision,
        reasons=verdict.reasons,
        labels=verdict.labels,
        scores=verdict.scores,
        policy=verdict.policy,
        margins=found,
        changes=_changes(policy, facts, found),
        evidence=verdict.evidence,
        attribution=drawn,
        missing=missing,
        verdict_timings_ms=verdict.timings_ms.model_dump(),
        took_ms=took_ms,
    )
    return Explained(explanation, pixels, attribution)


def _map(
    attribution: occlusion.Attribution, pixels: Pixels, about: Subject, version: str, *, fake: bool
) -> AttributionMap:
    left, top, right, bottom = attribution.strongest(fake=fake)
    return AttributionMap(
        detector=about.detector,
        head=about.head,
        width=pixels.shape[1],
        height=pixels.shape[0],
        score=attribution.score,
        model_version=version,
        window_px=attribution.window_px,
        stride_px=attribution.stride_px,
        grid=np.round(attribution.grid, 4).tolist(),
        strongest=Window(left=left, top=top, right=right, bottom=bottom),
    )


def _changes(policy: Policy, facts: Facts, found: list[Margin]) -> list[str]:
    decided = policy.decide(facts).decision
    lines = []
    for one in sorted(found, key=lambda one: abs((one.turns_at if one.turns_at is not None else 9.0) - one.value)):
        if one.turns_at is not None:
            away = abs(one.turns_at - one.value)
            lines.append(
                f"{one.into}, if {one.fact} were {one.turns_at:g} instead of {one.value:.4g} ({away:.4g} away)"
            )
    silent = without_evidence(policy, facts)
    if silent != decided:
        lines.append(f"{silent}, if the file said nothing of its origin")
    return lines or [f"{decided} whatever any one score were"]


def _timed(took_ms: dict[str, float], name: str, work: Callable[[], T]) -> T:
    started = time.monotonic()
    try:
        return work()
    finally:
        took_ms[name] = round((time.monotonic() - started) * 1000, 1)
