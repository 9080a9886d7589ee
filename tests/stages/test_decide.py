"""From scores to a decision: thresholds, monotony, and reasons that an auditor can check."""

from __future__ import annotations

import re
import uuid

import pytest
from hypothesis import assume, example
from hypothesis import strategies as st

from tests.properties import given
from worker.contract import HEADS, ImageInfo, Record, Scores, Verdict
from worker.item import Ended, Item, Judgement
from worker.policy import Policy
from worker.stages.decide import decide, make_verdict, timestamp

SHARE = st.floats(0, 1)


def scores(value: float) -> Scores:
    return Scores(linear=value, knn=value, svm=value)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    low, high = sorted((draw(SHARE), draw(SHARE)))
    return Policy(head=draw(st.sampled_from(HEADS)), real_below=low, fake_from=high)


@pytest.mark.parametrize(
    ("score", "decision"),
    [
        (0.0, "real"),
        (0.3499, "real"),
        (0.35, "review"),
        (0.5, "review"),
        (0.6499, "review"),
        (0.65, "fake"),
        (1.0, "fake"),
    ],
)
def test_default_thresholds(score: float, decision: str) -> None:
    """Fake from 0.65 on, inclusive; real below 0.35, exclusive; review between the two."""
    assert decide(scores(score), Policy())[0] == decision


@pytest.mark.parametrize("head", HEADS)
def test_only_the_head_of_the_policy_decides(head: str) -> None:
    """The other heads' scores are published and change nothing."""
    values = dict.fromkeys(HEADS, 0.0) | {head: 0.9}
    assert decide(Scores(**values), Policy(head=head))[0] == "fake"
    values = dict.fromkeys(HEADS, 1.0) | {head: 0.1}
    assert decide(Scores(**values), Policy(head=head))[0] == "real"


def test_a_policy_without_a_review_band() -> None:
    """With both thresholds alike every score is real or fake."""
    policy = Policy(fake_from=0.5, real_below=0.5)
    assert [decide(scores(value), policy)[0] for value in (0.49, 0.5)] == ["real", "fake"]


@given(policies(), SHARE, SHARE)
def test_a_higher_score_never_looks_more_real(policy: Policy, first: float, second: float) -> None:
    """The decision is monotone in the score: real, review, fake."""
    rank = {"real": 0, "review": 1, "fake": 2}
    low, high = sorted((first, second))
    assert rank[decide(scores(low), policy)[0]] <= rank[decide(scores(high), policy)[0]]


NEAR = st.tuples(policies(), st.sampled_from(["fake_from", "real_below"]), st.floats(-1e-4, 1e-4))


@given(st.one_of(NEAR, st.tuples(policies(), st.just("fake_from"), st.floats(-1, 1))))
@example((Policy(fake_from=0.1234564, real_below=0.1), "fake_from", -0.0000002))
@example((Policy(), "fake_from", -0.00001))
def test_the_reason_is_true_as_written(case: tuple[Policy, str, float]) -> None:
    """Read as numbers, the reason's comparison holds: rounding never shows a score on the other side of a threshold."""
    policy, limit, distance = case
    score = getattr(policy, limit) + distance
    assume(0 <= score <= 1)
    decision, reasons = decide(scores(score), policy)
    assert len(reasons) == 1
    number = r"[0-9.e+-]+"
    if decision == "review":
        match = re.fullmatch(rf"({number}) <= {policy.head} ({number}) < ({number})", reasons[0])
        assert match is not None
        low, shown, high = map(float, match.groups())
        assert (low, high) == (policy.real_below, policy.fake_from)
        assert low <= shown < high
    else:
        sign, threshold = (">=", policy.fake_from) if decision == "fake" else ("<", policy.real_below)
        match = re.fullmatch(rf"{policy.head} ({number}) {sign} ({number})", reasons[0])
        assert match is not None
        shown, written = map(float, match.groups())
        assert written == threshold
        assert shown >= written if decision == "fake" else shown < written
    assert shown == pytest.approx(score, rel=1e-3)


def test_ordinary_scores_are_shown_short() -> None:
    """A reason is for people: four digits where they suffice."""
    assert decide(scores(0.97123456), Policy())[1] == ["linear 0.9712 >= 0.65"]
    assert decide(scores(0.649999), Policy())[1] == ["0.35 <= linear 0.649999 < 0.65"]


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


def verdict_of(judgement: Judgement, queued_ms: float | None = 3.14159, total_ms: float = 30.20049) -> Verdict:
    """The verdict that the default policy makes of it."""
    item = Item(Record("t", 0, 0, 0, None, b"x", []), epoch=1, touched_at=0.0, queued_ms=queued_ms)
    ended = Ended(item, "an-id", "0" * 64, judgement)
    policy = Policy()
    return make_verdict(ended, judgement, policy, policy.ref, "code", now_s=0.0, total_ms=total_ms)


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
