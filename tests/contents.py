"""Records and verdicts of every kind, for the tests of what is made of them."""

from __future__ import annotations

import hashlib

from hypothesis import strategies as st

from worker.contract import (
    DetectorScores,
    Headers,
    ImageInfo,
    ModelRef,
    Origin,
    PolicyRef,
    Record,
    Scores,
    Timings,
    Verdict,
)
from worker.evidence import C2pa, Evidence

SHA = hashlib.sha256(b"image").hexdigest()
SHARE = st.floats(0, 1)
SCORES = st.builds(Scores, linear=SHARE, knn=SHARE, svm=SHARE)
HEAD_SCORES = st.dictionaries(st.sampled_from(["linear", "mlp"]), SHARE)
EVIDENCE = st.builds(
    Evidence,
    declared=st.none() | st.sampled_from(["generated", "edited", "captured"]),
    c2pa=st.builds(C2pa, state=st.none() | st.sampled_from(["valid", "untrusted", "invalid"]), issuer=st.none()),
    watermark=st.none() | st.just("sdxl"),
)


def record(*, key: bytes | None = None, value: bytes | None = b"image", headers: Headers | None = None) -> Record:
    return Record("images.incoming", 3, 42, 1_795_262_400_000, key, value, headers or [])


@st.composite
def verdicts(draw: st.DrawFn) -> Verdict:
    hexes = st.text("0123456789abcdef", min_size=12, max_size=12)
    image_id = draw(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=40))
    stage_ms = st.none() | st.floats(0, 1e6)
    return Verdict(
        verdict_id=draw(st.uuids()),
        image_id=image_id,
        sha256=draw(st.text("0123456789abcdef", min_size=64, max_size=64)),
        decision=draw(st.sampled_from(["real", "fake", "review"])),
        reasons=draw(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=2)),
        scores=draw(SCORES),
        model=ModelRef(name="code", version=draw(hexes)),
        policy=PolicyRef(name="default", version=draw(hexes)),
        image=ImageInfo(
            format="jpeg",
            width=draw(st.integers(1, 99999)),
            height=draw(st.integers(1, 99999)),
            bytes=draw(st.integers(1, 99999)),
            jpeg_quality=draw(st.none() | st.integers(1, 100)),
            frames=draw(st.none() | st.integers(1, 99)),
        ),
        source=draw(st.sampled_from(["model", "cache"])),
        decided_at="2026-11-21T12:00:00.000Z",
        timings_ms=Timings(
            queued=draw(stage_ms), decode=draw(stage_ms), infer=draw(stage_ms), total=draw(st.floats(0, 1e6))
        ),
        origin=draw(st.none() | st.just(Origin(topic="images.incoming", partition=1, offset=2, uri=None))),
        detectors=draw(
            st.dictionaries(
                st.sampled_from(["clip", "dino"]), st.builds(DetectorScores, version=hexes, scores=HEAD_SCORES)
            )
        ),
        evidence=draw(EVIDENCE),
        labels=draw(st.lists(st.just("not_applicable"), max_size=1)),
        headers=draw(st.dictionaries(st.just("tenant"), st.text(st.characters(exclude_categories=["Cs"])))),
    )
