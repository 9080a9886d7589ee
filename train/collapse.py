"""Has the encoder collapsed? Then all images have nearly the same embedding, and the loss stays where that leaves it.

With N negatives a term of the contrastive loss is ln(1 + N) when positives and negatives are equally near: both terms
together stay on the plateau 2 ln(1 + N). A run may pass over it at its start; one that falls back onto it while its
embeddings close up has learnt nothing and will not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

NEAR_PLATEAU = 0.02  # of the plateau
CLOSE_COSINE = 0.98  # mean over pairs of images


@dataclass(frozen=True)
class Spread:
    """`cosine`: mean between embeddings of different images; `rank`: how many directions they use (exp of the entropy
    of the spectrum of the centred embeddings).
    """

    cosine: float
    rank: float


def spread(embeddings: np.ndarray) -> Spread:
    """Of embeddings [N, D]; NaN for fewer than two."""
    if len(embeddings) < 2:
        return Spread(math.nan, math.nan)
    rows = embeddings.astype(np.float64)
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    count = len(unit)
    cosine = (float(np.square(unit.sum(axis=0)).sum()) - count) / (count * (count - 1))
    energy = np.square(np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False))
    share = energy[energy > 0] / max(energy.sum(), 1e-300)
    return Spread(cosine, float(np.exp(-(share * np.log(share)).sum())) if len(share) else 1.0)


def plateau(negatives: int) -> float:
    """The loss of an encoder that tells nothing apart."""
    return 2 * math.log(1 + negatives)


def has_collapsed(loss: float, negatives: int, found: Spread) -> bool:
    """On the plateau, with embeddings that have closed up."""
    return loss >= (1 - NEAR_PLATEAU) * plateau(negatives) and found.cosine >= CLOSE_COSINE
