"""Which images of an export of reviews (`python -m worker reviews export DIR`) a promise may stand on.

`DIR/manifest.jsonl` has a line for each image: the review as JSON, and `path` below DIR. Reviewed images are no sample
of the uploads: a queue holds what its rule sends there. One queue is therefore named, best one that draws from all
decisions alike; what the policy had decided of its images is counted, so that a queue of the contested alone is seen.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from train.data.images import DataError
from train.data.records import Labelled

MANIFEST = "manifest.jsonl"
DECISIONS = ("real", "review", "fake")


@dataclass(frozen=True)
class Reviewed:
    """`images` of the queue, `left_out` by reason, and how many the policy had decided to be what (`decided`)."""

    images: list[Labelled]
    left_out: Counter[str]
    decided: Counter[str]


def never_decided(decided: Mapping[str, int]) -> list[str]:
    """Decisions that no image of the queue had: the promise says nothing of such uploads."""
    return [decision for decision in DECISIONS if not decided.get(decision)]


def of_queue(folder: Path, images: Sequence[Labelled], queue: str | None) -> Reviewed | None:
    """Those of `images` that were reviewed in `queue`; None where `folder` is no export of reviews.

    Raises DataError for a queue that is missing or unknown, with those that there are, and for a damaged manifest.
    """
    if not (folder / MANIFEST).is_file():
        if queue is not None:
            raise DataError(f"--queue {queue}: {folder} has no {MANIFEST}, so nothing there was reviewed in a queue")
        return None
    lines = _lines(folder / MANIFEST)
    queues = Counter(str(line.get("queue")) for line in lines.values())
    if queue not in queues:
        there = ", ".join(f"{name} ({count} images)" for name, count in sorted(queues.items()))
        asked = "an export of reviews: name the queue to calibrate on" if queue is None else f"no queue {queue}"
        raise DataError(f"{folder}: {asked} (--queue), best one that draws from all decisions; there are {there}")
    kept: list[Labelled] = []
    left_out: Counter[str] = Counter()
    decided: Counter[str] = Counter()
    for image in images:
        line = lines.get(PurePosixPath(Path(image.key.path).relative_to(folder)))
        if line is None:
            left_out["not in the manifest"] += 1
        elif line.get("golden"):
            left_out["golden items"] += 1
        elif line.get("queue") != queue:
            left_out["other queues"] += 1
        else:
            kept.append(image)
            verdict = line.get("verdict")
            decided[str(verdict.get("decision")) if isinstance(verdict, dict) else "unknown"] += 1
    return Reviewed(kept, left_out, decided)


def _lines(path: Path) -> dict[PurePosixPath, dict[str, Any]]:
    found: dict[PurePosixPath, dict[str, Any]] = {}
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            line = json.loads(text)
            found.setdefault(PurePosixPath(line["path"]), line)  # copies of the same bytes are one file
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}: no review with a path ({type(error).__name__}: {error})") from None
    if not found:
        raise DataError(f"{path}: empty")
    return found
