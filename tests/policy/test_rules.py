"""Rules: the first that holds decides, its reason can be checked, and groups decide as rules one by one would."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from hypothesis import strategies as st

from tests.properties import given
from worker.contract import Decision, DetectorScores, ImageInfo, Scores
from worker.evidence import C2pa, Evidence
from worker.policy import Facts, Otherwise, Rule, Rules, RuleText, parse_policy
from worker.policy.expression import activation
from worker.policy.facts import shape_of

CONTRACT = """
name = "uploads"
[[rules]]
when = 'evidence.declared == "generated"'
decision = "fake"
[[rules]]
when = 'min(image.width, image.height) < 128 || image.jpeg_quality < 30'
decision = "review"
label = "not_applicable"
[[rules]]
when = 'scores.linear >= 0.93 || (has(detectors.clip) && detectors.clip.linear >= 0.97)'
decision = "fake"
[[rules]]
when = 'scores.linear < 0.20'
decision = "real"
[otherwise]
decision = "review"
"""
VERSION = "0123456789ab"


def image(**changes: object) -> ImageInfo:
    usual = {"format": "jpeg", "width": 640, "height": 480, "bytes": 1, "jpeg_quality": 90, "frames": 1}
    return ImageInfo.model_validate(usual | changes)


def scores(linear: float) -> Scores:
    return Scores(linear=linear, knn=0.5, svm=0.5)


@pytest.mark.parametrize(
    ("facts", "decision", "reason", "labels"),
    [
        (
            Facts(scores(0.1), image(), Evidence(declared="generated")),
            "fake",
            'rule 1: evidence.declared == "generated" (evidence.declared = "generated")',
            (),
        ),
        (
            Facts(scores(0.99), image(width=64)),
            "review",
            (
                "rule 2: min(image.width, image.height) < 128 || image.jpeg_quality < 30 "
                "(image.width = 64, image.height = 480, image.jpeg_quality = 90)"
            ),
            ("not_applicable",),
        ),
        (
            Facts(scores(0.97123456), image()),
            "fake",
            (
                "rule 3: scores.linear >= 0.93 || (has(detectors.clip) && detectors.clip.linear >= 0.97) "
                "(scores.linear = 0.9712, detectors.clip.linear = absent)"
            ),
            (),
        ),
        (
            Facts(scores(0.5), image(), detectors={"clip": DetectorScores(version=VERSION, scores={"linear": 0.98})}),
            "fake",
            (
                "rule 3: scores.linear >= 0.93 || (has(detectors.clip) && detectors.clip.linear >= 0.97) "
                "(scores.linear = 0.5, detectors.clip.linear = 0.98)"
            ),
            (),
        ),
        (Facts(scores(0.1), image()), "real", "rule 4: scores.linear < 0.20 (scores.linear = 0.1)", ()),
        (Facts(scores(0.5), image()), "review", "otherwise", ()),
    ],
)
def test_the_policy_of_the_contract(facts: Facts, decision: str, reason: str, labels: tuple[str, ...]) -> None:
    """Each rule in turn, with the reason as the contract writes it."""
    assert parse_policy(CONTRACT, "test").decide(facts) == (decision, (reason,), labels)


def test_the_quality_of_what_is_no_jpeg() -> None:
    """It is 100 for a PNG, whose verdict says null; of a JPEG that has none it is absent, and the rule does not
    hold.
    """
    policy = parse_policy("[[rules]]\nwhen = 'image.jpeg_quality >= 100'\ndecision = 'fake'", "test")
    assert policy.decide(Facts(scores(0), image(format="png", jpeg_quality=None))).decision == "fake"
    assert policy.decide(Facts(scores(0), image(jpeg_quality=None))).decision == "review"
    assert policy.decide(Facts(scores(0), image(jpeg_quality=99))).decision == "review"


def test_otherwise_is_review_and_may_have_a_label() -> None:
    """Without the table the rest is reviewed; with it, it is what the table says."""
    rule = "[[rules]]\nwhen = 'false'\ndecision = 'fake'\n"
    facts = Facts(scores(0.5), image())
    assert parse_policy(rule, "test").decide(facts) == ("review", ("otherwise",), ())
    told = parse_policy(rule + "[otherwise]\ndecision = 'real'\nlabel = 'unsure'", "test")
    assert told.decide(facts) == ("real", ("otherwise",), ("unsure",))


CONDITIONS = st.sampled_from(
    [
        "scores.linear >= 0.5",
        "scores.linear < 0.5",
        "detectors.clip.linear >= 0.5",  # an error where the detector is absent
        'headers.tenant == "kids"',  # likewise
        "has(detectors.clip) && scores.knn > 0.1",
        "image.width / image.frames > 100",  # an error where frames is absent
        'evidence.c2pa.state == "valid"',
        "false",
        "true",
        "evidence.nearest.fake.distance < 0.1",  # always an error here
    ]
)
DECISIONS = st.sampled_from(get_args(Decision))
RULES = st.lists(st.builds(Rule, when=CONDITIONS, decision=DECISIONS), min_size=1, max_size=20)
FACTS = st.builds(
    Facts,
    scores=st.builds(Scores, linear=st.floats(0, 1), knn=st.floats(0, 1), svm=st.just(0.5)),
    image=st.builds(image, frames=st.none() | st.integers(1, 9), width=st.integers(1, 900)),
    evidence=st.builds(Evidence, c2pa=st.builds(C2pa, state=st.none() | st.just("valid"))),
    detectors=st.just({}) | st.just({"clip": DetectorScores(version=VERSION, scores={"linear": 0.7})}),
    headers=st.just({}) | st.just({"tenant": "kids"}),
)


@given(RULES, FACTS)
def test_the_first_rule_that_holds_decides(rules: list[Rule], facts: Facts) -> None:
    """Rules in groups, with errors in any of them, decide as one rule after the other."""
    policy = Rules(RuleText(rules=tuple(rules), otherwise=Otherwise(decision="review")))
    outcome = policy.decide(facts)
    everything = activation(facts.as_names(shape_of((name,) for name in facts.__dataclass_fields__)))
    holding = [number for number, (_, when) in enumerate(policy._compiled, 1) if when.holds(everything)]
    if not holding:
        assert outcome == ("review", ("otherwise",), ())
    else:
        assert outcome.decision == rules[holding[0] - 1].decision
        assert outcome.reasons[0].startswith(f"rule {holding[0]}: {rules[holding[0] - 1].when}")


@given(st.floats(0, 1), st.floats(-1e-5, 1e-5))
def test_a_reason_is_true_as_written(limit: float, distance: float) -> None:
    """Read as numbers, the reason's comparison holds: rounding never shows a score on the other side of a limit."""
    text = f"{limit:.7f}"
    score = min(1.0, max(0.0, float(text) + distance))
    policy = Rules(RuleText(rules=(Rule(when=f"scores.linear >= {text}", decision="fake"),)))
    outcome = policy.decide(Facts(scores(score), image()))
    assert (outcome.decision == "fake") == (score >= float(text))
    if outcome.decision == "fake":
        match = re.fullmatch(r"rule 1: scores.linear >= (.*) \(scores.linear = (.*)\)", outcome.reasons[0])
        assert match is not None
        assert float(match[2]) >= float(match[1])
        assert float(match[2]) == pytest.approx(score, rel=1e-3)


