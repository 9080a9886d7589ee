"""Thresholds keep their promise for whatever distribution the scores have, and give away no more than they must."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom

from train.calibration.bounds import (
    allowed_errors,
    lower_bound,
    needed,
    threshold_above,
    threshold_below,
    upper_bound,
)

DRAWS = 2000
Draw = Callable[[np.random.Generator, int], np.ndarray]


def smooth(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.beta(2, 5, count)


def tied(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.round(rng.beta(2, 5, count), 2)


def heavy(rng: np.random.Generator, count: int) -> np.ndarray:
    return 1 / (1 + rng.pareto(0.7, count)) ** 0.2


def mostly_one_value(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.where(rng.random(count) < 0.97, 0.25, rng.random(count))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draw", "count", "rate"),
    [(smooth, 350, 0.01), (smooth, 2000, 0.01), (tied, 1000, 0.02), (heavy, 1500, 0.01), (mostly_one_value, 800, 0.01)],
)
def test_the_rate_is_above_the_target_in_at_most_one_of_twenty_samples(draw: Draw, count: int, rate: float) -> None:
    """2,000 samples of known distributions (ties, few images, heavy tails): the promise of 95 % confidence is kept."""
    rng = np.random.default_rng(count)
    everyone = np.sort(draw(np.random.default_rng(1), 1_000_000))
    broken = 0
    for _ in range(DRAWS):
        threshold = threshold_above(draw(rng, count), rate, 0.95)
        if threshold is not None:
            broken += 1 - np.searchsorted(everyone, threshold) / len(everyone) > rate
    assert broken / DRAWS <= 0.05


def test_duplicates_change_nothing_where_photographs_are_counted_once() -> None:
    """Each photograph in one to five copies: counted once the promise holds, counted as images it does not."""
    rng, rate, broken = np.random.default_rng(3), 0.02, {"once": 0, "each": 0}
    for _ in range(DRAWS):
        scores = rng.beta(2, 5, 150)
        copies = np.repeat(scores, rng.integers(1, 6, len(scores)))
        for name, sample in (("once", scores), ("each", copies)):
            threshold = threshold_above(sample, rate, 0.95)
            rate_of = 1 - _beta_cdf(threshold) if threshold is not None else 0.0
            broken[name] += rate_of > rate
    assert broken["once"] / DRAWS <= 0.05 < broken["each"] / DRAWS


def _beta_cdf(value: float) -> float:
    from scipy.stats import beta

    return float(beta.cdf(value, 2, 5))


def test_little_is_given_away() -> None:
    """With 10,000 photographs the threshold catches within a tenth of what the best one would."""
    rng, caught, best = np.random.default_rng(4), [], []
    for _ in range(50):
        real, fake = (1 / (1 + np.exp(-rng.normal(shift, 1, 10_000))) for shift in (-1, 1))
        threshold = threshold_above(real, 0.01, 0.95)
        caught.append((fake >= threshold).mean())
        best.append((fake >= 1 / (1 + np.exp(1 - 2.3263))).mean())
    assert np.mean(caught) >= 0.9 * np.mean(best)


def test_the_other_end_is_the_mirror() -> None:
    """At most the target of the generated scores lies below `real_below`, with the confidence asked for."""
    rng, broken = np.random.default_rng(5), 0
    for _ in range(DRAWS):
        threshold = threshold_below(rng.random(600), 0.01, 0.95)
        broken += threshold is not None and threshold > 0.01
    assert broken / DRAWS <= 0.05


@pytest.mark.parametrize(("rate", "count"), [(0.01, 299), (0.001, 2995), (0.05, 59)])
def test_how_many_are_needed(rate: float, count: int) -> None:
    """299 photographs without an error bound 1 % at 95 %: one fewer does not."""
    assert needed(rate, 0.95) == count
    assert allowed_errors(count, rate, 0.95) == 0 and allowed_errors(count - 1, rate, 0.95) is None
    assert threshold_above(np.linspace(0, 0.9, count - 1), rate, 0.95) is None
    assert threshold_above(np.linspace(0, 0.9, count), rate, 0.95) == pytest.approx(0.9, abs=3e-6)


def test_bounds_are_those_of_clopper_and_pearson() -> None:
    """At the bound, so few errors or so many hits are as rare as the confidence says."""
    assert binom.cdf(3, 500, upper_bound(3, 500, 0.95)) == pytest.approx(0.05)
    assert binom.sf(469, 500, lower_bound(470, 500, 0.95)) == pytest.approx(0.05)
    assert upper_bound(7, 7, 0.95) == 1.0 and lower_bound(0, 7, 0.95) == 0.0


def test_scores_at_the_very_top_cannot_be_excluded() -> None:
    """Where more photographs than may be wrong have the highest score there is, no threshold is made up."""
    assert threshold_above(np.concatenate([np.zeros(990), np.ones(10)]), 0.01, 0.95) is None
    assert threshold_above(np.concatenate([np.zeros(999), np.ones(1)]), 0.01, 0.95) == pytest.approx(0, abs=1e-5)
