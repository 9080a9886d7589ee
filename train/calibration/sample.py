"""The sample to calibrate on: scores of photographs, each counted once, none of which anything was fitted on.

Cuts and copies of one photograph are one: cuts that `data equalise` made are known by their names, the same bytes by
their hash, and what was encoded or scaled again by a perceptual hash. Of a photograph the worst copy counts: the
highest score of a real one, the lowest of a generated one.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from train.calibration.reviews import of_queue
from train.data.copies import merge_copies
from train.data.images import DataError
from train.data.look import Look, look_at
from train.data.open import open_source
from train.data.records import Labelled
from train.detector_scores import open_detector
from train.embed import Embedder, embed_images
from train.evaluate import RESULTS, SCORES_FILE, heads_of
from train.fitted import HASH_DIGITS, hashes_on, read_card
from train.heads import Heads, Scorer
from train.model import code_backbone
from train.progress import counting
from triton_models import weights
from triton_models.detector import SPEC_FILE, version_of
from triton_models.weights import FAKE, HEADS
from worker.contract import ImageInfo


@dataclass(frozen=True)
class Seen:
    """One image: whose photograph it is, what its header says, and its scores ([heads], once they are known)."""

    photograph: str
    label: int
    info: ImageInfo
    scores: np.ndarray


@dataclass(frozen=True)
class Sample:
    """Photographs: `scores` [N, heads] of the worst copy of each, `labels` [N], `infos` of that copy.

    `photographs` [N]: their names, of those known by their bytes 16 digits of the SHA-256. `left_out`: images by
    reason; `images`: how many were counted, copies too. `queue`: of reviews that they come from, and `decided`: how
    many of its images had been decided to be what. `detector`: whose scores they are, empty for `code`'s.
    """

    model_version: str
    labels: np.ndarray
    scores: np.ndarray
    infos: list[ImageInfo]
    images: int
    left_out: dict[str, int] = field(default_factory=dict)
    photographs: list[str] = field(default_factory=list)
    queue: str | None = None
    decided: dict[str, int] = field(default_factory=dict)
    heads: tuple[str, ...] = HEADS
    detector: str = ""

    def column(self, head: str) -> np.ndarray:
        """Scores [N] of one head. Raises DataError where there is no such head."""
        if head not in self.heads:
            raise DataError(f"--head {head}: {self.detector or 'code'} has {', '.join(self.heads)}")
        return self.scores[:, self.heads.index(head)]

    def fact(self, head: str) -> str:
        """How rules name this head."""
        return f"detectors.{self.detector}.{head}" if self.detector else f"scores.{head}"

    def of(self, label: int) -> int:
        return int((self.labels == label).sum())


def read_sample(
    folder: Path | None,
    data: Path | None,
    results: Path | None,
    *,
    detector: Path | None = None,
    graph: str | None = None,
    queue: str | None = None,
    console: Console | None = None,
) -> Sample:
    """From images (`data`) through the weights in `folder` or through a `detector` (`graph`: onnx:FILE where its folder
    lacks it), or from the `results` of an evaluation.

    `queue`: of an export of reviews (reviews.py). Raises DataError, WeightsError.
    """
    if detector is not None and folder is not None:
        raise DataError("give either --weights DIR or --detector DIR: thresholds are of one of them")
    if (data is None) == (results is None):
        raise DataError("give either --data DIR or --results DIR")
    if results is not None:
        if queue is not None:
            raise DataError("--queue names a queue of the reviews in --data, not of --results")
        return from_results(results, folder or detector)
    if data is None or (folder is None and detector is None):
        raise DataError("--data DIR needs --weights DIR (or --detector DIR), through which its images are scored")
    return from_folder(Scoring.of(folder, detector, graph), data, queue=queue, console=console)


@dataclass(frozen=True)
class Scoring:
    """What scores the images: `code`'s weights or a detector, and the photographs that it was fitted on."""

    version: str
    backbone: Embedder
    heads: Scorer
    known: set[str]
    detector: str = ""

    @classmethod
    def of(cls, folder: Path | None, detector: Path | None, graph: str | None) -> Scoring:
        """Raises WeightsError."""
        known = hashes_on(read_card(detector or folder or Path()))
        if detector is not None:
            body, heads = open_detector(detector, graph)
            return cls(body.loaded.version, body, heads, known, body.loaded.spec.name)
        assert folder is not None, "one of both is given"
        return cls(weights.load(folder).version, code_backbone(folder), Heads.load(folder), known)


