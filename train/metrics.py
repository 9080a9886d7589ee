"""Detection metrics with bootstrap confidence intervals, as pure functions of labels and scores.

All are functions of weighted counts over the sorted distinct scores, so that a bootstrap resample is a vector of
weights and a thousand of them take a second instead of a thousand sorts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ECE_BINS = 15
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

    Balanced accuracy at 0.5; TPR at the largest FPR not above 1 % or 0.1 %; ECE over 15 equal bins of P(fake).
    """
    w = np.ones(len(ranked.labels)) if weights is None else weights
    fake = np.bincount(ranked.group, w * ranked.labels, minlength=ranked.count)[::-1]  # from the highest score down
    real = np.bincount(ranked.group, w * (1 - ranked.labels), minlength=ranked.count)[::-1]
    fakes, reals = fake.sum(), real.sum()
    if fakes == 0 or reals == 0:
        return dict.fromkeys(METRICS, float("nan"))
    true_positive, false_positive = np.cumsum(fake), np.cumsum(real)
    recall, fpr = true_positive / fakes, false_positive / reals
    flagged = ranked.scores >= 0.5
    sensitivity = (w * (flagged & (ranked.labels == 1))).sum() / fakes
    specificity = (w * (~flagged & (ranked.labels == 0))).sum() / reals
    return {
        "auc": float((real * (true_positive - fake / 2)).sum() / (fakes * reals)),
        "average_precision": float(
            (fake / fakes * true_positive / np.maximum(true_positive + false_positive, 1e-300)).sum()
        ),
        "balanced_accuracy": float((sensitivity + specificity) / 2),
        "tpr_at_1pct_fpr": _recall_at(recall, fpr, 0.01),
        "tpr_at_0.1pct_fpr": _recall_at(recall, fpr, 0.001),
        "ece": _calibration_error(ranked, w),
    }


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
    total, score, share = calibration_bins(ranked, weights)
    filled = total > 0
    return float((total[filled] * np.abs(score - share)[filled]).sum() / total.sum())


def with_intervals(
    labels: np.ndarray, scores: np.ndarray, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Each metric as {"value", "low", "high"}: percentile bootstrap, resampling within each class (so both stay
    there).
    """
    ranked = Ranked.of(labels, scores)
    value = summarise(ranked)
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in METRICS}
    members = [np.flatnonzero(ranked.labels == label) for label in (0, 1)]
    for _ in range(resamples if all(len(indices) for indices in members) else 0):
        weights = np.zeros(len(ranked.labels))
        for indices in members:
            weights[indices] = np.bincount(rng.integers(len(indices), size=len(indices)), minlength=len(indices))
        for name, number in summarise(ranked, weights).items():
            drawn[name].append(number)
    tail = (1 - level) / 2
    result: dict[str, dict[str, float]] = {}
    for name in METRICS:
        low, high = np.quantile(drawn[name], [tail, 1 - tail]) if drawn[name] else (float("nan"), float("nan"))
        result[name] = {"value": value[name], "low": float(low), "high": float(high)}
    return result


def accuracies(labels: np.ndarray, flagged: np.ndarray) -> dict[str, float]:
    """The authors' numbers for hard labels: accuracy on reals, on fakes and overall."""
    right = np.asarray(flagged) == np.asarray(labels)
    return {
        "real": float(right[labels == 0].mean()) if (labels == 0).any() else float("nan"),
        "fake": float(right[labels == 1].mean()) if (labels == 1).any() else float("nan"),
        "all": float(right.mean()),
    }
