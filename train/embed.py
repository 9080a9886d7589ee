"""Embeddings of labelled images through a frozen backbone, from its view of them; and the linear probe on them.

`Passes` keeps what it has embedded in a folder, so that an evaluation of hours that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from train.data.images import decode_image
from train.data.records import Labelled, part_of, photograph
from triton_models.files import replacing

BATCH = 64
KEPT_AT_ONCE = 512  # images; what a stop loses at most
PROBE_PARTS = 5
UNFINISHED = ".unfinished-"
Degrade = Callable[[Image.Image], Image.Image]


class Embedder(Protocol):
    """A frozen model: a picture becomes its view, uint8 [H, W, 3], and views uint8 [N, 3, H, W] become embeddings,
    float32 [N, D]. `digest`: of all that decides these.
    """

    @property
    def name(self) -> str: ...

    def view(self, picture: Image.Image) -> np.ndarray: ...

    def digest(self) -> bytes: ...

    def embed(self, images: torch.Tensor) -> torch.Tensor: ...


@dataclass
class Embedded:
    """`embeddings` float32 [N, D] of `images` (those that could be read); `failed` has `path: why` of the others."""

    images: list[Labelled]
    embeddings: np.ndarray
    failed: list[str]

    @property
    def labels(self) -> np.ndarray:
        return np.array([image.label for image in self.images], dtype=np.int64)


def embed_images(
    backbone: Embedder,
    images: Sequence[Labelled],
    degrade: Degrade | Mapping[str, Degrade] | None = None,
    *,
    threads: int = 4,
    advance: Callable[[int], object] = int,
) -> Embedded:
    """Decode, degrade (if asked; each by its id where they are told apart), make the view and embed. `advance` is told
    how many images each batch had.
    """
    kept: list[Labelled] = []
    failed: list[str] = []
    rows: list[np.ndarray] = []

    def crop(image: Labelled) -> np.ndarray | str:
        try:
            pixels = decode_image(image.key.read())
            change = degrade[image.id] if isinstance(degrade, Mapping) else degrade
            return backbone.view(pixels if change is None else change(pixels))
        except (OSError, ValueError) as error:  # BadImage, or a degradation that this image does not admit
            return f"{image.key.path}: {error}"

    with ThreadPoolExecutor(threads) as pool:
        for batch in _batches(images):
            results = list(pool.map(crop, batch))
            good = [
                (image, result) for image, result in zip(batch, results, strict=True) if isinstance(result, np.ndarray)
            ]
            failed += [result for result in results if isinstance(result, str)]
            if good:
                pixels = torch.from_numpy(np.stack([result for _, result in good])).permute(0, 3, 1, 2)
                rows.append(backbone.embed(pixels).numpy())
                kept += [image for image, _ in good]
            advance(len(batch))
    return Embedded(kept, np.concatenate(rows) if rows else np.zeros((0, 1), np.float32), failed)


def joined(parts: Sequence[Embedded]) -> Embedded:
    """The embeddings of several parts, one behind the other; parts without any image add none."""
    rows = [part.embeddings for part in parts if part.images]
    return Embedded(
        [image for part in parts for image in part.images],
        np.concatenate(rows) if rows else parts[0].embeddings,
        [line for part in parts for line in part.failed],
    )


class Passes:
    """Embeds images chunk by chunk and keeps each chunk below `out`, under a name made from the backbone and the
    images.

    `finish` removes what was kept, also that of stopped evaluations of other models or images.
    """

    def __init__(self, backbone: Embedder, images: Sequence[Labelled], out: Path) -> None:
        self._backbone, self._out = backbone, out
        self._folder = out / f"{UNFINISHED}{_digest(backbone, images)}"
        self._folder.mkdir(parents=True, exist_ok=True)

    def embed(
        self,
        name: str,
        images: Sequence[Labelled],
        degrade: Degrade | Mapping[str, Degrade] | None = None,
        *,
        advance: Callable[[int], object] = int,
    ) -> Embedded:
        """As `embed_images`, for the pass `name`: always the same images and degradation."""
        done = [
            self._chunk(name, start, images[start : start + KEPT_AT_ONCE], degrade, advance)
            for start in range(0, max(1, len(images)), KEPT_AT_ONCE)
        ]
        return Embedded(
            [image for part in done for image in part.images],
            np.concatenate([part.embeddings for part in done if part.images] or [done[0].embeddings]),
            [line for part in done for line in part.failed],
        )

    def finish(self) -> None:
        for folder in self._out.glob(f"{UNFINISHED}*"):
            shutil.rmtree(folder)

    def _chunk(
        self,
        name: str,
        start: int,
        images: Sequence[Labelled],
        degrade: Degrade | Mapping[str, Degrade] | None,
        advance: Callable[[int], object],
    ) -> Embedded:
        path = self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}-{start:08d}.npz"
        if path.exists():
            with np.load(path) as kept:
                advance(len(images))
                return Embedded(
                    [images[index] for index in kept["kept"]], kept["embeddings"], json.loads(str(kept["failed"]))
                )
        embedded = embed_images(self._backbone, images, degrade, advance=advance)
        place = {id(image): index for index, image in enumerate(images)}
        kept_places = np.array([place[id(image)] for image in embedded.images], dtype=np.int64)
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, kept=kept_places, embeddings=embedded.embeddings, failed=json.dumps(embedded.failed))
        return embedded


def _digest(backbone: Embedder, images: Sequence[Labelled]) -> str:
    digest = hashlib.sha256(backbone.digest())
    for image in images:
        digest.update(repr((image.id, image.key, image.label)).encode())
    return digest.hexdigest()[:16]


def _batches(images: Sequence[Labelled]) -> Iterator[Sequence[Labelled]]:
    for start in range(0, len(images), BATCH):
        yield images[start : start + BATCH]


@dataclass(frozen=True)
class Probe:
    """A linear probe's AUC, and what it rests on: for each image its label, its score by the probe that was fitted
    without its photograph, and that photograph.
    """

    auc: float
    labels: np.ndarray
    scores: np.ndarray
    photographs: np.ndarray

    def is_paired_with(self, other: Probe) -> bool:
        """Whether both are of the same images, and of some."""
        return bool(len(self.labels)) and np.array_equal(self.photographs, other.photographs)


def linear_probe(embedded: Embedded) -> Probe:
    """Logistic regressions, each fitted on all but a fifth of the photographs and scored on that fifth, as a rank among
    its images (regressions have scales of their own); NaN where one would lack a class.
    """
    labels, names = embedded.labels, [photograph(image) for image in embedded.images]
    part = np.array([part_of(f"probe {name}", PROBE_PARTS) for name in names], dtype=np.int64)
    scores = np.zeros(len(labels))
    for number in range(PROBE_PARTS):
        apart = part == number
        if len({*labels[~apart]}) < 2:
            return Probe(float("nan"), labels[:0], np.zeros(0), np.zeros(0))
        if apart.any():
            probe = LogisticRegression(C=0.316, max_iter=1500, class_weight="balanced").fit(
                embedded.embeddings[~apart], labels[~apart]
            )
            ranks = rankdata(probe.decision_function(embedded.embeddings[apart]))
            scores[apart] = ranks / (1 + apart.sum())
    return Probe(float(roc_auc_score(labels, scores)), labels, scores, np.array(names))
