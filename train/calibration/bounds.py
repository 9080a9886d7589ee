"""How high an error rate can be that was seen on a sample, and thresholds whose rate is below a target: exact, for any
distribution of scores.

The k + 1 largest of n independent scores of photographs bounds their false-positive rate without a look at their
distribution: of the threshold just above it the rate is at most that of a Beta(k + 1, n - k) variable (ties only lower
it), so it is above the target with the probability that a binomial of n and the target is at most k. That is the bound
of Clopper and Pearson ("The use of confidence or fiducial limits", Biometrika 1934) for k errors seen, and it stays
right though the threshold was chosen on the same scores.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import beta, binom

STEP = 1e-6  # a threshold is that much above the score that it leaves out: served scores are float32


def upper_bound(errors: int, count: int, confidence: float) -> float:
    """The rate that `errors` of `count` independent photographs exclude above it, one-sided."""
    return 1.0 if errors >= count else float(beta.ppf(confidence, errors + 1, count - errors))


def lower_bound(hits: int, count: int, confidence: float) -> float:
    """The rate that `hits` of `count` exclude below it, one-sided."""
    return 0.0 if hits == 0 else float(beta.ppf(1 - confidence, hits, count - hits + 1))


def needed(rate: float, confidence: float) -> int:
    """How many photographs without an error bound `rate`: 299 for 1 % at 95 %."""
    return math.ceil(math.log1p(-confidence) / math.log1p(-rate))


def allowed_errors(count: int, rate: float, confidence: float) -> int | None:
    """The most errors of `count` whose bound is still at most `rate`; None where not even none are few enough."""
    most = int(binom.ppf(1 - confidence, count, rate))
    while most >= 0 and binom.cdf(most, count, rate) > 1 - confidence:
        most -= 1
    return most if most >= 0 else None


def threshold_above(scores: np.ndarray, rate: float, confidence: float) -> float | None:
    """The lowest threshold t such that the rate of score >= t is at most `rate` with `confidence`.

    `scores` [N]: of independent photographs, each once. None where the sample cannot support it, or where no number up
    to 1 is above the scores that have to be left out.
    """
    errors = allowed_errors(len(scores), rate, confidence)
    if errors is None:
        return None
    left_out = float(np.partition(scores, len(scores) - 1 - errors)[len(scores) - 1 - errors])
    above = math.floor(left_out / STEP + 2) * STEP
    if above > 1:
        above = float(np.nextafter(np.float32(left_out), np.float32(2)))
    return round(above, 9) if above <= 1 else None


def threshold_below(scores: np.ndarray, rate: float, confidence: float) -> float | None:
    """The highest threshold t such that the rate of score < t is at most `rate` with `confidence`: the other end."""
    mirrored = threshold_above(1 - np.asarray(scores), rate, confidence)
    return None if mirrored is None else round(1 - mirrored, 9)