def test_a_long_value_is_cut_in_a_reason() -> None:
    """A header is as long as its producer likes; the reason shows its beginning, the verdict has all of it."""
    policy = parse_policy("[[rules]]\nwhen = 'headers.note.contains(\"spam\")'\ndecision = 'review'", "test")
    outcome = policy.decide(Facts(scores(0.5), image(), headers={"note": "spam" * 500}))
    assert outcome.reasons[0].endswith("spamsp…)")
    assert len(outcome.reasons[0]) < 150


def test_a_comment_in_a_condition_ends_with_its_line() -> None:
    """`//` begins a comment in CEL; the rules behind it are still read."""
    text = "[[rules]]\nwhen = 'scores.linear > 2.0 // never'\ndecision = 'fake'\n"
    text += "[[rules]]\nwhen = 'true'\ndecision = 'real'"
    assert parse_policy(text, "test").decide(Facts(scores(0.5), image())).decision == "real"


def test_very_many_rules() -> None:
    """As many as are allowed, the last one of which holds."""
    rules = tuple(Rule(when=f"scores.linear > 1.{number}", decision="fake") for number in range(199))
    policy = Rules(RuleText(rules=(*rules, Rule(when="scores.linear > 0.1", decision="real"))))
    assert policy.decide(Facts(scores(0.5), image())).reasons == (
        "rule 200: scores.linear > 0.1 (scores.linear = 0.5)",
    )


