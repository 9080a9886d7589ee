"""What the files alone give away: a probe that sees format, size and compression of an image, and none of its content.

A detector measured on images that this probe tells apart may have learnt the collection instead of the pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.tree import DecisionTreeClassifier

from worker.contract import ImageInfo

LOUD = 0.6  # balanced accuracy from which what is measured may be the collection
MIN_PER_CLASS = 25
_FOLDS = 5
_FORMATS = ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif")


def _format(info: ImageInfo) -> list[float]:
    return [float(info.format == name) for name in _FORMATS]


def _size(info: ImageInfo) -> list[float]:
    return [np.log(info.width), np.log(info.height), np.log(info.width / info.height)]


def _compression(info: ImageInfo) -> list[float]:
    quality = 101.0 if info.jpeg_quality is None else float(info.jpeg_quality)
    return [np.log(info.bytes / (info.width * info.height)), quality]


PROPERTIES: dict[str, Callable[[ImageInfo], list[float]]] = {
    "format": _format,
    "size": _size,
    "compression": _compression,
    "all of them": lambda info: [*_format(info), *_size(info), *_compression(info)],
}


def probe(infos: Sequence[ImageInfo], labels: np.ndarray, photographs: np.ndarray) -> dict[str, float | None]:
    """Balanced accuracy with which each property tells real from generated, on photographs that a small tree was not
    fitted on; None with too few of a class.
    """
    counts = [len(np.unique(photographs[labels == label])) for label in (0, 1)]
    if min(counts) < MIN_PER_CLASS:
        return dict.fromkeys(PROPERTIES, None)
    found: dict[str, float | None] = {}
    for name, features in PROPERTIES.items():
        rows = np.array([features(info) for info in infos])
        tree = DecisionTreeClassifier(max_depth=4, min_samples_leaf=5, class_weight="balanced", random_state=0)
        folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=0)
        guessed = cross_val_predict(tree, rows, labels, groups=photographs, cv=folds)
        found[name] = round(float(balanced_accuracy_score(labels, guessed)), 4)
    return found
