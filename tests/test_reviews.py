"""What is made of people's decisions: the latest counts, samples are weighted, agreement is beyond chance."""

from __future__ import annotations

import random
import uuid
from pathlib import Path
from typing import Any

import pytest

from worker.contract import ModelRef, PolicyRef, Scores
from worker.review import Review, ReviewedVerdict, review_id
from worker.reviews import cases, interval, kappa, report
from worker.reviews_export import _written, groups_of
from worker.settings import load

_CLOCK = iter(range(10**6))


def review(verdict: str, decision: str, by_worker: str = "fake", **changed: Any) -> Review:
    number = next(_CLOCK)
    fields: dict[str, Any] = {
        "review_id": uuid.uuid4(),
        "verdict_id": uuid.uuid5(uuid.NAMESPACE_URL, verdict),
        "image_id": verdict,
        "sha256": "a" * 64,
        "decision": decision,
        "reason": None,
        "note": "",
        "reviewer": "anna",
        "queue": "review",
        "verdict": ReviewedVerdict(
            decision=by_worker,
            scores=Scores(linear=0.5, knn=0.5, svm=0.5),
            model=ModelRef(name="code", version="a" * 12),
            policy=PolicyRef(name="default", version="b" * 12),
        ),
        "decided_at": f"2026-11-21T{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}.000Z",
        "seconds": 2.0,
    }
    return Review(**{**fields, **changed})


def test_the_latest_review_of_a_verdict_counts() -> None:
    """A lead's decision over two that differ, an appeal's over all; what is contested still decides nothing."""
    one = [review("one", "fake"), review("one", "real", opinion=2, reviewer="ben")]
    assert cases(one)[0].is_open and report(one)["contested"] == 1 and report(one)["verdicts"] == 0
    one.append(review("one", "real", queue="conflicts", opinion=3, reviewer="lea"))
    assert report(one)["precision_of_fake"]["share"] == 0.0 and report(one)["contested"] == 0
    one.append(review("one", "fake", queue="appeals", opinion=4, appeal=True, reviewer="lea"))
    assert report(one)["precision_of_fake"]["share"] == 1.0
    assert report(one)["appeals"] == {"decided": 1, "changed": 1}


def test_a_sample_stands_for_what_it_was_drawn_from() -> None:
    """Images of a queue that takes one in ten weigh ten times as much; the interval is as wide as they deserve."""
    found = [review(f"all-{n}", "fake") for n in range(90)]
    found += [review(f"sample-{n}", "real", share=0.1) for n in range(10)]
    fake = report(found)["precision_of_fake"]
    assert fake["share"] == pytest.approx(90 / 190, abs=1e-4)
    plain = interval(90 / 190 * 100, 100)
    assert plain is not None and fake["interval"][1] - fake["interval"][0] > plain[1] - plain[0]


def test_golden_items_decide_nothing_but_who_is_right() -> None:
    """They are counted by reviewer, and are in no other figure."""
    found = [review(f"g{n}", "fake", golden=True, truth="fake" if n < 8 else "real") for n in range(10)]
    made = report([*found, review("one", "unsure")])
    assert made["verdicts"] == 1 and made["decisions"] == {"unsure": 1}
    assert made["reviewers"]["anna"]["golden"] == 10 and made["reviewers"]["anna"]["golden_right"] == 8
    assert made["precision_of_fake"]["share"] is None


def test_kappa() -> None:
    """1 where all agree, about 0 where chance alone does, the textbook's value in between; none where there is none."""
    assert kappa([("real", "real")] * 5 + [("fake", "fake")] * 5) == 1
    assert kappa([]) is None and kappa([("real", "real")] * 5) is None
    rng = random.Random(1)
    drawn = [(rng.choice(["real", "fake"]), rng.choice(["real", "fake"])) for _ in range(20_000)]
    assert kappa(drawn) == pytest.approx(0, abs=0.03)
    pairs = [("y", "y")] * 45 + [("n", "n")] * 15 + [("y", "n")] * 20 + [("n", "y")] * 20
    assert kappa(pairs) == pytest.approx((0.6 - (0.65**2 + 0.35**2)) / (1 - (0.65**2 + 0.35**2)))


def test_wilsons_interval_holds_the_truth() -> None:
    """In 1,000 draws of 60 at 0.9 it holds 0.9 in 93 % of them or more; without images there is none."""
    rng = random.Random(2)
    held = 0
    for _ in range(1000):
        found = interval(sum(rng.random() < 0.9 for _ in range(60)), 60)
        assert found is not None
        held += found[0] <= 0.9 <= found[1]
    assert held >= 930 and interval(0, 0) is None


def test_one_handing_out_is_one_review() -> None:
    """However often it is sent; another handing out of the same verdict is another."""
    assert review_id("a", "t") == review_id("a", "t") != review_id("a", "u") != review_id("b", "u")


def test_near_duplicates_stand_behind_an_interval_as_one() -> None:
    """A hundred copies that were decided at once are not a hundred images' worth of certainty."""
    group = uuid.uuid4()
    alone = [review(f"one-{n}", "fake" if n % 2 else "real") for n in range(20)]
    copies = [review(f"copy-{n}", "fake", group=group, together=10) for n in range(100)]
    apart = [review(f"other-{n}", "fake") for n in range(100)]
    wide, narrow = (report(alone + more)["precision_of_fake"] for more in (copies, apart))
    assert wide["share"] == narrow["share"] and wide["images"] == narrow["images"] == 120
    assert wide["interval"][1] - wide["interval"][0] > 2 * (narrow["interval"][1] - narrow["interval"][0])


def test_groups_of_an_export_are_those_that_belong_together() -> None:
    """Near duplicates, copies of the same bytes, and what two groups have in common, in whatever order; all else is
    alone, and a share that is held out takes whole groups, the same ones each time.
    """
    one, two = uuid.uuid4(), uuid.uuid4()
    hashes = {name: f"{number:064x}" for number, name in enumerate("abcdxy")}
    found = [
        review("a", "fake", sha256=hashes["a"], group=one),
        review("b", "fake", sha256=hashes["b"], group=one),
        review("b again", "fake", sha256=hashes["b"], group=two),
        review("c", "fake", sha256=hashes["c"], group=two),
        review("x", "fake", sha256=hashes["x"]),
        review("y", "fake", sha256=hashes["y"]),
        review("y again", "fake", sha256=hashes["y"]),
    ]
    names = groups_of(cases(found))
    assert len({names[hashes[name]] for name in "abc"}) == 1
    assert len({names[hashes[name]] for name in "axy"}) == 3
    assert names == groups_of(cases(reversed(found)))


@pytest.mark.parametrize("stored", ["[]", "{}", "not json", '{"schema": "assay.verdict/1"}', "[" * 100_000])
def test_an_image_whose_stored_verdict_is_somebody_else_s_is_left_out(stored: str, tmp_path: Path) -> None:
    """One odd value in Redis is told like an image that is gone; the export goes on."""

    class Store:
        def verdict(self, image_id: str) -> dict[str, str]:
            return {"json": stored}

    told = _written(load(environ={}), Store(), review("one", "fake"), tmp_path, {})  # type: ignore[arg-type]
    assert isinstance(told, str) and "not written by Assay" in told
