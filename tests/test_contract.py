"""The contract as code: ids, references, verdicts and rejections there and back."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace

import pytest
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.contents import SCORES, SHA, record, verdicts
from tests.properties import given
from worker.contract import (
    HEADS,
    Scores,
    Verdict,
    cached_scores_json,
    parse_cached_scores,
    verdict_hash,
    verdict_headers,
    verdict_id,
)
from worker.evidence import Evidence


@given(verdicts())
def test_a_verdict_survives_json(verdict: Verdict) -> None:
    """Reading back what was written gives the same verdict, digit for digit."""
    assert Verdict.model_validate_json(verdict.to_json()) == verdict


@given(verdicts())
def test_a_verdict_has_the_fields_of_the_contract(verdict: Verdict) -> None:
    """The published document has these keys, in this order, and no others."""
    document = json.loads(verdict.to_json())
    names = [
        "schema",
        "verdict_id",
        "image_id",
        "sha256",
        "decision",
        "reasons",
        "scores",
        "model",
        "policy",
        "image",
        "source",
        "decided_at",
        "timings_ms",
        "origin",
        "detectors",
        "evidence",
        "labels",
        "headers",
    ]
    assert list(document) == names
    assert document["schema"] == "assay.verdict/1"
    assert list(document["scores"]) == list(HEADS)
    assert list(document["image"]) == ["format", "width", "height", "bytes", "jpeg_quality", "frames"]
    assert list(document["timings_ms"]) == ["queued", "decode", "infer", "total"]
    evidence = document["evidence"]
    assert list(evidence) == ["declared", "c2pa", "metadata", "watermark", "nearest"]
    assert list(evidence["c2pa"]) == ["state", "issuer", "claim_generator", "source_type"]
    assert list(evidence["metadata"]) == ["tool", "source_type", "aigc"]
    assert [list(part) for part in evidence["nearest"].values()] == [["distance", "label"]] * 2


def test_a_verdict_of_the_first_version_still_reads() -> None:
    """What was stored before `origin`, `detectors`, `evidence`, `labels` and `headers` were there is a verdict."""
    document = {
        "schema": "assay.verdict/1",
        "verdict_id": "00000000-0000-5000-8000-000000000000",
        "image_id": "a",
        "sha256": SHA,
        "decision": "fake",
        "reasons": ["linear 0.97 >= 0.9"],
        "scores": {"linear": 0.97, "knn": 0.81, "svm": 0.66},
        "model": {"name": "code", "version": "0123456789ab"},
        "policy": {"name": "default", "version": "ea8eb75614a8"},
        "image": {"format": "jpeg", "width": 640, "height": 480, "bytes": 48211},
        "source": "model",
        "decided_at": "2026-11-21T12:00:00.000Z",
        "timings_ms": {"queued": 3.1, "decode": 1.9, "infer": 22.4, "total": 30.2},
    }
    verdict = Verdict.model_validate(document)
    assert (verdict.origin, verdict.detectors, verdict.labels, verdict.headers) == (None, {}, [], {})
    assert verdict.evidence == Evidence()
    assert (verdict.image.jpeg_quality, verdict.image.frames) == (None, None)


@given(verdicts())
def test_the_redis_hash(verdict: Verdict) -> None:
    """The hash has the fields of the contract as text; its numbers read back exactly and its json is the whole
    verdict.
    """
    fields = verdict_hash(verdict, verdict.to_json())
    names = "decision score_linear score_knn score_svm sha256 model policy source decided_at verdict_id declared json"
    assert set(fields) == set(names.split())
    assert all(isinstance(value, str) for value in fields.values())
    assert [float(fields[f"score_{head}"]) for head in HEADS] == [getattr(verdict.scores, head) for head in HEADS]
    assert (fields["model"], fields["policy"]) == (verdict.model.version, verdict.policy.version)
    assert Verdict.model_validate_json(fields["json"]) == verdict


@given(verdicts())
def test_the_verdict_headers_are_a_cloud_event(verdict: Verdict) -> None:
    """CloudEvents in Kafka's binary mode, with the group as the source; the trace goes on where there is one."""
    trace = b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01"
    headers = dict(verdict_headers(verdict, "my-group", trace))
    assert headers == {
        "ce_specversion": b"1.0",
        "ce_id": str(verdict.verdict_id).encode(),
        "ce_source": b"assay/my-group",
        "ce_type": b"assay.verdict.v1",
        "ce_time": verdict.decided_at.encode(),
        "content-type": b"application/json",
        "traceparent": trace,
    }
    assert "traceparent" not in dict(verdict_headers(verdict, "my-group", None))


