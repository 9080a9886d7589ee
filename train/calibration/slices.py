"""Slices of images that may need thresholds of their own: by file format, size, and how strongly a JPEG was compressed.

Each value is a condition that the worker's policy can ask (CEL), so that a slice of the sample is a rule.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from train.data.images import DataError
from worker.contract import ImageInfo

_SIZES_PX = (256, 512, 1024)
_QUALITIES = (60, 85)


class By(StrEnum):
    """What a sample may be sliced by."""

    FORMAT = "format"
    SIZE = "size"
    JPEG_QUALITY = "jpeg_quality"


@dataclass(frozen=True)
class Slice:
    """A name for people and the condition for the policy; of the whole sample both are empty."""

    name: str = ""
    condition: str = ""


def slice_of(image: ImageInfo, by: Sequence[By]) -> Slice:
    """The slice that `image` lies in."""
    parts = [_VALUES[kind](image) for kind in by]
    return Slice(", ".join(part.name for part in parts), " && ".join(part.condition for part in parts))


def _format(image: ImageInfo) -> Slice:
    return Slice(image.format, f'image.format == "{image.format}"')


def _size(image: ImageInfo) -> Slice:
    return _step(min(image.width, image.height), _SIZES_PX, "min(image.width, image.height)", "shorter side", " px")


def _jpeg_quality(image: ImageInfo) -> Slice:
    quality = 100 if image.jpeg_quality is None else image.jpeg_quality  # as the policy's rules see it
    return _step(quality, _QUALITIES, "image.jpeg_quality", "JPEG quality", "")


def _step(value: int, steps: Sequence[int], expression: str, name: str, unit: str) -> Slice:
    low = max((step for step in steps if step <= value), default=None)
    high = min((step for step in steps if step > value), default=None)
    conditions = [f"{expression} >= {low}"] * (low is not None) + [f"{expression} < {high}"] * (high is not None)
    if low is None:
        said = f"below {high}{unit}"
    elif high is None:
        said = f"from {low}{unit}"
    else:
        said = f"{low} to {high - 1}{unit}"
    return Slice(f"{name} {said}", " && ".join(conditions))


_VALUES = {By.FORMAT: _format, By.SIZE: _size, By.JPEG_QUALITY: _jpeg_quality}


def parse(text: str) -> list[By]:
    """`format,size` -> what it names. Raises DataError naming what there is."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    known = ", ".join(kind.value for kind in By)
    if unknown := [name for name in names if name not in list(By)]:
        raise DataError(f"--per {unknown[0]}: there are {known}")
    return list(dict.fromkeys(By(name) for name in names))


def grouped(slices: Sequence[Slice]) -> dict[Slice, list[int]]:
    """Positions by slice, the largest first."""
    places = sorted(range(len(slices)), key=lambda index: slices[index].name)
    found = {key: list(members) for key, members in itertools.groupby(places, key=lambda index: slices[index])}
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0].name)))
