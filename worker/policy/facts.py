"""What a policy decides on: scores, image, evidence, detectors, headers; and how each stands in a reason.

The same facts come from an item on its way and from a stored verdict, so that deciding anew gives what a re-run would.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

from pydantic import BaseModel

from worker.contract import HEADS, DetectorScores, ImageInfo, Record, Scores, Verdict
from worker.evidence import Evidence
from worker.policy.expression import Path

MAX_HEADER_BYTES = 8192
_NO_JPEG_QUALITY = 100  # in rules, of an image that is no JPEG
_SHOWN_CHARACTERS = 64
_NAME = re.compile(r"[A-Za-z_]\w*")
_ABSENT = object()

Shape: TypeAlias = dict[str, "Shape"]


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a decision may depend on. `headers`: at least those that the policy names, where the record has them."""

    scores: Scores
    image: ImageInfo
    evidence: Evidence = field(default_factory=Evidence)
    detectors: Mapping[str, DetectorScores] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, verdict: Verdict) -> Self:
        """Those that a stored verdict was decided on."""
        return cls(verdict.scores, verdict.image, verdict.evidence, verdict.detectors, verdict.headers)

    def as_names(self, shape: Shape) -> dict[str, Any]:
        """What an expression reads of the facts and no more: handing them over is most of an evaluation's time."""
        return {name: _MADE[name](self, inside) for name, inside in shape.items()}


def shape_of(reads: Iterable[Path]) -> Shape:
    """The paths as a tree; an empty one means everything below."""
    shape: Shape = {}
    for path in sorted(reads, key=len, reverse=True):
        inside = shape
        for part in path[:-1]:
            inside = inside.setdefault(part, {})
        inside[path[-1]] = {}  # a shorter path comes later and takes in what longer ones named
    return shape


def named_headers(record: Record, names: Collection[str]) -> dict[str, str]:
    """Of the record's headers those called `names`, the first of each, as received.

    A null or one of more than MAX_HEADER_BYTES is as good as absent: a verdict carries them, and has to fit its topic.
    """
    found: dict[str, str] = {}
    for name, value in record.headers if names else ():
        if name in names and name not in found and value is not None and len(value) <= MAX_HEADER_BYTES:
            found[name] = value.decode("utf-8", "replace")
    return found


def _scores(facts: Facts, shape: Shape) -> dict[str, float]:
    return {head: getattr(facts.scores, head) for head in shape or HEADS}


def _image(facts: Facts, _shape: Shape) -> dict[str, Any]:
    image = facts.image
    found = {"format": image.format, "width": image.width, "height": image.height, "bytes": image.bytes}
    quality = image.jpeg_quality if image.format == "jpeg" else _NO_JPEG_QUALITY
    if quality is not None:
        found["jpeg_quality"] = quality
    if image.frames is not None:
        found["frames"] = image.frames
    return found


def _evidence(part: BaseModel, shape: Shape) -> dict[str, Any]:
    if not shape:
        return part.model_dump()
    fields = {name: (getattr(part, name), inside) for name, inside in shape.items()}
    return {
        name: _evidence(value, inside) if isinstance(value, BaseModel) else value
        for name, (value, inside) in fields.items()
    }


def _detectors(facts: Facts, shape: Shape) -> dict[str, dict[str, float]]:
    return {name: dict(found.scores) for name, found in facts.detectors.items() if not shape or name in shape}


_MADE: dict[str, Callable[[Facts, Shape], dict[str, Any]]] = {
    "scores": _scores,
    "image": _image,
    "evidence": lambda facts, shape: _evidence(facts.evidence, shape),
    "detectors": _detectors,
    "headers": lambda facts, _shape: dict(facts.headers),
}


@functools.cache
def path_name(path: Path) -> str:
    """`scores.linear`, or `headers["x-tenant"]` where a part is no name."""
    parts = (f".{part}" if _NAME.fullmatch(part) else f"[{json.dumps(part, ensure_ascii=False)}]" for part in path[1:])
    return path[0] + "".join(parts)


def shown(names: Mapping[str, Any], reads: Iterable[Path], constants: Collection[float]) -> str:
    """`scores.linear = 0.9712, image.width = 64`: what an expression read, short, and true to its `constants`."""
    values = {path: _value(names, path) for path in reads}
    numbers = {path: float(value) for path, value in values.items() if isinstance(value, int | float)}
    return ", ".join(
        # What a number may have been compared with: the expression's own numbers and the other facts in it.
        f"{path_name(path)} = {_as_text(value, [*constants, *(numbers[other] for other in numbers if other != path)])}"
        for path, value in values.items()
    )


def _value(names: Mapping[str, Any], path: Path) -> Any:
    value: Any = names
    for part in path:
        if not isinstance(value, Mapping) or part not in value:
            return _ABSENT
        value = value[part]
    return value


def _as_text(value: Any, limits: Collection[float]) -> str:
    if value is _ABSENT:
        return "absent"
    if isinstance(value, float):
        return short_number(value, limits)
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"


def short_number(number: float, limits: Iterable[float]) -> str:
    """Four digits, or all of them where four would read as the other side of a limit (0.64999 is not 0.65)."""
    rounded = float(f"{number:.4g}")
    same_side = all((rounded >= limit, rounded > limit) == (number >= limit, number > limit) for limit in limits)
    return f"{rounded:g}" if same_side else repr(number)
