"""Whether the neighbours that a model names are the nearest rows of its bank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_models.weights import FAKE, REAL, Array, Weights, reference_nearest

SIDES = (("real", REAL), ("generated", FAKE))


class Neighbours:
    """Float64 distances from the reference's embeddings [N, D] to the whole bank of `loaded`."""

    def __init__(self, loaded: Weights, embeddings: Array) -> None:
        self._labels = loaded.heads["knn.labels"]
        self._distances = reference_nearest(loaded, embeddings)
        names = loaded.group_names
        self._groups = np.array([names.index(name) for name in loaded.groups] or [-1] * len(self._labels))

    def problem(self, values: Mapping[str, npt.NDArray[Any]], allowed: Array) -> str:
        """What is wrong with outputs `nearest` [N, 4] and `distances` [N, 2], or an empty text.

        `allowed`: how far each embedding [N] may be from the reference's. A distance d is half a square, so that a
        step of e changes it by about e times the root of d; rows nearer to each other than that may change places.
        """
        for column, (side, label) in enumerate(SIDES):
            rows, groups = values["nearest"][:, column], values["nearest"][:, 2 + column]
            if not ((rows >= 0) & (rows < len(self._labels))).all() or not (self._labels[rows] == label).all():
                return f"nearest names rows that are no {side} ones of the bank"
            if not (groups == self._groups[rows]).all():
                return f"nearest names other groups than the {side} rows have"
            least = self._distances[:, self._labels == label].min(axis=1)
            limit = allowed * np.maximum(np.sqrt(least), allowed)
            picked = self._distances[np.arange(len(rows)), rows]
            for what, apart in (
                ("is farther", picked - least),
                ("has a distance that is off", _off(values, column, least)),
            ):
                if not (apart <= limit).all():  # NaN does not pass
                    return f"the nearest {side} row {what} by {apart.max():.1e}"
        return ""


def _off(values: Mapping[str, npt.NDArray[Any]], column: int, least: Array) -> Array:
    off: Array = np.abs(values["distances"][:, column] - least)
    return off
