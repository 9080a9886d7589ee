"""What is left of a detector after what happens to images on their way: sweeps, chains and re-sharing, worst first.

Every tier is measured on the same images of both classes, with intervals, with what it costs against the images as
received (paired), and for each generator. Chains and profiles are drawn the same for both classes: the i-th real and
the i-th fake meet the same distortions, so that these say nothing about the label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from train.data.records import Labelled, limit_per_class
from train.degrade import PROFILES, SWEEPS, Degrade, chain
from train.embed import Embedded, Passes
from train.heads import Calibration, Scorer
from train.intervals import auc_difference, auc_interval, auc_of
from train.metrics import with_intervals
from train.progress import counting
from triton_models.weights import FAKE, REAL

CHAINS, LONGEST_CHAIN = "distortions in a chain", 5
RESHARED = "re-shared as by"
Tier = tuple[str, str, Degrade | Mapping[str, Degrade] | None]


def tiers(images: Sequence[Labelled]) -> Iterator[Tier]:
    """(kind, strength, degradation) of each; `none` first."""
    yield "none", "", None
    for kind, strengths in SWEEPS.items():
        for strength, degrade in strengths.items():
            yield kind, strength, degrade
    for profile, degrade in PROFILES.items():
        yield RESHARED, profile, degrade
    for length in range(1, LONGEST_CHAIN + 1):
        yield CHAINS, str(length), {image.id: chain(draw, length) for image, draw in draws(images)}


def draws(images: Sequence[Labelled]) -> Iterator[tuple[Labelled, int]]:
    """Each image with the number of its draw: its place in its class."""
    seen = {REAL: 0, FAKE: 0}
    for image in images:
        yield image, seen[image.label]
        seen[image.label] += 1


def sweep(
    passes: Passes,
    heads: Scorer,
    images: Sequence[Labelled],
    photographs: np.ndarray,
    *,
    most: int,
    calibration: Calibration | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """{kind: {strength: {head: metrics}}} on at most `most` images of each class; `photographs` [N] are those of
    `images`.

    Beside what train.metrics.with_intervals gives, a head has `lost` (the AUC against the images as received, paired)
    and `generators`.
    """
    name_of = {id(image): name for image, name in zip(images, photographs, strict=True)}
    chosen = limit_per_class(images, most)
    result: dict[str, Any] = {}
    plain: tuple[Embedded, np.ndarray] | None = None
    for kind, strength, degrade in tiers(chosen):
        with counting(console, f"{kind} {strength}", len(chosen)) as advance:
            embedded = passes.embed(f"{kind} {strength}", chosen, degrade, advance=advance)
        scores = heads.scores(embedded.embeddings, calibration)
        plain = plain or (embedded, scores)
        names = np.array([name_of[id(image)] for image in embedded.images], dtype=np.str_)
        by_head = {
            head: tier(embedded, scores[:, index], names, (plain[0], plain[1][:, index]))
            for index, head in enumerate(heads.names)
        }
        result.setdefault(kind, {})[strength] = by_head
        if console is not None:
            first = heads.names[0]
            lines = [f"{kind} {strength}: left out: {line}" for line in embedded.failed]
            lines.append(f"robustness: {kind} {strength}: {first} AUC {by_head[first]['auc']['value']:.3f}")
            console.print(*lines, sep="\n", highlight=False, markup=False, soft_wrap=True)
    return result


def tier(
    embedded: Embedded, scores: np.ndarray, photographs: np.ndarray, plain: tuple[Embedded, np.ndarray]
) -> dict[str, Any]:
    """Metrics of one head on degraded images; `plain` has the images as received and their scores [N]."""
    labels = embedded.labels
    made: dict[str, Any] = with_intervals(labels, scores, photographs, resamples=0, null=False)
    place = {id(image): index for index, image in enumerate(plain[0].images)}
    kept = [index for index, image in enumerate(embedded.images) if id(image) in place]
    before = plain[1][[place[id(embedded.images[index])] for index in kept]]
    if len(set(labels[kept].tolist())) == 2:
        value, (low, high), p = auc_difference(labels[kept], before, scores[kept], photographs[kept])
        made["lost"] = {"value": value, "low": low, "high": high, "p": p}
    generators = np.array([image.generator for image in embedded.images], dtype=np.str_)
    made["generators"] = {}
    for name in sorted(set(generators[labels == FAKE].tolist())):
        of = (labels == REAL) | (generators == name)
        if len(set(labels[of].tolist())) == 2:
            low, high = auc_interval(labels[of], scores[of], photographs[of])
            value = auc_of(labels[of], scores[of])
            fakes = int((labels[of] == FAKE).sum())
            made["generators"][name] = {"value": value, "low": low, "high": high, "fakes": fakes}
    return made


def worst_first(sweeps: Mapping[str, Any], head: str = "linear") -> list[dict[str, Any]]:
    """The tiers of `sweep` by the AUC of `head`, lowest first: kind, strength, auc, lost and the generator with the
    lowest AUC among those with an interval (else among all).
    """
    rows = []
    for kind, strengths in sweeps.items():
        for strength, by_head in strengths.items():
            entry = by_head.get(head)
            if entry is None or entry["auc"]["value"] is None:
                continue
            found = list(entry["generators"].items())
            found = [pair for pair in found if pair[1]["low"] is not None and np.isfinite(pair[1]["low"])] or found
            worst = min(found, key=lambda pair: pair[1]["value"], default=None)
            row = {"kind": kind, "strength": strength, "auc": entry["auc"], "lost": entry.get("lost")}
            rows.append(row | {"worst": worst and {"generator": worst[0], **worst[1]}})
    return sorted(rows, key=lambda row: row["auc"]["value"])
