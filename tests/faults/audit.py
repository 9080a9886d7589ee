"""What the outside may count on, checked from the outside: every record has one end, and the right one.

findings = audit(sent, verdicts, rejections, committed)      # empty: nothing lost, doubled, wrong or unjustly rejected
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TOLERANCE = 1e-3  # scores of equal pixels, in whatever batch they were computed


@dataclass(frozen=True)
class Sent:
    """An image that was sent, and what it must score."""

    image_id: str
    sha256: str
    linear: float


def audit(
    sent: Sequence[Sent],
    verdicts: Iterable[Mapping[str, Any]],
    rejections: Mapping[str, str],
    committed: Mapping[Any, tuple[int, int]],
) -> list[str]:
    """What is wrong. `rejections`: reasons by id; `committed`: of each partition the committed offset and its end."""
    by_id: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for verdict in verdicts:
        by_id[str(verdict["image_id"])].append(verdict)
    known = {one.image_id for one in sent}
    found = [f"invented: {image_id}" for image_id in by_id.keys() - known]
    for one in sent:
        mine = by_id.get(one.image_id, [])
        if one.image_id in rejections:
            found.append(f"rejected: {one.image_id} for {rejections[one.image_id]}, with {len(mine)} verdicts")
        elif not mine:
            found.append(f"lost: {one.image_id}")
        if len({verdict["verdict_id"] for verdict in mine}) > 1:
            found.append(f"doubled: {one.image_id} has verdicts of its own {len(mine)} times")
        for verdict in mine:
            if verdict["sha256"] != one.sha256:
                found.append(f"wrong bytes: {one.image_id}")
            if abs(verdict["scores"]["linear"] - one.linear) > TOLERANCE:
                found.append(f"wrong score: {one.image_id} has {verdict['scores']['linear']}, not {one.linear}")
    found += [f"uncommitted: {place} stands at {at} of {end}" for place, (at, end) in committed.items() if at != end]
    return found