SAID = """
[[rules]]
when = '''
  image.width < 128
    && headers["x-tenant"] == "kids"
'''
decision = "review"
label = "small"
[[rules]]
when = 'true'
decision = "real"
[otherwise]
decision = "fake"
label = "rest"
"""


def test_what_policy_check_shows() -> None:
    """Each rule in one line, with its label and what it reads; what is left for otherwise."""
    rules = parse_policy(SAID, "test").form
    assert rules.explain() == [
        (
            "rule 1",
            'review with label small when image.width < 128 && headers["x-tenant"] == "kids"',
            'image.width, headers["x-tenant"]',
        ),
        ("rule 2", "real when true", ""),
        ("otherwise", "fake with label rest", ""),
    ]
    assert rules.summary() == "2 rules, otherwise fake with label rest"


def test_a_reason_that_reads_nothing_shows_no_values() -> None:
    """And one over several lines is one line."""
    policy = parse_policy(SAID, "test")
    assert policy.decide(Facts(scores(0.5), image())).reasons == ("rule 2: true",)
    kids = Facts(scores(0.5), image(width=64), headers={"x-tenant": "kids"})
    assert policy.decide(kids).reasons == (
        'rule 1: image.width < 128 && headers["x-tenant"] == "kids" (image.width = 64, headers["x-tenant"] = "kids")',
    )


def test_rules_that_together_are_too_deep_for_the_library() -> None:
    """Each compiles, eight in one expression do not: they are gone through one by one."""
    deep = "(" * 28 + "scores.linear > 2.0" + ")" * 28
    rules = (*[Rule(when=deep, decision="fake")] * 7, Rule(when="scores.linear > 0.4", decision="real"))
    policy = Rules(RuleText(rules=rules))
    assert [group.program for group in policy._groups] == [None]
    assert policy.decide(Facts(scores(0.5), image())).decision == "real"
    assert policy.decide(Facts(scores(0.1), image())) == ("review", ("otherwise",), ())


def test_a_version_is_of_what_is_meant() -> None:
    """The same from release to release, whatever stands around a condition; another rule, order, label or rest is
    another.
    """
    said = parse_policy(SAID, "test").ref
    assert (said.name, said.version) == ("default", "2b7e212d44ec")
    assert parse_policy(SAID.replace("'true'", "'  true  '") + "# a comment\n", "test").ref == said
    for before, after in (("'true'", "'false'"), ("small", "tiny"), ("rest", "others"), ("review", "fake")):
        assert parse_policy(SAID.replace(before, after), "test").ref.version != said.version
    assert parse_policy('name = "x"\n' + SAID, "test").ref.version != said.version


def test_a_group_answers_by_itself() -> None:
    """With the number of the first of its rules that holds: rule by rule it is gone through for an error alone."""
    rules = tuple(Rule(when=f"scores.linear >= 0.{number:02}", decision="fake") for number in range(90, 70, -1))
    policy = Rules(RuleText(rules=rules))
    facts = Facts(scores(0.75), image())
    found = activation(facts.as_names(shape_of([("scores", "linear")])))
    answers = [group.program.eval(found).value() for group in policy._groups if group.program is not None]
    assert answers == [0, 16, 17]
    assert policy.decide(facts).reasons[0].startswith("rule 16: ")
