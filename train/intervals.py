"""Confidence intervals that hold, by photograph: cuts and copies of one photograph are one draw, not several.

AUC: DeLong et al. (Biometrics 1988) with the clusters of Obuchowski (Biometrics 1997), on the logit scale. Balanced
accuracy: Wilson's interval of either class at its effective number of images, put together as Zou and Donner
(Statistics in Medicine 2008). Where too few photographs stand behind a number there is no interval, and where even the
number means nothing there is none: `tests/train/test_intervals.py` has the coverage of each by simulation.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import norm, t

LEVEL = 0.95
MIN_PHOTOGRAPHS = 30  # of each class, for an interval
MIN_ERRORS = 30  # photographs that a false-positive rate must allow for the interval of the recall there
Interval = tuple[float, float]
NONE: Interval = (math.nan, math.nan)


def placements(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """DeLong's components [N]: of a fake the share of reals below it, of a real the share of fakes above it."""
    parts = np.empty(len(scores))
    for label in (0, 1):
        mine, others = scores[labels == label], np.sort(scores[labels != label])
        below, upto = np.searchsorted(others, mine), np.searchsorted(others, mine, side="right")
        share = (below + upto) / 2 / len(others)
        parts[labels == label] = share if label else 1 - share
    return parts


def auc_interval(labels: np.ndarray, scores: np.ndarray, clusters: np.ndarray) -> Interval:
    """Of the AUC; NaN with too few photographs, or where the classes are fully apart."""
    if _fewest(labels, clusters) < MIN_PHOTOGRAPHS:
        return NONE
    parts = placements(labels, scores)
    auc = float(parts[labels == 1].mean())
    deviation = math.sqrt(sum(_variance(parts[labels == label], clusters[labels == label]) for label in (0, 1)))
    if not 0 < auc < 1 or deviation == 0:
        return NONE
    logit, step = math.log(auc / (1 - auc)), _quantile(labels, clusters) * deviation / (auc * (1 - auc))
    return _expit(logit - step), _expit(logit + step)


def auc_difference(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, clusters: np.ndarray
) -> tuple[float, Interval, float]:
    """(AUC of `second` minus that of `first`, its interval, p-value of no difference) on the same images, paired."""
    parts = placements(labels, second) - placements(labels, first)
    difference = float(parts[labels == 1].mean())
    if _fewest(labels, clusters) < MIN_PHOTOGRAPHS:
        return difference, NONE, math.nan
    deviation = math.sqrt(sum(_variance(parts[labels == label], clusters[labels == label]) for label in (0, 1)))
    if deviation == 0:
        return difference, NONE, math.nan
    step = _quantile(labels, clusters) * deviation
    return difference, (difference - step, difference + step), float(2 * norm.sf(abs(difference) / deviation))


def balanced_accuracy_interval(labels: np.ndarray, flagged: np.ndarray, clusters: np.ndarray) -> Interval:
    """Of the mean of the two classes' accuracies."""
    if _fewest(labels, clusters) < MIN_PHOTOGRAPHS:
        return NONE
    rates, below, above = [], [], []
    for label in (0, 1):
        right = (flagged[labels == label] == label).astype(float)
        low, high = _wilson(right, clusters[labels == label])
        rates.append(right.mean())
        below.append(right.mean() - low)
        above.append(high - right.mean())
    middle = float(np.mean(rates))
    return middle - math.hypot(*below) / 2, middle + math.hypot(*above) / 2


def recall_has_interval(labels: np.ndarray, clusters: np.ndarray, rate: float) -> bool:
    """Whether the recall at a false-positive rate rests on enough photographs for an interval."""
    reals = len(np.unique(clusters[labels == 0]))
    return rate * reals >= MIN_ERRORS and len(np.unique(clusters[labels == 1])) >= MIN_PHOTOGRAPHS


def _variance(parts: np.ndarray, clusters: np.ndarray) -> float:
    """Of the mean of `parts`, whose clusters are independent."""
    _, places = np.unique(clusters, return_inverse=True)
    sums = np.bincount(places, parts - parts.mean())
    count = len(sums)
    return float(count / (count - 1) * np.square(sums).sum() / len(parts) ** 2)


def _wilson(right: np.ndarray, clusters: np.ndarray) -> Interval:
    rate, count = float(right.mean()), len(np.unique(clusters))
    variance = _variance(right, clusters)
    effective = rate * (1 - rate) / variance if 0 < rate < 1 and variance > 0 else count
    effective = min(effective, len(right))
    z = norm.ppf((1 + LEVEL) / 2)
    middle = (rate + z * z / (2 * effective)) / (1 + z * z / effective)
    half = z / (1 + z * z / effective) * math.sqrt(rate * (1 - rate) / effective + z * z / (4 * effective**2))
    return middle - half, middle + half


def _fewest(labels: np.ndarray, clusters: np.ndarray) -> int:
    return min(len(np.unique(clusters[labels == label])) for label in (0, 1))


def _quantile(labels: np.ndarray, clusters: np.ndarray) -> float:
    """Student's, with the smaller class's photographs: the deviation itself is estimated."""
    return float(t.ppf((1 + LEVEL) / 2, _fewest(labels, clusters) - 1))


def _expit(value: float) -> float:
    return 1 / (1 + math.exp(-value))
