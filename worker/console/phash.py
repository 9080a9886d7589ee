"""A perceptual hash: pictures that look alike differ in few of its 64 bits.

pHash, as C. Zauner describes it (Implementation and Benchmarking of Perceptual Image Hash Functions, 2010, chapter
3.2.1): grey, 32 x 32, the discrete cosine transform, its lowest 8 x 8 frequencies without the first row and column,
and of each whether it is above their median. It knows recompression, scaling and small changes of colour; it does not
know crops, rotation or mirrored copies, and takes flat pictures of one kind for the same.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from worker.crop import Pixels

_SIDE = 32
_LOW = 8
BITS = _LOW * _LOW
_ROWS = np.arange(1, _LOW + 1)[:, None]
# DCT-II of each of the lowest frequencies but the constant one; a scale changes no comparison with the median.
_COSINES = np.cos(np.pi * _ROWS * (2 * np.arange(_SIDE)[None, :] + 1) / (2 * _SIDE))


def phash(pixels: Pixels) -> str:
    """16 hexadecimal digits of an image, uint8 [H, W, 3]."""
    grey = Image.fromarray(pixels).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    values = np.asarray(grey, np.float64)
    low = (_COSINES @ values @ _COSINES.T).ravel()
    bits = low > np.median(low)
    return np.packbits(bits).tobytes().hex()


def distance(one: str, other: str) -> int:
    """How many of the 64 bits differ."""
    return (int(one, 16) ^ int(other, 16)).bit_count()
