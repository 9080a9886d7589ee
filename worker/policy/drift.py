"""Drift: do scores still lie as they did when the policy was calibrated? A test with a stated rate of false alarms.

The reference has the scores of real and of generated images apart, because how many of the uploads are generated is not
known and changes by the hour. So the question is not whether the scores are those of the sample, but whether they could
be those of any mixture of its two kinds. Every WINDOW_IMAGES images of a format, each head's histogram is put to a
likelihood-ratio test against the best such mixture; sample and window both count as samples.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.contract import Scores
from worker.policy.calibration import OTHER_FORMATS, Reference, ScoreDistribution

WINDOW_IMAGES = 5000
FALSE_ALARM_RATE = 1e-6  # of one window of one head, for images that are independent of one another
_ITERATIONS = 300
_STARTS = (0.02, 0.5)
_TINY = 1e-300
_CLOSE = 1e-3  # of log-likelihood: far below what a p-value turns on

Counts = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class WindowResult:
    """One window of one head and format. `distance`: population stability index to the nearest mixture.

    `p_value`: how often images like the sample's would look at least this strange; `fake_share`: of the mixture.
    """

    format: str
    head: str
    distance: float
    p_value: float
    fake_share: float

    @property
    def has_drifted(self) -> bool:
        return self.p_value < FALSE_ALARM_RATE


class DriftDetector:
    """Counts scores against `reference`; not thread-safe."""

    def __init__(self, reference: Reference, window_images: int = WINDOW_IMAGES) -> None:
        self._reference = reference
        self._window_images = window_images
        self._seen = dict.fromkeys(reference, 0)
        self._counts = {
            (name, head): [0] * len(distribution.real)
            for name, by_head in reference.items()
            for head, distribution in by_head.items()
        }

    def observe(self, image_format: str, scores: Scores) -> list[WindowResult]:
        """Count one image; where it completes a window, what each head's test says."""
        name = image_format if image_format in self._reference else OTHER_FORMATS
        by_head = self._reference.get(name)
        if by_head is None:
            return []
        for head, distribution in by_head.items():
            self._counts[name, head][bisect_right(distribution.edges, getattr(scores, head))] += 1
        self._seen[name] += 1
        if self._seen[name] < self._window_images:
            return []
        self._seen[name] = 0
        results = []
        for head, distribution in by_head.items():
            counts = self._counts[name, head]
            results.append(compare(name, head, distribution, np.asarray(counts, float)))
            counts[:] = [0] * len(counts)
        return results


def compare(image_format: str, head: str, reference: ScoreDistribution, live: Counts) -> WindowResult:
    """Could `live` (images by bin) be a mixture of the reference's real and generated images?"""
    real, fake = np.asarray(reference.real, float), np.asarray(reference.fake, float)
    separate = _log_likelihood(real, real / real.sum()) + _log_likelihood(live, live / live.sum())
    if fake.sum():
        separate += _log_likelihood(fake, fake / fake.sum())
    together, share = max(_fitted(real, fake, live, start) for start in (_STARTS if fake.sum() else (0.0,)))
    # One degree of freedom more than the mixture leaves, so that its best fit at 0 % or 100 % is no false alarm either.
    p_value = chi_square_tail(2 * max(0.0, separate - together), len(live) - 1)
    return WindowResult(image_format, head, _stability_index(real, fake, live, share), p_value, share)


def _fitted(real: Counts, fake: Counts, live: Counts, share: float) -> tuple[float, float]:
    """Log-likelihood of the three samples as draws from two distributions, and the share of fakes in the third.

    Expectation maximisation: which part of each live bin is fake, then both distributions from all that is theirs.
    """
    of_real, of_fake = _smooth(real), _smooth(fake)
    before = -math.inf
    for _ in range(_ITERATIONS):
        mixed = (1 - share) * of_real + share * of_fake
        found = _log_likelihood(real, of_real) + _log_likelihood(fake, of_fake) + _log_likelihood(live, mixed)
        if found - before < _CLOSE:
            break
        before = found
        fake_part = share * of_fake * live / np.maximum(mixed, _TINY)
        share = float(fake_part.sum() / live.sum())
        of_real = _shares(real + live - fake_part)
        of_fake = _shares(fake + fake_part) if fake.sum() else of_fake
    return found, share


def _shares(counts: Counts) -> Counts:
    shares: Counts = counts / counts.sum()
    return shares


def _smooth(counts: Counts) -> Counts:
    return _shares(counts + 0.5)


def _log_likelihood(counts: Counts, shares: Counts) -> float:
    """Of a multinomial sample, up to a constant; a bin without images says nothing."""
    return float(counts @ np.log(np.maximum(shares, _TINY)))


def _stability_index(real: Counts, fake: Counts, live: Counts, share: float) -> float:
    """Population stability index of `live` against the reference's own mixture at `share`."""
    expected, found = (1 - share) * _smooth(real) + share * _smooth(fake), _smooth(live)
    return float(((found - expected) * np.log(found / expected)).sum())


def chi_square_tail(value: float, degrees: int) -> float:
    """P(chi-square with `degrees` > `value`): the finite sums of Abramowitz and Stegun 26.4.4 and 26.4.5."""
    half = value / 2
    if degrees % 2:
        total, term = math.erfc(math.sqrt(half)), math.sqrt(2 * value / math.pi) * math.exp(-half)
        for number in range(3, degrees + 1, 2):
            total += term
            term *= value / number
        return min(1.0, total)
    term = total = math.exp(-half)
    for number in range(1, degrees // 2):
        term *= half / number
        total += term
    return min(1.0, total)
