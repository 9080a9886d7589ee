"""Which images the detector beside `code` is asked about in the simulation, and what it says of each."""

from __future__ import annotations

NAME = "clip"
FROM = 0.4  # of `code`'s linear score
VERSIONS = ("c00000000001", "c00000000002", "c00000000003", "c00000000004")


def score(number: int, version: str) -> float:
    """Of the image of this number by this version: exact in float32."""
    return (number + 16 * (VERSIONS.index(version) + 1)) / 256
