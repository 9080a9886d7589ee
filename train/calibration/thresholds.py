"""Chooses the thresholds: from a target rate, or a target precision, for the whole sample or for slices of it.

Where several statements have to hold together (slices, the candidates of a precision), each is made with so much more
confidence that all of them hold with the confidence asked for (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from train.calibration.bounds import (
    allowed_errors,
    lower_bound,
    needed,
    threshold_above,
    threshold_below,
    upper_bound,
)
from train.calibration.sample import Sample
from train.calibration.slices import By, Slice, grouped, slice_of
from triton_models.weights import FAKE, REAL

REST = Slice("all others", "")
_PRECISION_RATES = tuple(10 ** -(1 + step / 2) for step in range(9))  # 10 % to 0.001 %: candidates for a precision


@dataclass(frozen=True)
class Target:
    """What may be afforded. `fnr`: of generated images called real, None for no threshold that calls images real."""

    fpr: float
    fnr: float | None
    confidence: float = 0.95
    head: str = "linear"


@dataclass(frozen=True)
class Chosen:
    """The thresholds of one slice and what the sample says of them; `fake_from` None: nothing there is called fake.

    Rates with their one-sided bounds: `fpr` of real photographs called fake, `tpr` of generated ones, `fnr` of
    generated ones called real.
    """

    where: Slice
    photographs_real: int
    photographs_fake: int
    confidence: float
    fake_from: float | None = None
    real_below: float | None = None
    fpr: float = 0.0
    fpr_upper: float = 1.0
    tpr: float = 0.0
    tpr_lower: float = 0.0
    fnr: float = 0.0
    fnr_upper: float = 1.0


class TooFewImages(Exception):
    """The sample cannot support the target; the message says how many photographs are needed."""


def choose(sample: Sample, target: Target, by: Sequence[By] = ()) -> list[Chosen]:
    """Thresholds for each slice that the sample carries, then for all others together. Raises TooFewImages."""
    scores = sample.column(target.head)
    real = sample.labels == REAL
    _refuse(int(real.sum()), scores[real], target)
    slices = [slice_of(info, by) for info in sample.infos] if by else []
    members = {where: np.array(indices) for where, indices in grouped(slices).items()}
    own = _carried(members, real, target)
    confidence = 1 - (1 - target.confidence) / (len(own) + 1)
    chosen = [_of(where, scores, sample.labels, members[where], target, confidence) for where in own]
    taken = np.concatenate([members[where] for where in own]) if own else np.zeros(0, dtype=np.int64)
    others = np.setdiff1d(np.arange(len(scores)), taken)
    return [*chosen, _of(REST, scores, sample.labels, others, target, confidence)]


def for_precision(sample: Sample, precision: float, prevalence: float, target: Target) -> tuple[Target, list[Chosen]]:
    """The target rate whose threshold catches most while at least `precision` of what is called fake is so, where
    `prevalence` of all images are; and its thresholds. Raises TooFewImages.
    """
    scores = sample.column(target.head)
    real, fake = scores[sample.labels == REAL], scores[sample.labels == FAKE]
    odds = prevalence / (1 - prevalence) * (1 - precision) / precision  # rate allowed for each unit of recall
    confidence = 1 - (1 - target.confidence) / (2 * len(_PRECISION_RATES))
    for rate in _PRECISION_RATES:
        threshold = threshold_above(real, rate, confidence)
        if threshold is None:
            continue
        caught = lower_bound(int((fake >= threshold).sum()), len(fake), confidence)
        if rate <= odds * caught:
            found = replace(target, fpr=rate, confidence=confidence)
            return found, choose(sample, found)
    recall = lower_bound(len(fake), len(fake), confidence) if len(fake) else 0.0
    rate = next((candidate for candidate in _PRECISION_RATES if candidate <= odds), _PRECISION_RATES[-1])
    raise TooFewImages(
        f"a precision of {precision:.2%} at a prevalence of {prevalence:.2%} cannot be promised: it takes a "
        f"false-positive rate of at most {odds * recall:.2g} even if every generated image is caught, which needs "
        f"{needed(rate, confidence)} real photographs without an error; here are {len(real)} real and {len(fake)} "
        "generated ones"
    )


def _refuse(count: int, scores: np.ndarray, target: Target) -> None:
    least = needed(target.fpr, target.confidence)
    asked = f"a false-positive rate of {target.fpr:.3%} at {target.confidence:.1%} confidence"
    if count < least:
        raise TooFewImages(
            f"{least} real photographs that nothing was fitted on are needed for {asked}; here are {count}, "
            f"{least - count} too few"
        )
    if threshold_above(scores, target.fpr, target.confidence) is None:
        errors = allowed_errors(count, target.fpr, target.confidence) or 0
        raise TooFewImages(
            f"{asked} cannot be had from head {target.head}: more than {errors} of {count} real photographs have the "
            f"highest score there is; at least {least} photographs below it are needed, or another --head"
        )


def _carried(members: dict[Slice, np.ndarray], real: np.ndarray, target: Target) -> list[Slice]:
    """The slices with enough real photographs to stand alone, given how many stand alone."""
    own = list(members)
    while own:
        confidence = 1 - (1 - target.confidence) / (len(own) + 1)
        enough = [where for where in own if real[members[where]].sum() >= needed(target.fpr, confidence)]
        if len(enough) == len(own):
            return own
        own = enough
    return []


def _of(
    where: Slice, scores: np.ndarray, labels: np.ndarray, members: np.ndarray, target: Target, confidence: float
) -> Chosen:
    real, fake = scores[members][labels[members] == REAL], scores[members][labels[members] == FAKE]
    chosen = Chosen(where, len(real), len(fake), confidence)
    fake_from = threshold_above(real, target.fpr, confidence) if len(real) else None
    real_below = threshold_below(fake, target.fnr, confidence) if target.fnr is not None and len(fake) else None
    if fake_from is not None:
        wrong, caught = int((real >= fake_from).sum()), int((fake >= fake_from).sum())
        chosen = replace(
            chosen,
            fake_from=fake_from,
            fpr=wrong / len(real),
            fpr_upper=upper_bound(wrong, len(real), confidence),
            tpr=caught / len(fake) if len(fake) else 0.0,
            tpr_lower=lower_bound(caught, len(fake), confidence) if len(fake) else 0.0,
        )
        real_below = None if real_below is None else min(real_below, fake_from)
    if real_below is not None and real_below > 0:
        missed = int((fake < real_below).sum())
        chosen = replace(
            chosen,
            real_below=real_below,
            fnr=missed / len(fake),
            fnr_upper=upper_bound(missed, len(fake), confidence),
        )
    return chosen


def operating_curve(scores: np.ndarray, labels: np.ndarray, confidence: float) -> list[dict[str, float]]:
    """At thresholds over the whole range: both rates with their one-sided bounds, each for that threshold alone."""
    real, fake = np.sort(scores[labels == REAL]), np.sort(scores[labels == FAKE])
    points = np.unique(
        np.quantile(scores, np.concatenate([np.linspace(0, 0.95, 39), 1 - np.geomspace(0.05, 1e-4, 24)]))
    )
    curve = []
    for threshold in points:
        wrong = len(real) - int(np.searchsorted(real, threshold))
        caught = len(fake) - int(np.searchsorted(fake, threshold))
        curve.append(
            {
                "threshold": float(threshold),
                "fpr": wrong / len(real),
                "fpr_upper": upper_bound(wrong, len(real), confidence),
                "tpr": caught / len(fake) if len(fake) else 0.0,
                "tpr_lower": lower_bound(caught, len(fake), confidence) if len(fake) else 0.0,
            }
        )
    return curve
