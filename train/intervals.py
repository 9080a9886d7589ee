"""Confidence intervals that hold, by photograph: cuts and copies of one photograph are one draw, not several.

AUC: DeLong et al. (Biometrics 1988) with the clusters of Obuchowski (Biometrics 1997), on the logit scale; where the
classes are nearly apart, so that hardly an image is left to estimate a deviation from, Newcombe's score interval
(Statistics in Medicine 2006, method 5). Balanced accuracy: Wilson's interval of either class at its effective number of
images, put together as Zou and Donner (Statistics in Medicine 2008). Where too few photographs stand behind a number
there is no interval, and where even the number means nothing there is none. `train.main coverage` has the coverage of
each by simulation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm, t

LEVEL = 0.95
MIN_PHOTOGRAPHS = 30  # of each class, for an interval
MIN_SOURCES = 10  # of each class, as if all were equally large, for an interval by source
MIN_MISPLACED = 1.0  # sources of the smaller class beyond the others, in sum, for an interval of an AUC by source
FEW_MISPLACED = (
    2.5  # photographs likewise: below it DeLong's deviation says too little, and Newcombe's interval is taken
)
SCORE_QUANTILE = float(norm.ppf(0.94))  # its misses lie on one side: chosen so that both together cover 95 % (coverage)
MIN_MISPLACED_PAIRED = 2.0  # and of a difference of two AUCs
MIN_DISAGREEMENTS = 10  # photographs that two models call differently, for a difference of their accuracies
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


def auc_of(labels: np.ndarray, scores: np.ndarray) -> float:
    """The AUC; both classes are there."""
    return float(placements(labels, scores)[labels == 1].mean())


def auc_interval(labels: np.ndarray, scores: np.ndarray, clusters: np.ndarray, *, by_source: bool = False) -> Interval:
    """Of the AUC; NaN with too few photographs. (Whatever the AUC is: intervals that only some samples have hold for
    none.)

    With `by_source` of the AUC on images of other collections and generators than these, and NaN also where the classes
    are nearly apart: `clusters` [N] says where each is from, a source is one draw however many images it has (of
    unequal size each counts by Kish's effective number).
    """
    draws, least = _draws(labels, clusters, by_source=by_source)
    if draws < least:
        return NONE
    parts = placements(labels, scores)
    auc = float(parts[labels == 1].mean())
    deviation = math.sqrt(sum(_variance(parts[labels == label], clusters[labels == label]) for label in (0, 1)))
    if not by_source and (_misplaced(auc, draws) < FEW_MISPLACED or deviation == 0):
        return _score_interval(auc, [len(np.unique(clusters[labels == label])) for label in (0, 1)])
    if _misplaced(auc, draws) < MIN_MISPLACED or deviation == 0:
        return NONE
    quantile = _quantile(draws) if by_source else float(norm.ppf((1 + LEVEL) / 2))
    logit, step = math.log(auc / (1 - auc)), quantile * deviation / (auc * (1 - auc))
    return _expit(logit - step), _expit(logit + step)


def _score_interval(auc: float, photographs: Sequence[int]) -> Interval:
    """The AUCs from which `auc` is at most SCORE_QUANTILE of their own deviations away (Newcombe's method 5)."""
    pairs, mean_others = math.prod(photographs), sum(photographs) / 2 - 1

    def too_far(truth: float) -> float:
        variance = truth * (1 - truth) / pairs
        variance *= 1 + mean_others * ((1 - truth) / (2 - truth) + truth / (1 + truth))
        return (truth - auc) ** 2 - SCORE_QUANTILE**2 * variance

    edge = 1e-12
    low = brentq(too_far, edge, min(auc, 1 - edge)) if auc > edge and too_far(edge) > 0 else 0.0
    high = brentq(too_far, max(auc, edge), 1 - edge) if auc < 1 - edge and too_far(1 - edge) > 0 else 1.0
    return float(low), float(high)


def auc_difference(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, clusters: np.ndarray, *, by_source: bool = False
) -> tuple[float, Interval, float]:
    """(AUC of `second` minus that of `first`, its interval, p-value of no difference) on the same images, paired.

    `clusters` [N] are photographs, or with `by_source` where the images come from. Interval and p are NaN with too few
    of them, or where a model errs on too few to compare.
    """
    both = placements(labels, first), placements(labels, second)
    parts = both[1] - both[0]
    difference = float(parts[labels == 1].mean())
    draws, least = _draws(labels, clusters, by_source=by_source)
    misplaced = min(_misplaced(float(one[labels == 1].mean()), draws) for one in both)
    if draws < least or misplaced < MIN_MISPLACED_PAIRED:
        return difference, NONE, math.nan
    deviation = math.sqrt(sum(_variance(parts[labels == label], clusters[labels == label]) for label in (0, 1)))
    return difference, *_student(difference, deviation, draws)


def balanced_accuracy_difference(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, clusters: np.ndarray
) -> tuple[float, Interval, float]:
    """As `auc_difference`, of the balanced accuracy of `second` minus that of `first`, both bool [N]: called fake. No
    interval where they disagree on fewer than MIN_DISAGREEMENTS photographs.
    """
    gained = (second == labels).astype(float) - (first == labels)
    difference = float(np.mean([gained[labels == label].mean() for label in (0, 1)]))
    disagreements = len(np.unique(clusters[gained != 0]))
    fewest = _fewest(labels, clusters)
    if fewest < MIN_PHOTOGRAPHS or disagreements < MIN_DISAGREEMENTS:
        return difference, NONE, math.nan
    deviation = math.sqrt(sum(_variance(gained[labels == label], clusters[labels == label]) for label in (0, 1))) / 2
    return difference, *_student(difference, deviation, fewest)


def _student(difference: float, deviation: float, draws: float) -> tuple[Interval, float]:
    if deviation == 0:
        return NONE, math.nan
    step = _quantile(draws) * deviation
    return (difference - step, difference + step), float(2 * t.sf(abs(difference) / deviation, draws - 1))


def _draws(labels: np.ndarray, clusters: np.ndarray, *, by_source: bool) -> tuple[float, float]:
    """(independent draws of the class with fewer, how many an interval needs)."""
    if not by_source:
        return _fewest(labels, clusters), MIN_PHOTOGRAPHS
    return min(_effective(clusters[labels == label]) for label in (0, 1)), MIN_SOURCES


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


def _misplaced(auc: float, draws: float) -> float:
    """So many of the smaller class's `draws` lie wholly on the other side, put together."""
    return draws * min(auc, 1 - auc)


def _effective(clusters: np.ndarray) -> float:
    """Kish's effective number of clusters: as many equally large ones would say as much."""
    sizes = np.unique(clusters, return_counts=True)[1]
    return float(np.square(sizes.sum()) / np.square(sizes).sum())


def _quantile(draws: float) -> float:
    """Student's, with the smaller class's number of draws: the deviation itself is estimated."""
    return float(t.ppf((1 + LEVEL) / 2, draws - 1))


def _expit(value: float) -> float:
    return 1 / (1 + math.exp(-value))
