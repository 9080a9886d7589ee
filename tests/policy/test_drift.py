"""Drift: a planted shift is told within 10,000 images; what has not shifted raises no alarm, whatever the share of
fakes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from worker.contract import Scores
from worker.policy.calibration import OTHER_FORMATS, ScoreDistribution, reference_distribution
from worker.policy.drift import FALSE_ALARM_RATE, WINDOW_IMAGES, DriftDetector, chi_square_tail, compare

Floats = npt.NDArray[np.float64]


def draw(random: np.random.Generator, count: int, fake_share: float, shift: float = 0.0) -> tuple[Floats, Any]:
    """Scores of a middling detector, and which images are fake; `shift` moves all log-odds."""
    is_fake = random.random(count) < fake_share
    odds = np.where(is_fake, random.normal(1.5, 1.5, count), random.normal(-2.0, 1.5, count)) + shift
    return 1 / (1 + np.exp(-odds)), is_fake


def reference(random: np.random.Generator, count: int) -> ScoreDistribution:
    scores, is_fake = draw(random, count, 0.5)
    return reference_distribution({"linear": scores}, is_fake, ["jpeg"] * count)["jpeg"]["linear"]


def histogram(scores: Floats, like: ScoreDistribution) -> Floats:
    bins = np.searchsorted(like.edges, scores, side="right")
    return np.bincount(bins, minlength=len(like.real)).astype(np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("calibrated_on", [600, 4000, 40_000])
def test_unshifted_traffic_raises_no_alarm(calibrated_on: int) -> None:
    """Of 100 runs of 100,000 images at most one alarm; the shares of fakes are other ones than in the sample, and small
    samples are no reason for an alarm either.
    """
    random = np.random.default_rng(calibrated_on)
    runs_here, windows = 34, 100_000 // WINDOW_IMAGES  # with the three sizes 102 runs
    p_values = []
    for _ in range(runs_here):
        sample = reference(random, calibrated_on)
        scores, is_fake = draw(random, 200_000, 0.5)
        real, fake = histogram(scores[~is_fake], sample), histogram(scores[is_fake], sample)
        share = random.choice([0.0, 0.01, 0.2])
        # Windows are drawn from the distribution itself, of which 200,000 images are as good as all.
        mixed = (1 - share) * real / real.sum() + share * fake / fake.sum()
        for _ in range(windows):
            live = random.multinomial(WINDOW_IMAGES, mixed / mixed.sum()).astype(np.float64)
            p_values.append(compare("jpeg", "linear", sample, live).p_value)
    assert min(p_values) > FALSE_ALARM_RATE
    # What is claimed for one in a million has to hold where it can be counted, too.
    assert np.mean(np.asarray(p_values) < 0.01) <= 0.05


@pytest.mark.parametrize(("shift", "fake_share"), [(0.5, 0.02), (-0.5, 0.02), (1.0, 0.0), (-1.0, 0.5)])
def test_a_planted_shift_is_told_within_10_000_images(shift: float, fake_share: float) -> None:
    """The shift begins in the middle of a window; the first whole one after it tells."""
    random = np.random.default_rng(7)
    scores, is_fake = draw(random, 20_000, 0.5)
    detector = DriftDetector(reference_distribution({"linear": scores}, is_fake, ["jpeg"] * len(scores)))
    before, _ = draw(random, WINDOW_IMAGES * 2 + WINDOW_IMAGES // 2, fake_share)
    after, _ = draw(random, 10_000, fake_share, shift)
    told_at = None
    for number, score in enumerate(np.concatenate([before, after])):
        for result in detector.observe("jpeg", Scores(linear=float(score), knn=0.5, svm=0.5)):
            if result.has_drifted:
                told_at = told_at or number
    assert told_at is not None
    assert len(before) <= told_at < len(before) + 10_000


def test_more_fakes_are_no_drift() -> None:
    """The share of fakes changes by the hour; the nearest mixture says how many there are."""
    random = np.random.default_rng(3)
    sample = reference(random, 20_000)
    for share in (0.0, 0.05, 0.3, 0.9):
        scores, _ = draw(random, WINDOW_IMAGES, share)
        result = compare("jpeg", "linear", sample, histogram(scores, sample))
        assert not result.has_drifted
        assert result.fake_share == pytest.approx(share, abs=0.04)
        assert result.distance < 0.02


def test_a_sample_without_fakes() -> None:
    """Then the question is whether the scores are those of real images."""
    random = np.random.default_rng(5)
    scores, is_fake = draw(random, 5000, 0.0)
    sample = reference_distribution({"linear": scores}, is_fake, ["png"] * 5000)["png"]["linear"]
    assert sum(sample.fake) == 0
    usual, _ = draw(random, WINDOW_IMAGES, 0.0)
    assert not compare("png", "linear", sample, histogram(usual, sample)).has_drifted
    fakes, _ = draw(random, WINDOW_IMAGES, 0.3)
    assert compare("png", "linear", sample, histogram(fakes, sample)).has_drifted


def test_formats_have_their_own_distribution_where_there_are_images_enough() -> None:
    """Others are counted together, and a format that the sample never had is measured with those, if at all."""
    random = np.random.default_rng(11)
    scores, is_fake = draw(random, 2000, 0.5)
    formats = ["jpeg"] * 1000 + ["png"] * 900 + ["gif"] * 100
    found = reference_distribution({"linear": scores, "knn": scores}, is_fake, formats)
    assert {name: set(by_head) for name, by_head in found.items()} == {
        "jpeg": {"linear", "knn"},
        "png": {"linear", "knn"},
    }
    found = reference_distribution({"linear": scores}, is_fake, ["jpeg"] * 1000 + ["png"] * 300 + ["gif"] * 700)
    assert set(found) == {"jpeg", "gif"}
    found = reference_distribution(
        {"linear": scores}, is_fake, ["jpeg"] * 1000 + ["a"] * 350 + ["b"] * 350 + ["c"] * 300
    )
    assert set(found) == {"jpeg", OTHER_FORMATS}
    detector = DriftDetector(found, window_images=3)
    results = [detector.observe("heic", Scores(linear=0.5, knn=0.5, svm=0.5)) for _ in range(3)]
    assert [len(result) for result in results] == [0, 0, 1]
    assert results[2][0].format == OTHER_FORMATS


def test_scores_that_are_all_the_same_have_no_distribution() -> None:
    """A head that says nothing is left out; ties at the ends are no trouble."""
    scores = np.full(1000, 0.5)
    is_fake = np.arange(1000) % 2 == 0
    assert reference_distribution({"linear": scores}, is_fake, ["jpeg"] * 1000) == {}
    tied = np.where(is_fake, 1.0, 0.0)
    (distribution,) = reference_distribution({"linear": tied}, is_fake, ["jpeg"] * 1000)["jpeg"].values()
    assert (distribution.real, distribution.fake) == ((500, 0), (0, 500))


@pytest.mark.parametrize(
    ("value", "degrees", "tail"),
    [(3.841459, 1, 0.05), (5.991465, 2, 0.05), (9.487729, 4, 0.05), (30.14353, 19, 0.05), (0.0, 7, 1.0)],
)
def test_the_tail_of_chi_square(value: float, degrees: int, tail: float) -> None:
    """The values of the printed tables."""
    assert chi_square_tail(value, degrees) == pytest.approx(tail, abs=1e-6)
    assert chi_square_tail(1e6, degrees) == 0.0 or math.isclose(chi_square_tail(1e6, degrees), 0.0)