@given(SCORES)
def test_cached_scores_read_back_digit_for_digit(scores: Scores) -> None:
    """A cache hit carries the first run's scores exactly."""
    assert parse_cached_scores(cached_scores_json(scores)) == scores
    assert parse_cached_scores(cached_scores_json(scores).encode()) == scores


@pytest.mark.parametrize(
    "text", ["", "{}", "null", '{"linear": 2, "knn": 0, "svm": 0}', '{"linear": NaN, "knn": 0, "svm": 0}', b"\xff"]
)
def test_an_unreadable_cache_entry_is_a_miss(text: str | bytes) -> None:
    """What others wrote into the cache cannot break the worker."""
    assert parse_cached_scores(text) is None


def test_verdict_id_is_the_formula_of_the_contract() -> None:
    """uuid5 in the URL namespace over id, hash, model and policy, one a line."""
    name = f"assay:cats/1.jpg\n{SHA}\n0123456789ab\nba9876543210"
    assert verdict_id("cats/1.jpg", SHA, "0123456789ab", "ba9876543210") == uuid.uuid5(uuid.NAMESPACE_URL, name)
    assert str(verdict_id("a", "0" * 64, "0" * 12, "0" * 12)) == str(
        uuid.uuid5(uuid.NAMESPACE_URL, "assay:a\n" + "0" * 64 + "\n" + "0" * 12 + "\n" + "0" * 12)
    )


@given(st.integers(0, 3))
def test_verdict_id_changes_with_each_of_its_parts(index: int) -> None:
    """Another id, content, model or policy is another verdict."""
    parts = ["a", SHA, "0" * 12, "1" * 12]
    changed = [part + "x" if position == index else part for position, part in enumerate(parts)]
    assert verdict_id(*parts) != verdict_id(*changed)


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": {"linear": float("nan"), "knn": 0, "svm": 0}},
        {"sha256": "A" * 64},
        {"decision": "maybe"},
        {"decided_at": "now"},
        {"decided_at": "2026-13-21T12:00:00.000Z"},
        {"decided_at": "2026-02-30T12:00:00.000Z"},
        {"decided_at": "0000-01-01T00:00:00.000Z"},
    ],
)
def test_a_wrong_verdict_cannot_be_made(changes: dict[str, object]) -> None:
    """NaN, odd hashes, unknown decisions and other times are refused by the model itself."""
    good: dict[str, object] = {
        "verdict_id": uuid.UUID(int=0),
        "image_id": "a",
        "sha256": SHA,
        "decision": "real",
        "reasons": [],
        "scores": {"linear": 0.1, "knn": 0.1, "svm": 0.1},
        "model": {"name": "code", "version": "0" * 12},
        "policy": {"name": "default", "version": "0" * 12},
        "image": {"format": "png", "width": 1, "height": 1, "bytes": 1},
        "source": "model",
        "decided_at": "2026-11-21T12:00:00.000Z",
        "timings_ms": {"queued": 0, "decode": None, "infer": None, "total": 0},
    }
    Verdict.model_validate(good)
    with pytest.raises(ValidationError):
        Verdict.model_validate(good | changes)


# Image ids.


# References.


# Rejections.


def test_an_age_is_known_only_of_a_sensible_timestamp() -> None:
    """None, seconds and microseconds are no time of a record; a clock that is ahead counts as now."""
    now_ms = 1_796_000_000_000.0
    for timestamp_ms, age_ms in (
        (1_795_999_999_000, 1_000.0),
        (1_796_000_005_000, 0.0),
        (-1, None),
        (-7, None),
        (0, None),
        (1_796_000_000, None),
        (1_796_000_000_000_000, None),
    ):
        assert replace(record(), timestamp_ms=timestamp_ms).age_ms(now_ms) == age_ms
