"""The verdict: what it carries, whose it is, and the words of its times."""

from __future__ import annotations

import uuid

import pytest

from tests.twins import scores
from worker.contract import ImageInfo, Origin, Record, Verdict
from worker.evidence import Evidence
from worker.item import Ended, Item, Judgement
from worker.policy import Policy, parse_policy
from worker.stages.decide import make_verdict, timestamp


@pytest.mark.parametrize(
    ("epoch_s", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1795262400.0, "2026-11-21T12:00:00.000Z"),
        (1795262400.9996, "2026-11-21T12:00:00.999Z"),
    ],
)
def test_timestamp(epoch_s: float, text: str) -> None:
    """UTC with exactly three decimals, cut and not rounded up into the next second."""
    assert timestamp(epoch_s) == text


def verdict_of(
    judgement: Judgement, queued_ms: float | None = 3.14159, total_ms: float = 30.20049, policy: Policy | None = None
) -> Verdict:
    """The verdict that the policy (the default one) makes of it."""
    record = Record("t", 2, 7, 0, None, b"x", [("tenant", b"kids"), ("secret", b"s")])
    item = Item(record, epoch=1, touched_at=0.0, queued_ms=queued_ms, reference_uri="https://images.example/a")
    ended = Ended(item, "an-id", "0" * 64, judgement)
    return make_verdict(ended, judgement, policy or Policy(), "code", now_s=0.0, total_ms=total_ms)


JUDGEMENT = Judgement(
    ImageInfo(format="jpeg", width=640, height=480, bytes=1),
    scores(0.9),
    "0123456789ab",
    decode_ms=1.23456,
    infer_ms=2.0,
)


def test_a_verdict_carries_everything_about_its_item() -> None:
    """A verdict from the model has its times, its versions and the deterministic id."""
    policy = Policy()
    verdict = verdict_of(JUDGEMENT)
    assert verdict.decision == "fake"
    assert (verdict.model.name, verdict.model.version) == ("code", "0123456789ab")
    assert verdict.policy == policy.ref
    assert verdict.source == "model"
    assert verdict.timings_ms.model_dump() == {"queued": 3.142, "decode": 1.235, "infer": 2.0, "total": 30.2}
    name = "assay:" + "\n".join(["an-id", "0" * 64, "0123456789ab", policy.ref.version])
    assert verdict.verdict_id == uuid.uuid5(uuid.NAMESPACE_URL, name)


def test_a_cache_hit_says_so_and_skips_stages() -> None:
    """The stages that a cache hit skipped are null, and its id is that of the first verdict."""
    first, again = verdict_of(JUDGEMENT), verdict_of(JUDGEMENT.shared(), total_ms=1.0)
    assert (again.source, again.timings_ms.decode, again.timings_ms.infer) == ("cache", None, None)
    assert again.verdict_id == first.verdict_id
    assert again.scores == first.scores


def test_a_record_without_a_timestamp_was_not_queued_for_any_time() -> None:
    """What is not known is null, and the total counts from the first touch."""
    assert verdict_of(JUDGEMENT, queued_ms=None).timings_ms.queued is None


def test_a_verdict_says_where_its_image_came_from() -> None:
    """Topic, partition and offset of the record, and the address that it referred to: the bytes can be found again."""
    origin = Origin(topic="t", partition=2, offset=7, uri="https://images.example/a")
    assert verdict_of(JUDGEMENT).origin == origin


def test_a_verdict_keeps_what_its_rules_may_read() -> None:
    """Evidence as found, and of the headers those that the policy names, the others not; the label of the rule."""
    text = """
        [[rules]]
        when = 'headers.tenant == "kids" && headers.country == "NZ"'
        decision = "fake"
        [[rules]]
        when = 'evidence.watermark == "sdxl"'
        decision = "fake"
        label = "marked"
    """
    evidence = Evidence(watermark="sdxl")
    judgement = Judgement(JUDGEMENT.info, scores(0.1), "0123456789ab", evidence=evidence)
    verdict = verdict_of(judgement, policy=parse_policy(text, "test"))
    assert (verdict.decision, verdict.labels) == ("fake", ["marked"])
    assert verdict.reasons == ['rule 2: evidence.watermark == "sdxl" (evidence.watermark = "sdxl")']
    assert verdict.headers == {"tenant": "kids"}
    assert verdict.evidence == evidence
