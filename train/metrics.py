"""Detection metrics with bootstrap confidence intervals, as pure functions of labels and scores.

All are functions of weighted counts over the sorted distinct scores, so that a bootstrap resample is a vector of
weights and a thousand of them take a second instead of a thousand sorts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import norm

from train import intervals

ECE_BINS = 15
RATES = {"tpr_at_1pct_fpr": 0.01, "tpr_at_0.1pct_fpr": 0.001}
MIN_BOOTSTRAP = 150  # photographs of each class
MIN_RESAMPLES = 100
METRICS = ("auc", "average_precision", "balanced_accuracy", "tpr_at_1pct_fpr", "tpr_at_0.1pct_fpr", "ece")


@dataclass(frozen=True)
class Ranked:
    """Labels and scores grouped by distinct score, ascending: `group[i]` is the rank of sample i's score."""

    labels: np.ndarray  # [N] 0 real, 1 fake
    scores: np.ndarray  # [N] P(fake)
    group: np.ndarray  # [N] int
    count: int

    @classmethod
    def of(cls, labels: np.ndarray, scores: np.ndarray) -> Ranked:
        """Raises ValueError for scores that are no numbers."""
        scores = np.asarray(scores, dtype=np.float64)
        if not np.isfinite(scores).all():
            raise ValueError(f"{int((~np.isfinite(scores)).sum())} scores are no numbers")
        distinct, group = np.unique(scores, return_inverse=True)
        return cls(np.asarray(labels, dtype=np.int64), scores, group, len(distinct))


def summarise(ranked: Ranked, weights: np.ndarray | None = None) -> dict[str, float]:
    """Every metric of METRICS; NaN where a class has no weight. `weights` [N] count each sample (1 by default).

    Balanced accuracy at 0.5; TPR at the largest FPR not above 1 % or 0.1 %; ECE (debiased, root mean square) over 15
    equal bins of P(fake).
    """
    w = np.ones(len(ranked.labels)) if weights is None else weights
    fake, real = _counts(ranked, w)
    fakes, reals = fake.sum(), real.sum()
    if fakes == 0 or reals == 0:
        return dict.fromkeys(METRICS, float("nan"))
    true_positive, false_positive = np.cumsum(fake), np.cumsum(real)
    recall, fpr = true_positive / fakes, false_positive / reals
    flagged = ranked.scores >= 0.5
    sensitivity = (w * (flagged & (ranked.labels == 1))).sum() / fakes
    specificity = (w * (~flagged & (ranked.labels == 0))).sum() / reals
    return {
        "auc": _auc(fake, real),
        "average_precision": float(
            (fake / fakes * true_positive / np.maximum(true_positive + false_positive, 1e-300)).sum()
        ),
        "balanced_accuracy": float((sensitivity + specificity) / 2),
        "tpr_at_1pct_fpr": _recall_at(recall, fpr, 0.01),
        "tpr_at_0.1pct_fpr": _recall_at(recall, fpr, 0.001),
        "ece": _calibration_error(ranked, w),
    }


