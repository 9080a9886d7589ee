"""`train.main calibrate`: from a sample and what may be afforded to a policy and its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.calibration.bounds import needed
from train.calibration.reviews import never_decided
from train.calibration.sample import Sample
from train.calibration.slices import By
from train.calibration.thresholds import Target, TooFewImages, choose, for_precision
from train.calibration.write import card, facts_of, page_html, policy_text, write
from train.data.images import DataError
from triton_models.weights import FAKE, REAL


@dataclass(frozen=True)
class Asked:
    """What may be afforded: a false-positive rate, or a precision where `prevalence` of all images are generated.

    `fnr` None: as the false-positive rate where the sample carries it, else no image is called real.
    """

    fpr: float | None
    precision: float | None = None
    prevalence: float | None = None
    fnr: float | None = None
    confidence: float = 0.95
    head: str = "linear"

    def check(self) -> None:
        """Raises DataError for rates that contradict each other."""
        if (self.fpr is None) == (self.precision is None):
            raise DataError("give either --target-fpr, or --target-precision with --prevalence")
        if (self.precision is None) != (self.prevalence is None):
            raise DataError("--target-precision and --prevalence (the share of generated images) go together")


def calibrate(
    sample: Sample, asked: Asked, out: Path, by: Sequence[By] = (), name: str = "calibrated"
) -> dict[str, Any]:
    """Write the policy `out` and its page; returns what is on the page as JSON.

    Raises TooFewImages, and writes nothing, where the sample cannot support it; DataError for what contradicts itself.
    """
    asked.check()
    target = Target(asked.fpr or 0.0, asked.fnr or asked.fpr, asked.confidence, asked.head)
    if asked.precision is not None and asked.prevalence is not None:
        target, chosen = for_precision(sample, asked.precision, asked.prevalence, target)
    else:
        chosen = choose(sample, target, by)
    if asked.fnr is not None and all(entry.real_below is None for entry in chosen):
        raise TooFewImages(
            f"no threshold calls images real with at most {asked.fnr:.3%} of the generated ones among them at "
            f"{asked.confidence:.1%} confidence: {needed(asked.fnr, asked.confidence)} generated images that nothing "
            f"was fitted on are needed, here are {sample.of(FAKE)}; without --target-fnr none is called real"
        )
    text = policy_text(name, sample, target, chosen)
    page, about = write(out, text, page_html(name, sample, target, chosen, text), card(sample, text))
    return {
        "policy": str(out),
        "page": str(page),
        "card": str(about),
        "detector": sample.detector or None,
        "model_version": sample.model_version,
        "target_fpr": target.fpr,
        "confidence": target.confidence,
        "images": sample.images,
        "images_real": sample.of(REAL),
        "images_fake": sample.of(FAKE),
        "left_out": sample.left_out,
        "queue": sample.queue,
        "decided": sample.decided,
        "never_decided": [] if sample.queue is None else never_decided(sample.decided),
        "slices": {entry.where.name: facts_of(entry) for entry in chosen},
    }
