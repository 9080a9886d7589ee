"""Copies of one photograph: encoded again, scaled, or in another format, they are one, and say no more than one.

A perceptual hash of 128 bits (whether each of 64 fields is darker than its neighbour to the right, and below) hardly
changes then. Photographs whose hashes differ in at most MAX_APART bits are taken for copies; a false match only makes
the sample smaller.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from PIL import Image

MAX_APART = 7
_BANDS, _BAND_BITS = 8, 16  # hashes with at most 7 bits apart are equal in one of 8 bands
_FLAT = 6  # bits set or unset in a picture too plain to tell


def perceptual_hash(image: Image.Image) -> int:
    """128 bits as a number."""
    grey = np.asarray(image.convert("L").resize((9, 9), Image.Resampling.BOX, reducing_gap=3), dtype=np.int16)
    bits = np.concatenate([(grey[:8, 1:] > grey[:8, :8]).ravel(), (grey[1:, :8] > grey[:8, :8]).ravel()])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def merge_copies(names: Sequence[str], fingerprints: Sequence[int]) -> list[str]:
    """The photograph of each image: those with the same name or nearly the same hash have the name of the first."""
    parent = list(range(len(names)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def join(one: int, other: int) -> None:
        first, second = sorted((root(one), root(other)))
        parent[second] = first

    first_of: dict[str, int] = {}
    for index, name in enumerate(names):
        join(first_of.setdefault(name, index), index)
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, fingerprint in enumerate(fingerprints):
        if not _FLAT <= fingerprint.bit_count() <= _BANDS * _BAND_BITS - _FLAT:
            continue  # plain pictures are all alike to such a hash
        for band in range(_BANDS):
            bucket = buckets[band, fingerprint >> (band * _BAND_BITS) & (2**_BAND_BITS - 1)]
            for other in bucket:
                if (fingerprint ^ fingerprints[other]).bit_count() <= MAX_APART:
                    join(other, index)
            bucket.append(index)
    return [names[root(index)] for index in range(len(names))]
