"""AVIF and HEIC: boxes of ISO 14496-12, with what decides on no pixel changed in place.

libavif refuses an image for its EXIF, so descriptions get a type that nobody looks at; libheif turns and mirrors, so
both become a rotation by nothing. No byte moves, and the offsets in the file stay right.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

AVIF_BRANDS = (b"avif", b"avis")
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs")
NEUTRAL_BRANDS = (b"mif1", b"msf1")
# Boxes walked over on one level; a still picture has about ten.
MAX_BOXES = 10_000
_DESCRIPTIONS = (b"Exif", b"mime", b"uri ")


def brand(data: bytes) -> bytes | None:
    """`avif`, `heic` or the neutral major brand, by the brands of the first box; None where there is no such box."""
    if data[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(data[:4]), 4096)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}
    for kind, known in ((b"avif", AVIF_BRANDS), (b"heic", HEIC_BRANDS)):
        if data[8:12] in known or (data[8:12] in NEUTRAL_BRANDS and brands & set(known)):
            return kind
    return data[8:12] if data[8:12] in NEUTRAL_BRANDS else None


def plain(data: bytes) -> bytes:
    """The same file with EXIF, XMP and the like hidden from its decoder, and the picture as it is stored."""
    changed = bytearray(data)
    for start, end in inside(data, b"meta", 0, len(data), 4):
        for place in _descriptions(data, start, end):
            changed[place : place + 4] = b"skip"
        for place in _turns(data, start, end):
            changed[place : place + 5] = b"irot\0"
    return bytes(changed)


def size(data: bytes) -> tuple[int, int]:
    """The largest picture that the properties speak of (`ispe`: ISO 23008-12, 6.5.3), width and height; 0, 0: none."""
    found = [(0, 0)]
    for meta in inside(data, b"meta", 0, len(data), 4):
        for outer in inside(data, b"iprp", *meta, 0):
            for inner in inside(data, b"ipco", *outer, 0):
                for first, last in inside(data, b"ispe", *inner, 4):
                    if last - first >= 8:
                        width, height = struct.unpack_from(">II", data, first)
                        found.append((width, height))
    return max(found, key=lambda pair: pair[0] * pair[1])


def missing(data: bytes) -> int:
    """Bytes that the last box on the outermost level claims and the file does not have."""
    start = 0
    for _ in range(MAX_BOXES):
        if start + 8 > len(data):
            break
        length = int.from_bytes(data[start : start + 4])
        if length == 1:
            length = int.from_bytes(data[start + 8 : start + 16])
        if length < 8:
            return 0
        start += length
    return max(start - len(data), 0)


def _turns(data: bytes, start: int, end: int) -> Iterator[int]:
    """Where `irot` (8 + 1 bytes: quarter turns) and `imir` (8 + 1 bytes: axis) stand (ISO 23008-12, 6.5.10 and .12)."""
    for outer in inside(data, b"iprp", start, end, 0):
        for inner in inside(data, b"ipco", *outer, 0):
            for kind in (b"irot", b"imir"):
                for first, last in inside(data, kind, *inner, 0):
                    if last - first == 1:
                        yield first - 4


def _descriptions(data: bytes, start: int, end: int) -> Iterator[int]:
    """Where the item types stand that are to be hidden (ISO 14496-12, 8.11.6: `infe` of version 2 and 3)."""
    for first, last in inside(data, b"iinf", start, end, 0):
        head = 6 if data[first : first + 1] == b"\0" else 8
        for inner, _ in inside(data, b"infe", first + head, last, 0):
            version = data[inner : inner + 1]
            place = inner + (8 if version == b"\2" else 10)
            if version in (b"\2", b"\3") and data[place : place + 4] in _DESCRIPTIONS:
                yield place


def inside(data: bytes, kind: bytes, start: int, end: int, skip: int) -> Iterator[tuple[int, int]]:
    """The contents of the boxes of that kind on this level, without the first `skip` bytes."""
    for _ in range(MAX_BOXES):
        if start + 8 > end:
            return
        size, head = int.from_bytes(data[start : start + 4]), 8
        if size == 1:
            size, head = int.from_bytes(data[start + 8 : start + 16]), 16
        size = size or end - start
        if size < head or start + size > end:
            return
        if data[start + 4 : start + 8] == kind:
            yield start + head + skip, start + size
        start += size