def _counts(ranked: Ranked, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weight of fakes and of reals at each distinct score, from the highest down."""
    fake = np.bincount(ranked.group, weights * ranked.labels, minlength=ranked.count)[::-1]
    real = np.bincount(ranked.group, weights * (1 - ranked.labels), minlength=ranked.count)[::-1]
    return fake, real


def _auc(fake: np.ndarray, real: np.ndarray) -> float:
    return float((real * (np.cumsum(fake) - fake / 2)).sum() / (fake.sum() * real.sum()))


def _recall_at(recall: np.ndarray, fpr: np.ndarray, limit: float) -> float:
    allowed = np.searchsorted(fpr, limit + 1e-12, side="right")
    return float(recall[allowed - 1]) if allowed else 0.0


def calibration_bins(ranked: Ranked, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(weight, mean score, share of fakes) of each of the 15 bins; NaN means where a bin is empty."""
    w = np.ones(len(ranked.labels)) if weights is None else weights
    bins = np.minimum((ranked.scores * ECE_BINS).astype(int), ECE_BINS - 1)
    total, score, share = (
        np.bincount(bins, values, minlength=ECE_BINS) for values in (w, w * ranked.scores, w * ranked.labels)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return total, score / total, share / total


def _calibration_error(ranked: Ranked, weights: np.ndarray) -> float:
    """The root of the mean squared distance between score and share of fakes over the bins, without the part that the
    bins' own sampling adds to it (Kumar, Liang and Ma, "Verified uncertainty calibration", NeurIPS 2019).
    """
    total, score, share = calibration_bins(ranked, weights)
    filled = total > 1
    if not filled.any():
        return math.nan
    total, score, share = total[filled], score[filled], share[filled]
    squared = np.square(score - share) - share * (1 - share) / (total - 1)
    return math.sqrt(max(0.0, float((total * squared).sum() / total.sum())))


def with_intervals(
    labels: np.ndarray,
    scores: np.ndarray,
    clusters: np.ndarray | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    null: bool = True,
) -> dict[str, dict[str, float]]:
    """Each metric as {"value", "low", "high"}, NaN where too few photographs (`clusters` [N]; by default each image is
    one) stand behind it; `ece` with `null` instead, what 95 % of perfectly calibrated scores would stay below.

    AUC and balanced accuracy by train/intervals.py, the others by a percentile bootstrap of photographs within each
    class.
    """
    clusters = np.arange(len(labels)) if clusters is None else clusters
    ranked = Ranked.of(labels, scores)
    value = summarise(ranked)
    ends = dict.fromkeys(METRICS, (math.nan, math.nan))
    if len(set(ranked.labels.tolist())) == 2:
        flagged = ranked.scores >= 0.5
        ends["auc"] = intervals.auc_interval(ranked.labels, ranked.scores, clusters)
        ends["balanced_accuracy"] = intervals.balanced_accuracy_interval(ranked.labels, flagged, clusters)
        drawn = _bootstrapped(ranked, clusters, resamples, seed)
        for name in drawn:
            ends[name] = tuple(np.quantile(drawn[name], [(1 - level) / 2, (1 + level) / 2]).tolist())
        if "average_precision" in drawn:
            ends["average_precision"] = _by_logit(value["average_precision"], drawn["average_precision"], level)
        for name, rate in RATES.items():
            if rate * len(np.unique(clusters[ranked.labels == 0])) < 1:
                value[name] = math.nan  # fewer photographs than one error at that rate: no number means anything
    made = {name: {"value": value[name], "low": ends[name][0], "high": ends[name][1]} for name in METRICS}
    made["ece"] = {"value": value["ece"], "null": _null_error(ranked, seed) if null else math.nan}
    return made


def _bootstrapped(ranked: Ranked, clusters: np.ndarray, resamples: int, seed: int) -> dict[str, list[float]]:
    """Draws of the metrics that have no formula, of those with enough photographs."""
    names = [name for name, rate in RATES.items() if intervals.recall_has_interval(ranked.labels, clusters, rate)]
    _, places = np.unique(clusters, return_inverse=True)
    of_class = [np.unique(places[ranked.labels == label]) for label in (0, 1)]
    if min(len(members) for members in of_class) >= MIN_BOOTSTRAP:
        names.append("average_precision")
    drawn: dict[str, list[float]] = {name: [] for name in names}
    if not names or resamples < MIN_RESAMPLES:
        return {}
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        times = np.zeros(places.max() + 1)
        for members in of_class:
            times[members] += np.bincount(rng.integers(len(members), size=len(members)), minlength=len(members))
        found = summarise(ranked, times[places])
        for name in names:
            drawn[name].append(found[name])
    return drawn


def _by_logit(value: float, drawn: list[float], level: float) -> tuple[float, float]:
    """An interval around `value` as wide as the draws are on the logit scale; NaN at 0 and 1. (Percentiles of the draws
    cover too little: a resample has ties that a sample has not, which shifts average precision.)
    """
    if not 0 < value < 1:
        return math.nan, math.nan
    inside = np.clip(drawn, 1e-9, 1 - 1e-9)
    step = norm.ppf((1 + level) / 2) * float(np.std(np.log(inside / (1 - inside)), ddof=1))
    middle = math.log(value / (1 - value))
    return 1 / (1 + math.exp(step - middle)), 1 / (1 + math.exp(-step - middle))


def _null_error(ranked: Ranked, seed: int, draws: int = 200) -> float:
    """The calibration error that 95 % of samples with these scores stay below when the scores are exact."""
    if len(ranked.labels) < intervals.MIN_PHOTOGRAPHS:
        return math.nan
    rng = np.random.default_rng(seed)
    exact = [
        _calibration_error(replace(ranked, labels=rng.binomial(1, ranked.scores)), np.ones(len(ranked.labels)))
        for _ in range(draws)
    ]
    return float(np.quantile(exact, 0.95))


def accuracies(labels: np.ndarray, flagged: np.ndarray) -> dict[str, float]:
    """The authors' numbers for hard labels: accuracy on reals, on fakes and overall."""
    right = np.asarray(flagged) == np.asarray(labels)
    return {
        "real": float(right[labels == 0].mean()) if (labels == 0).any() else float("nan"),
        "fake": float(right[labels == 1].mean()) if (labels == 1).any() else float("nan"),
        "all": float(right.mean()),
    }


def paired_gain(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, clusters: np.ndarray, *, draws: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """(AUC of `second` minus that of `first`, both ends of its 95 % interval) by a percentile bootstrap of photographs
    (`clusters` [N]) within each class, the same draws for both. The scores [N] need not be probabilities.
    """
    both = [Ranked.of(labels, one) for one in (first, second)]
    _, places = np.unique(clusters, return_inverse=True)
    of_class = [np.unique(places[both[0].labels == label]) for label in (0, 1)]
    rng = np.random.default_rng(seed)

    def gain(weights: np.ndarray) -> float:
        one, other = (_auc(*_counts(ranked, weights)) for ranked in both)
        return other - one

    drawn = []
    for _ in range(draws):
        times = np.zeros(places.max() + 1)
        for members in of_class:
            times += np.bincount(rng.choice(members, len(members)), minlength=len(times))
        drawn.append(gain(times[places].astype(float)))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return gain(np.ones(len(places))), float(low), float(high)
