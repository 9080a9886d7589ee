"""Metrics against scikit-learn and by hand, and their intervals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from train.metrics import METRICS, Ranked, accuracies, summarise, with_intervals

LABELLED = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 20)), min_size=4, max_size=60).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)


@settings(max_examples=150, deadline=None)
@given(LABELLED)
def test_metrics_equal_scikit_learns_with_ties(rows: list[tuple[int, int]]) -> None:
    """AUC, average precision and balanced accuracy are scikit-learn's, however many scores are equal."""
    labels, scores = np.array([label for label, _ in rows]), np.array([value / 20 for _, value in rows])
    made = summarise(Ranked.of(labels, scores))
    assert made["auc"] == pytest.approx(roc_auc_score(labels, scores))
    assert made["average_precision"] == pytest.approx(average_precision_score(labels, scores))
    assert made["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, scores >= 0.5))


@settings(max_examples=100, deadline=None)
@given(LABELLED, st.integers(0, 2**31))
def test_weights_are_repetitions(rows: list[tuple[int, int]], seed: int) -> None:
    """A sample of weight k counts as k samples: a bootstrap by weights is a bootstrap."""
    labels, scores = np.array([label for label, _ in rows]), np.array([value / 20 for _, value in rows])
    weights = np.random.default_rng(seed).integers(1, 4, len(rows))
    weighted = summarise(Ranked.of(labels, scores), weights.astype(float))
    repeated = summarise(Ranked.of(labels.repeat(weights), scores.repeat(weights)))
    assert weighted == pytest.approx(repeated)


def test_recall_at_low_false_positive_rates_by_hand() -> None:
    """With 200 reals 1 % allows two of them above the threshold, 0.1 % none."""
    reals, fakes = np.linspace(0, 0.5, 200), np.array([0.4991, 0.49, 0.6, 0.7])
    labels, scores = np.array([0] * 200 + [1] * 4), np.concatenate([reals, fakes])
    made = summarise(Ranked.of(labels, scores))
    assert made["tpr_at_1pct_fpr"] == 0.75
    assert made["tpr_at_0.1pct_fpr"] == 0.5


def test_calibration_error_by_hand() -> None:
    """Scores of 0.9 that are right half of the time are off by 0.4; scores that are true cost nothing."""
    labels = np.array([0, 1] * 5000)
    assert summarise(Ranked.of(labels, np.full(10_000, 0.9)))["ece"] == pytest.approx(0.4, abs=1e-3)
    assert summarise(Ranked.of(np.array([0] * 10 + [1] * 10), np.array([0.0] * 10 + [1.0] * 10)))["ece"] == 0


def test_calibration_error_has_a_null() -> None:
    """Perfectly calibrated scores stay below the null in 95 % of samples; scores that are off do not."""
    rng = np.random.default_rng(3)
    below = 0
    for seed in range(100):
        scores = rng.random(400)
        error = with_intervals(rng.binomial(1, scores), scores, resamples=0, seed=seed)["ece"]
        below += error["value"] <= error["null"]
    assert below >= 88
    scores = rng.random(2000)
    error = with_intervals(rng.binomial(1, scores**3), scores, resamples=0)["ece"]
    assert error["value"] > 2 * error["null"]


def test_intervals_cover_and_shrink() -> None:
    """The interval holds the value, is reproducible, and sixteen times the images make it a quarter as wide."""
    rng = np.random.default_rng(1)

    def interval(count: int) -> dict[str, float]:
        labels = rng.integers(0, 2, count)
        return with_intervals(labels, 1 / (1 + np.exp(-(rng.normal(size=count) + labels))), resamples=0)["auc"]

    small, large = interval(400), interval(6400)
    assert small["low"] <= small["value"] <= small["high"]
    assert large["high"] - large["low"] < 0.4 * (small["high"] - small["low"])


def test_numbers_without_grounds_are_not_printed() -> None:
    """The AUC of one image has no interval; recall at 0.1 % needs 1,000 reals for a value, 30,000 for an interval."""
    one = with_intervals(np.array([0, 1]), np.array([0.1, 0.9]), resamples=200)
    assert one["auc"]["value"] == 1 and np.isnan(one["auc"]["low"])
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [3500, 300])
    made = with_intervals(labels, rng.normal(size=3800) * 0.1 + 0.4 + 0.2 * labels, resamples=100)
    assert made["tpr_at_1pct_fpr"]["low"] < made["tpr_at_1pct_fpr"]["value"] < made["tpr_at_1pct_fpr"]["high"]
    assert made["tpr_at_0.1pct_fpr"]["value"] > 0 and np.isnan(made["tpr_at_0.1pct_fpr"]["low"])
    few = with_intervals(labels[3400:], rng.random(400), resamples=0)
    assert np.isnan(few["tpr_at_0.1pct_fpr"]["value"]) and not np.isnan(few["tpr_at_1pct_fpr"]["value"])


def test_one_class_alone_has_no_value() -> None:
    """Without reals or fakes every metric is NaN; scores that are no numbers are refused."""
    made = with_intervals(np.ones(5, int), np.linspace(0, 1, 5), resamples=10)
    assert all(np.isnan(made[name]["value"]) for name in METRICS)
    with pytest.raises(ValueError, match="no numbers"):
        Ranked.of(np.array([0, 1]), np.array([0.1, np.nan]))


def test_accuracies_are_the_authors() -> None:
    """Accuracy on reals, on fakes and overall for hard labels."""
    assert accuracies(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])) == {
        "real": pytest.approx(2 / 3),
        "fake": 1.0,
        "all": 0.75,
    }
