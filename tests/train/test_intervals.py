"""Intervals cover what they should: 500 draws of known truth each, with and without copies of photographs."""

import numpy as np
import pytest
from scipy.stats import norm

from train.intervals import auc_difference, auc_interval, balanced_accuracy_interval, placements
from train.metrics import Ranked, summarise

DRAWS = 500


def draw(
    rng: np.random.Generator, reals: int, fakes: int, apart: float, *, copies: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normal scores with unit variance, `apart` between the classes; with `copies` each photograph comes up to four
    times, its scores nearly the same.
    """
    labels = np.repeat([0, 1], [reals, fakes])
    clusters = np.arange(len(labels))
    if copies:
        times = rng.integers(1, 5, len(labels))
        labels, clusters = labels.repeat(times), clusters.repeat(times)
    shared = rng.normal(size=reals + fakes)[clusters]
    own = rng.normal(size=len(labels))
    noise = (0.9 * shared + np.sqrt(1 - 0.81) * own) if copies else shared
    return labels, noise + apart * labels, clusters


@pytest.mark.slow
@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize(("reals", "fakes", "apart"), [(40, 40, 0.5), (60, 200, 1.5), (300, 100, 2.0)])
def test_intervals_cover_in_93_to_97_percent(reals: int, fakes: int, apart: float, *, copies: bool) -> None:
    """AUC, balanced accuracy and the paired difference of two models on the same images."""
    rng = np.random.default_rng(reals)
    truth = {
        "auc": norm.cdf(apart / np.sqrt(2)),
        "balanced": norm.cdf(apart / 2),
        "difference": norm.cdf(apart / np.sqrt(2) / np.sqrt(1.25)) - norm.cdf(apart / np.sqrt(2)),
    }
    covered = dict.fromkeys(truth, 0)
    for _ in range(DRAWS):
        labels, scores, clusters = draw(rng, reals, fakes, apart, copies=copies)
        worse = scores + 0.5 * rng.normal(size=clusters.max() + 1)[clusters]
        intervals = {
            "auc": auc_interval(labels, scores, clusters),
            "balanced": balanced_accuracy_interval(labels, scores >= apart / 2, clusters),
            "difference": auc_difference(labels, scores, worse, clusters)[1],
        }
        for name, (low, high) in intervals.items():
            covered[name] += low <= truth[name] <= high
    shares = {name: count / DRAWS for name, count in covered.items()}
    assert all(0.93 <= share <= 0.97 for share in shares.values()), shares


def test_placements_average_to_the_auc() -> None:
    """DeLong's components of either class have the AUC as their mean, ties included."""
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 300), np.round(rng.random(300), 1)
    parts, auc = placements(labels, scores), summarise(Ranked.of(labels, scores))["auc"]
    assert parts[labels == 1].mean() == pytest.approx(auc) and parts[labels == 0].mean() == pytest.approx(auc)


@pytest.mark.parametrize(("reals", "fakes"), [(30, 30), (30, 300)])
def test_classes_that_are_nearly_apart_have_an_interval_that_holds(reals: int, fakes: int) -> None:
    """All draws have one, also those whose AUC is 1, and 93 to 97 % of them cover: where those near 1 went without,
    the rest covered 97.9 %.
    """
    rng, truth = np.random.default_rng(3), norm.cdf(2 / np.sqrt(2))
    made = [auc_interval(*draw(rng, reals, fakes, 2.0, copies=False)) for _ in range(DRAWS)]
    assert np.isfinite(made).all()
    assert 0.93 <= np.mean([low <= truth <= high for low, high in made]) <= 0.97


@pytest.mark.parametrize("auc", [0.0, 1.0])
def test_classes_that_are_apart_have_a_bound(auc: float) -> None:
    """An AUC of 1 of 30 photographs each is no proof of 1: the interval ends there, and begins well below."""
    labels = np.repeat([0, 1], 30)
    low, high = auc_interval(labels, labels if auc else 1 - labels, np.arange(60))
    assert (high if auc else low) == auc
    assert 0.03 < high - low < 0.15


def test_too_few_photographs_have_no_interval() -> None:
    """One image, or a hundred cuts of twenty photographs, are no grounds for an interval."""
    labels = np.array([0] * 100 + [1] * 100)
    scores = np.random.default_rng(1).random(200) + labels
    for clusters in (np.arange(200) // 5, np.zeros(200)):
        assert np.isnan(auc_interval(labels, scores, clusters)).all()
        assert np.isnan(balanced_accuracy_interval(labels, scores >= 1, clusters)).all()
