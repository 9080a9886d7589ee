"""The short form of a policy: thresholds, monotony, and reasons that an auditor can check."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, example
from hypothesis import strategies as st

from tests.properties import given
from tests.twins import scores
from worker.contract import HEADS, Decision, ImageInfo, Scores
from worker.policy import Facts, Thresholds

SHARE = st.floats(0, 1)


IMAGE = ImageInfo(format="jpeg", width=640, height=480, bytes=1)


def decide(found: Scores, policy: Thresholds) -> tuple[Decision, tuple[str, ...]]:
    outcome = policy.decide(Facts(found, IMAGE))
    assert outcome.labels == ()
    return outcome.decision, outcome.reasons


@st.composite
def policies(draw: st.DrawFn) -> Thresholds:
    low, high = sorted((draw(SHARE), draw(SHARE)))
    return Thresholds(head=draw(st.sampled_from(HEADS)), real_below=low, fake_from=high)


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
    assert decide(scores(score), Thresholds())[0] == decision


@pytest.mark.parametrize("head", HEADS)
def test_only_the_head_of_the_policy_decides(head: str) -> None:
    """The other heads' scores are published and change nothing."""
    values = dict.fromkeys(HEADS, 0.0) | {head: 0.9}
    assert decide(Scores(**values), Thresholds(head=head))[0] == "fake"
    values = dict.fromkeys(HEADS, 1.0) | {head: 0.1}
    assert decide(Scores(**values), Thresholds(head=head))[0] == "real"


def test_a_policy_without_a_review_band() -> None:
    """With both thresholds alike every score is real or fake."""
    policy = Thresholds(fake_from=0.5, real_below=0.5)
    assert [decide(scores(value), policy)[0] for value in (0.49, 0.5)] == ["real", "fake"]


@given(policies(), SHARE, SHARE)
def test_a_higher_score_never_looks_more_real(policy: Thresholds, first: float, second: float) -> None:
    """The decision is monotone in the score: real, review, fake."""
    rank = {"real": 0, "review": 1, "fake": 2}
    low, high = sorted((first, second))
    assert rank[decide(scores(low), policy)[0]] <= rank[decide(scores(high), policy)[0]]


NEAR = st.tuples(policies(), st.sampled_from(["fake_from", "real_below"]), st.floats(-1e-4, 1e-4))


@given(st.one_of(NEAR, st.tuples(policies(), st.just("fake_from"), st.floats(-1, 1))))
@example((Thresholds(fake_from=0.1234564, real_below=0.1), "fake_from", -0.0000002))
@example((Thresholds(), "fake_from", -0.00001))
def test_the_reason_is_true_as_written(case: tuple[Thresholds, str, float]) -> None:
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
    assert decide(scores(0.97123456), Thresholds())[1] == ("linear 0.9712 >= 0.65",)
    assert decide(scores(0.649999), Thresholds())[1] == ("0.35 <= linear 0.649999 < 0.65",)


def test_what_policy_check_shows() -> None:
    """Both thresholds as they stand in the file, whole numbers without a point, and what each reads."""
    policy = Thresholds(head="knn", fake_from=1.0, real_below=0.1234564)
    assert policy.explain() == [
        ("fake", "scores.knn >= 1", "scores.knn"),
        ("real", "scores.knn < 0.1234564", "scores.knn"),
        ("otherwise", "review", ""),
    ]
