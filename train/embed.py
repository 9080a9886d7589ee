"""Embeddings of labelled images through a frozen backbone, from the crop of inference; and the linear probe on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from train.data.images import BadImage, decode_image
from train.data.records import Labelled, held_out
from train.model import Backbone
from train.transforms.crops import center_crop

BATCH = 64
Degrade = Callable[[Image.Image], Image.Image]


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
    backbone: Backbone,
    images: Sequence[Labelled],
    degrade: Degrade | None = None,
    *,
    threads: int = 4,
    advance: Callable[[int], object] = int,
) -> Embedded:
    """Decode, degrade (if asked), take the central crop and embed. `advance` is told how many images each batch had."""
    kept: list[Labelled] = []
    failed: list[str] = []
    rows: list[np.ndarray] = []

    def crop(image: Labelled) -> np.ndarray | str:
        try:
            pixels = decode_image(image.key.read())
            return center_crop(pixels if degrade is None else degrade(pixels), backbone.size_px)
        except (OSError, BadImage) as error:
            return f"{image.key.path}: {error}"

    with ThreadPoolExecutor(threads) as pool:
        for batch in _batches(images):
            results = list(pool.map(crop, batch))
            good = [(image, result) for image, result in zip(batch, results, strict=True) if isinstance(result, np.ndarray)]
            failed += [result for result in results if isinstance(result, str)]
            if good:
                pixels = torch.from_numpy(np.stack([result for _, result in good])).permute(0, 3, 1, 2)
                rows.append(backbone.embed(pixels).numpy())
                kept += [image for image, _ in good]
            advance(len(batch))
    return Embedded(kept, np.concatenate(rows) if rows else np.zeros((0, 1), np.float32), failed)


def _batches(images: Sequence[Labelled]) -> Iterator[Sequence[Labelled]]:
    for start in range(0, len(images), BATCH):
        yield images[start : start + BATCH]


def linear_probe(embedded: Embedded) -> float:
    """AUC of a logistic regression fitted on one half of the images (chosen by id) and scored on the other; NaN where a half lacks a class."""
    second = np.array([held_out(f"probe {image.id}", 0.5) for image in embedded.images], dtype=bool)
    labels = embedded.labels
    if len({*labels[~second]}) < 2 or len({*labels[second]}) < 2:
        return float("nan")
    probe = LogisticRegression(C=0.316, max_iter=1500, class_weight="balanced").fit(embedded.embeddings[~second], labels[~second])
    return float(roc_auc_score(labels[second], probe.decision_function(embedded.embeddings[second])))