def from_folder(scoring: Scoring, data: Path, *, queue: str | None = None, console: Console | None = None) -> Sample:
    """The images in `data` as they are scored. Raises DataError, WeightsError."""
    known = scoring.known
    source = open_source(data, console=console)
    images = source.labelled()
    left_out: Counter[str] = Counter({kind: count for kind, count in source.problems.items() if count})
    reviewed = of_queue(data, images, queue)
    if reviewed is not None:
        images = reviewed.images
        left_out.update(reviewed.left_out)
    kept: list[Labelled] = []
    looks: list[Look] = []
    for image, look in zip(images, look_at(images, console), strict=True):
        if isinstance(look, str):
            left_out[look] += 1
        elif look.photograph in known or look.sha256[:HASH_DIGITS] in known:
            left_out["fitted on"] += 1
        else:
            kept.append(image)
            looks.append(look)
    with counting(console, "images", len(kept)) as advance:
        embedded = embed_images(scoring.backbone, kept, advance=advance)
    left_out["corrupt"] += len(embedded.failed)
    place = {id(image): index for index, image in enumerate(kept)}
    scored = [looks[place[id(image)]] for image in embedded.images]
    names = merge_copies([look.photograph for look in scored], [look.fingerprint for look in scored])
    scores = scoring.heads.scores(embedded.embeddings)
    seen = [
        Seen(name, image.label, look.info, row)
        for name, image, look, row in zip(names, embedded.images, scored, scores, strict=True)
    ]
    sample = _counted_once(scoring.version, seen, left_out, scoring.heads.names, scoring.detector)
    return sample if reviewed is None else replace(sample, queue=queue, decided=dict(sorted(reviewed.decided.items())))


def from_results(results: Path, folder: Path | None) -> Sample:
    """The scores that `evaluate` wrote into `results`; `folder`: the weights, whose card says what to leave out.

    Raises DataError for results without the columns, or of another model than the weights.
    """
    try:
        document = json.loads((results / RESULTS).read_text())
        about, heads = document["about"], heads_of(document)
        with (results / SCORES_FILE).open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{results}: no results of `train.main evaluate --weights` ({error}); run it, and name its --out"
        ) from error
    version = str(about.get("model version", ""))
    if not version or (folder is not None and _version(folder) != version):
        raise DataError(f"{results}: results of model {version or 'unknown'}, not of the weights that are given")
    if rows and "photograph" not in rows[0]:
        raise DataError(f"{results / SCORES_FILE}: written by an earlier version; run `train.main evaluate` again")
    known = hashes_on(read_card(folder)) if folder else set()
    left_out: Counter[str] = Counter()
    seen = []
    for row in rows:
        if not row["width"]:
            left_out[row["format"]] += 1
            continue
        if row["photograph"][:HASH_DIGITS] in known:
            left_out["fitted on"] += 1
            continue
        info = ImageInfo(
            format=row["format"],
            width=int(row["width"]),
            height=int(row["height"]),
            bytes=int(row["bytes"]),
            jpeg_quality=int(row["jpeg_quality"]) if row["jpeg_quality"] else None,
        )
        scores = np.array([float(row[head]) for head in heads])
        seen.append(Seen(row["photograph"], int(row["label"] == "fake"), info, scores))
    return _counted_once(version, seen, left_out, heads, str(about.get("detector", "")))


def _version(folder: Path) -> str:
    """Of a weights folder or a detector's, whose graph need not be there. Raises WeightsError."""
    return version_of(folder) if (folder / SPEC_FILE).is_file() else weights.load(folder).version


def _counted_once(
    version: str, seen: Sequence[Seen], left_out: Counter[str], heads: tuple[str, ...] = HEADS, detector: str = ""
) -> Sample:
    worst: dict[tuple[str, int], Seen] = {}
    for image in seen:
        key = (image.photograph, image.label)
        first = worst.get(key)
        if first is None:
            worst[key] = image
        else:
            pick = np.minimum if image.label == FAKE else np.maximum
            worst[key] = replace(first, scores=pick(first.scores, image.scores))
    kept = list(worst.values())
    return Sample(
        version,
        np.array([image.label for image in kept], dtype=np.int64),
        np.array([image.scores for image in kept]).reshape(-1, len(heads)),
        [image.info for image in kept],
        len(seen),
        dict(sorted((+left_out).items())),
        [image.photograph for image in kept],
        heads=heads,
        detector=detector,
    )
