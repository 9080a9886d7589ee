"""The nearest rows of the model's bank, as the server says them: outputs `nearest` and `distances`, parameter `groups`.

They are evidence and nothing else: whatever is wrong with them leaves fields null and fails no image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from worker.evidence import Nearest, Neighbour

OUTPUTS = ("nearest", "distances")
_MAX_CHARACTERS = 256  # of a label in a verdict
_NONE = Neighbour()


def groups_of(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names of the bank's groups by a model's configuration, or None where the model tells no neighbours."""
    if not set(OUTPUTS) <= {output.get("name") for output in config.get("output", [])}:
        return None
    return _names(config.get("parameters", {}).get("groups", {}).get("string_value", ""))


@lru_cache(maxsize=8)
def _names(text: str) -> tuple[str, ...]:
    """Asked after every call, and the same for as long as a model is served."""
    try:
        found = json.loads(text or "[]")
    except ValueError:
        return ()
    return tuple(str(name)[:_MAX_CHARACTERS] for name in found) if isinstance(found, list) else ()


def to_nearest(rows: object, distances: object, count: int, groups: Sequence[str]) -> tuple[Nearest, ...]:
    """Neighbours of `count` images from `nearest` int32 [N, 4] (rows of the bank: real, fake; groups: real, fake) and
    `distances` float32 [N, 2]. Empty where the outputs are not of that form.
    """
    if not isinstance(rows, np.ndarray) or rows.shape != (count, 4) or rows.dtype != np.int32:
        return ()
    if not isinstance(distances, np.ndarray) or distances.shape != (count, 2) or distances.dtype != np.float32:
        return ()
    return tuple(
        Nearest(
            real=_neighbour(row[0], row[2], distance[0], groups), fake=_neighbour(row[1], row[3], distance[1], groups)
        )
        for row, distance in zip(rows.tolist(), distances, strict=True)
    )


def _neighbour(row: int, group: int, distance: np.float32, groups: Sequence[str]) -> Neighbour:
    if row < 0 or not 0 <= distance <= 2 + 1e-3:  # NaN is none either; float32 may round a little past 2
        return _NONE
    label = groups[group] if 0 <= group < len(groups) else None
    # The shortest decimal that is this float32, as of scores.
    return Neighbour(distance=min(float(str(distance)), 2.0), label=label)
