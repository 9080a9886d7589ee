"""Geometry and filter taps that both fast paths share."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from train.transforms.ops import inscribed_box


@lru_cache(maxsize=256)
def gaussian_taps(radius: float) -> tuple[float, ...]:
    """The kernel that Pillow's GaussianBlur amounts to: three passes of a box blur with a fractional edge
    (ImagingGaussianBlur).
    """
    box_length = math.sqrt(12.0 * radius * radius / 3 + 1.0)
    whole = math.floor((box_length - 1.0) / 2.0)
    edge = (
        (2 * whole + 1)
        * (whole * (whole + 1) - 3.0 * radius * radius / 3)
        / (6 * (radius * radius / 3 - (whole + 1) ** 2))
    )
    box = np.array([edge, *[1.0] * (2 * whole + 1), edge]) / (2 * (whole + edge) + 1)
    return tuple(np.convolve(np.convolve(box, box), box))


def rotation_map(
    width: int, height: int, degrees: float
) -> tuple[tuple[int, int], tuple[tuple[float, float, float], tuple[float, float, float]]]:
    """Image.rotate(expand=True) and the inscribed crop in one: (width, height) of the result, and the affine map from
    its pixel centres to positions in the source (0 = the left edge of the first pixel). Not for multiples of 90
    degrees, which Pillow transposes.
    """
    angle = -math.radians(degrees % 360.0)
    cosine, sine = round(math.cos(angle), 15), round(math.sin(angle), 15)
    corners = [(x - width / 2, y - height / 2) for x in (0, width) for y in (0, height)]
    xs = [cosine * x + sine * y + width / 2 for x, y in corners]
    ys = [cosine * y - sine * x + height / 2 for x, y in corners]
    turned_width, turned_height = math.ceil(max(xs)) - math.floor(min(xs)), math.ceil(max(ys)) - math.floor(min(ys))
    left, top, right, bottom = inscribed_box(width, height, degrees, turned_width, turned_height)
    x, y = left + 0.5 - turned_width / 2, top + 0.5 - turned_height / 2
    matrix = ((cosine, sine, cosine * x + sine * y + width / 2), (-sine, cosine, cosine * y - sine * x + height / 2))
    return (right - left, bottom - top), matrix
