"""How far each score is from another decision, by any policy."""

from __future__ import annotations

import pytest

from worker.contract import DetectorScores, ImageInfo, Scores
from worker.evidence import Evidence
from worker.explain.margins import Margin, margins, without_evidence
from worker.policy import Facts, parse_policy

INFO = ImageInfo(format="jpeg", width=640, height=480, bytes=1000)
THRESHOLDS = parse_policy('head = "linear"\nfake_from = 0.65\nreal_below = 0.35\n', "policy")
RULES = parse_policy(
    """
    [[rules]]
    when = 'evidence.declared == "generated"'
    decision = "fake"
    [[rules]]
    when = 'scores.linear >= 0.93 || (has(detectors.clip) && detectors.clip.linear >= 0.97)'
    decision = "fake"
    [[rules]]
    when = 'scores.linear < 0.2'
    decision = "real"
    [otherwise]
    decision = "review"
    """,
    "policy",
)


def facts(linear, *, declared=None, clip=None):
    detectors = {} if clip is None else {"clip": DetectorScores(version="0123456789ab", scores={"linear": clip})}
    return Facts(Scores(linear=linear, knn=0.5, svm=0.5), INFO, Evidence(declared=declared), detectors)


@pytest.mark.parametrize(
    ("value", "turns_at", "into"),
    [(0.97, 0.65, "review"), (0.5, 0.65, "fake"), (0.4, 0.35, "real"), (0.1, 0.35, "review")],
)
def test_the_nearest_threshold_is_found(value, turns_at, into):
    """On the side that is nearer, to the digits that the policy has."""
    linear, knn, svm = margins(THRESHOLDS, facts(value))
    assert linear.fact == "scores.linear"
    assert linear.turns_at == pytest.approx(turns_at, abs=1e-6)
    assert linear.into == into
    assert (knn, svm) == (Margin(fact="scores.knn", value=0.5), Margin(fact="scores.svm", value=0.5))


def test_rules_are_asked_like_thresholds():
    """Each score that a rule reads has its own margin; the rest has none."""
    found = {one.fact: one for one in margins(RULES, facts(0.6, clip=0.9))}
    assert (found["scores.linear"].turns_at, found["scores.linear"].into) == (0.93, "fake")
    assert (found["detectors.clip.linear"].turns_at, found["detectors.clip.linear"].into) == (0.97, "fake")
    assert found["scores.svm"].turns_at is None


def test_a_declared_image_turns_at_no_score():
    """The declaration decides whatever the scores are; without it they would."""
    declared = facts(0.5, declared="generated")
    assert all(one.turns_at is None for one in margins(RULES, declared))
    assert without_evidence(RULES, declared) == "review"


def test_the_margin_is_where_the_policy_turns():
    """At the value told it has turned, and just before it has not."""
    for value in (0.01, 0.34, 0.36, 0.64, 0.66, 0.99):
        one = margins(THRESHOLDS, facts(value))[0]
        decided = THRESHOLDS.decide(facts(value)).decision
        assert THRESHOLDS.decide(facts(one.turns_at)).decision == one.into != decided
        before = one.turns_at + (1e-6 if value > one.turns_at else -1e-6)
        assert THRESHOLDS.decide(facts(before)).decision == decided
