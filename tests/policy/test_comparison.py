"""A back-test counts what would change, and decides exactly as judging the images again would."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.policy.test_rules import CONDITIONS, DECISIONS, image
from tests.properties import given
from worker.contract import HEADS, ImageInfo, Record, Scores, Verdict
from worker.evidence import C2pa, Evidence
from worker.item import Ended, Item, Judgement
from worker.policy import Otherwise, Policy, Rule, Rules, RuleText, Thresholds
from worker.policy.comparison import Comparison
from worker.stages.decide import make_verdict

VERSION = "0123456789ab"
# Over what a verdict keeps: of the headers those that the policy names, so both policies name the same.
RULES = st.builds(
    lambda rules, otherwise: Policy(
        Rules(
            RuleText(
                rules=(*rules, Rule(when='headers.tenant == "none"', decision="fake")),
                otherwise=Otherwise(decision=otherwise),
            )
        )
    ),
    st.lists(st.builds(Rule, when=CONDITIONS, decision=DECISIONS), min_size=1, max_size=6),
    DECISIONS,
)
JUDGEMENTS = st.builds(
    Judgement,
    info=st.builds(image, frames=st.none() | st.integers(1, 9), format=st.sampled_from(["jpeg", "png"])),
    scores=st.builds(Scores, **dict.fromkeys(HEADS, st.floats(0, 1))),
    model_version=st.just(VERSION),
    evidence=st.builds(Evidence, c2pa=st.builds(C2pa, state=st.none() | st.just("valid"))),
)
HEADERS = st.sampled_from([[], [("tenant", b"kids")], [("tenant", b"\xff"), ("tenant", b"kids")], [("tenant", None)]])


def judge(judgement: Judgement, policy: Policy, headers: list[tuple[str, bytes | None]], number: int = 0) -> Verdict:
    """The verdict of a worker with this policy."""
    record = Record("images.incoming", 0, number, 0, None, b"x", headers)
    ended = Ended(Item(record, 1, 0.0, 1.0), f"id-{number}", f"{number:064x}", judgement)
    return make_verdict(ended, judgement, policy, "code", now_s=0.0, total_ms=1.0)


@given(JUDGEMENTS, HEADERS, RULES, RULES)
def test_deciding_anew_is_what_a_rerun_would_give(
    judgement: Judgement, headers: list[tuple[str, bytes | None]], before: Policy, after: Policy
) -> None:
    """From the stored JSON of a verdict under one policy: the decision that the worker would make under the other."""
    stored = Verdict.model_validate_json(judge(judgement, before, headers).to_json())
    again = judge(judgement, after, headers)
    comparison = Comparison(after)
    comparison.add(stored)
    document = comparison.to_dict()
    assert document["decisions"] == {"before": {stored.decision: 1}, "after": {again.decision: 1}}
    assert document["changed"] == (stored.decision != again.decision)


def scored(*values: float, info: ImageInfo | None = None) -> list[Verdict]:
    return [
        judge(
            Judgement(info or image(), Scores(linear=value, knn=0.5, svm=0.5), VERSION),
            Policy(Thresholds()),
            [],
            number,
        )
        for number, value in enumerate(values)
    ]


def test_what_changes_is_counted_by_what_it_is() -> None:
    """From what to what, and by format, size, source and the headers that the policies name."""
    rules = (Rule(when='scores.linear >= 0.5 && !(has(headers.tenant) && headers.tenant == "x")', decision="fake"),)
    comparison = Comparison(Policy(Rules(RuleText(rules=rules, otherwise=Otherwise(decision="real")))))
    for verdict in scored(0.9, 0.6, 0.4, 0.1):
        comparison.add(verdict)
    small = scored(0.6, info=image(width=100, format="png", jpeg_quality=None))[0]
    comparison.add(small.model_copy(update={"headers": {"tenant": "y"}, "source": "cache"}))
    document = comparison.to_dict()
    assert (document["judged"], document["changed"]) == (5, 3)
    assert document["changes"] == {"review->fake": 2, "review->real": 1}
    assert document["decisions"] == {"before": {"fake": 1, "review": 3, "real": 1}, "after": {"fake": 3, "real": 2}}
    by = document["by"]
    assert by["format"]["png"] == {"judged": 1, "changed": 1, "changes": {"review->fake": 1}}
    assert {name: part["judged"] for name, part in by["size"].items()} == {"0000 to 0127 px": 1, "0256 to 0511 px": 4}
    assert {name: part["judged"] for name, part in by["source"].items()} == {"cache": 1, "model": 4}
    assert {name: part["judged"] for name, part in by["headers.tenant"].items()} == {"(absent)": 4, "y": 1}
    assert document["without_header"] == {"tenant": 4}
    assert [one["image_id"] for one in document["sample"]] == ["id-1", "id-2", "id-0"]


def test_against_another_policy_what_was_decided_does_not_matter() -> None:
    """Both decide anew."""
    strict, mild = (Policy(Thresholds(fake_from=value, real_below=value)) for value in (0.2, 0.95))
    comparison = Comparison(strict, mild)
    for verdict in scored(0.9, 0.6, 0.1):
        comparison.add(verdict)
    document = comparison.to_dict()
    assert document["changes"] == {"real->fake": 2}
    assert document["against"] == mild.ref.model_dump()


def test_labels_give_precision_and_recall() -> None:
    """Of the images whose truth is known; the others are not counted there."""
    verdicts = scored(0.9, 0.7, 0.6, 0.1, 0.99)
    labels = {verdict.sha256: is_fake for verdict, is_fake in zip(verdicts, (True, False, True, False), strict=False)}
    comparison = Comparison(Policy(Thresholds(fake_from=0.5, real_below=0.5)), labels=labels)
    for verdict in verdicts:
        comparison.add(verdict)
    assert comparison.to_dict()["labelled"] == {
        "judged": 4,
        "before": {"precision": 0.5, "recall": 0.5, "false_positive_rate": 0.5, "review": 1},
        "after": {"precision": 2 / 3, "recall": 1.0, "false_positive_rate": 0.5, "review": 0},
    }
