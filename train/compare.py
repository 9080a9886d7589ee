"""Two or more models on the same images: differences with intervals and tests, paired.

    python -m train.main compare results/first results/second

What two evaluations say of the same image varies together, so a difference is known far better than either value:
DeLong's test, paired, by photograph, and by source beside it (other collections and generators than these); of balanced
accuracy the differences of every photograph. p-values of several pairs are Holm's (Scandinavian J. of Statistics 1979).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from train.data.images import DataError
from train.evaluate import SCORES_FILE
from train.intervals import Interval, auc_difference, balanced_accuracy_difference
from triton_models.weights import FAKE, HEADS, REAL


@dataclass(frozen=True)
class Scores:
    """What `evaluate` wrote to `folder`/scores.csv: the images [N] and their scores [N, heads]."""

    folder: Path
    ids: np.ndarray
    groups: np.ndarray
    labels: np.ndarray
    sources: np.ndarray  # the generator, or the collection of reals
    photographs: np.ndarray
    scores: np.ndarray
    heads: tuple[str, ...]

    def at(self, places: Sequence[int]) -> Scores:
        """These images alone, in this order."""
        rows = np.array(places, dtype=np.int64)
        names = ("ids", "groups", "labels", "sources", "photographs", "scores")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def of(self, head: str) -> np.ndarray:
        """The scores [N] of one head."""
        column: np.ndarray = self.scores[:, self.heads.index(head)]
        return column


def read_scores(folder: Path) -> Scores:
    """Raises DataError where there are none."""
    path = folder / SCORES_FILE
    if not path.is_file():
        raise DataError(f"{path} is not there: name a folder that `train.main evaluate --out` wrote")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    needed = {"id", "group", "label", "generator", "photograph"}
    heads = tuple(head for head in HEADS if rows and head in rows[0])
    if not heads or not needed <= rows[0].keys():
        raise DataError(f"{path} has no scores by photograph: run `train.main evaluate` again")
    ids, groups, photographs = (
        np.array([row[name] for row in rows], dtype=np.str_) for name in ("id", "group", "photograph")
    )
    labels = np.array([FAKE if row["label"] == "fake" else REAL for row in rows], dtype=np.int64)
    sources = np.array([f"{row['label']}/{row['generator']}" for row in rows], dtype=np.str_)
    scores = np.array([[float(row[head]) for head in heads] for row in rows], dtype=np.float64)
    return Scores(folder, ids, groups, labels, sources, photographs, scores, heads)


def in_common(first: Scores, second: Scores) -> tuple[Scores, Scores]:
    """The images of both, by id and group. Raises DataError where these lack a class."""
    keys = [[*zip(one.groups, one.ids, strict=True)] for one in (first, second)]
    place = {key: index for index, key in enumerate(keys[1])}
    pairs = [(index, place[key]) for index, key in enumerate(keys[0]) if key in place]
    both = first.at([one for one, _ in pairs]), second.at([other for _, other in pairs])
    if len(set(both[0].labels.tolist())) < 2 or not np.array_equal(both[0].labels, both[1].labels):
        raise DataError(
            f"{first.folder} and {second.folder} have {len(pairs)} images in common, and no two classes among them: "
            "paired tests need the same images"
        )
    return both


def compare(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """A row for each pair, group and head: values of both, differences with interval and p, Holm's p over all rows of a
    head. Raises DataError.
    """
    if len(folders) < 2:
        raise DataError("a comparison needs two evaluations: name two folders")
    read = [read_scores(folder) for folder in folders]
    rows: list[dict[str, Any]] = []
    for first, second in combinations(read, 2):
        both = in_common(first, second)
        for group in sorted(set(both[0].groups.tolist())):
            places = np.flatnonzero(both[0].groups == group).tolist()
            inside = both[0].at(places), both[1].at(places)
            if len(set(inside[0].labels.tolist())) == 2:
                rows += [_row(inside[0], inside[1], group, *heads) for heads in _pairs(first, second)]
    for head in dict.fromkeys(row["head"] for row in rows):
        of_head = [row for row in rows if row["head"] == head]
        for metric in ("auc", "balanced_accuracy"):
            adjusted = holm([row[metric]["p"] for row in of_head])
            for row, p in zip(of_head, adjusted, strict=True):
                row[metric]["p_holm"] = p
    return rows


def _pairs(first: Scores, second: Scores) -> list[tuple[str, str]]:
    """The heads that both have; of a detector without any of them its first, against each of the other's first."""
    both = [(head, head) for head in first.heads if head in second.heads]
    return both or [(first.heads[0], second.heads[0])]


def _row(first: Scores, second: Scores, group: str, head: str, other_head: str) -> dict[str, Any]:
    labels = first.labels
    one, other = first.scores[:, first.heads.index(head)], second.scores[:, second.heads.index(other_head)]
    by_source = auc_difference(labels, one, other, first.sources, by_source=True)
    called = one >= 0.5, other >= 0.5
    return {
        "first": str(first.folder),
        "second": str(second.folder),
        "group": group,
        "head": head if head == other_head else f"{head}, {other_head}",
        "images": len(labels),
        "auc": _told(auc_difference(labels, one, other, first.photographs)),
        "auc_by_source": _told(by_source),
        "balanced_accuracy": _told(balanced_accuracy_difference(labels, *called, first.photographs)),
    }


def _told(found: tuple[float, Interval, float]) -> dict[str, float]:
    difference, (low, high), p = found
    return {"difference": difference, "low": low, "high": high, "p": p}


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted for as many tests as have a p-value; NaN stays."""
    p = np.array(p_values, dtype=np.float64)
    order = [index for index in np.argsort(p) if np.isfinite(p[index])]
    adjusted, largest = np.full(len(p), np.nan), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, float(p[index]) * (len(order) - rank)))
        adjusted[index] = largest
    return adjusted.tolist()
