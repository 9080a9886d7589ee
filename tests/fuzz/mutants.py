"""Damaged images, each from a number: a sound image of some kind, and one to four changes that know its structure.

Chunks, segments, directories and boxes are found and changed as such (length, kind, order, contents with a checksum
that holds); bytes anywhere are changed too. The same number and seed give the same bytes on every machine.
"""

import random
import struct
import zlib
from collections.abc import Callable
from functools import cache

from PIL import Image

from tests.odd_images import encode, odd_images, scene
from worker.examine import headers

SMALL_PX = (97, 61)
MAX_SEED_BYTES = 60_000
NUMBERS = (0, 1, 2, 3, 4, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
Part = tuple[int, int]  # where a piece of structure begins and ends


@cache
def seeds() -> list[bytes]:
    """Sound images of every kind, most of them small, so that many are done in a second."""
    headers.load_plugins()
    photo, more = scene(*SMALL_PX), [scene(*SMALL_PX, seed=seed) for seed in (1, 2)]
    found = [encode(photo, form, **options) for form, options in _forms() if form in Image.SAVE]
    found += [encode(photo.convert(mode), form) for form in ("PNG", "TIFF", "BMP", "GIF") for mode in ("1", "L", "P")]
    found += [encode(photo, form, save_all=True, append_images=more) for form in ("GIF", "PNG", "WEBP", "TIFF", "MPO")]
    rows = b"".join(bytes([3, y, 0, 3, 1, 2, 3, 0, 91, 7, 0, 0]) for y in range(SMALL_PX[1]))
    palette = bytes(range(256)) * 4
    header = struct.pack("<IiiHHIIiiII", 40, *SMALL_PX, 1, 8, 1, len(rows), 0, 0, 256, 0)
    found.append(struct.pack("<2sIHHI", b"BM", 1078 + len(rows), 0, 0, 1078) + header + palette + rows)
    odd = [image.data for image in odd_images().values() if image.ok and len(image.data) < MAX_SEED_BYTES]
    return found * 4 + odd


def _forms() -> list[tuple[str, dict[str, object]]]:
    return [
        *(("JPEG", {"quality": quality, "progressive": progressive}) for quality in (20, 90) for progressive in (0, 1)),
        ("JPEG", {"restart_marker_blocks": 2, "comment": b"a comment", "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}),
        ("PNG", {}),
        *(("WEBP", {"lossless": lossless, "exif": b"II*\0\x08\0\0\0\0\0"}) for lossless in (True, False)),
        *(
            ("TIFF", {"compression": packing})
            for packing in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
        ),
        ("BMP", {}),
        ("AVIF", {"quality": 50}),
        ("HEIF", {"quality": 50}),
        ("JXL", {}),
    ]


def mutant(number: int, seed: int = 0) -> bytes:
    """The damaged image of that number."""
    source = random.Random(f"{seed}:{number}")
    data = source.choice(seeds())
    for _ in range(source.choice((1, 1, 2, 4))):
        data = source.choice(_CHANGES)(data, source)
    return data


def _parts(data: bytes) -> list[Part]:
    """The pieces of structure: chunks, segments, boxes, directory entries."""
    if data.startswith(b"\x89PNG"):
        return _walk(data, 8, lambda at: 12 + int.from_bytes(data[at : at + 4]))
    if data.startswith(b"\xff\xd8"):
        return _walk(data, 2, lambda at: 2 + int.from_bytes(data[at + 2 : at + 4]))
    if data.startswith(b"RIFF"):
        return _walk(data, 12, lambda at: 8 + int.from_bytes(data[at + 4 : at + 8], "little") + (data[at + 4] & 1))
    if data[4:8] == b"ftyp":
        return _walk(data, 0, lambda at: int.from_bytes(data[at : at + 4]) if data[at + 4 : at + 8] != b"meta" else 12)
    if data.startswith((b"II*\0", b"MM\0*")):
        first = int.from_bytes(data[4:8], "little" if data.startswith(b"II") else "big")
        return [(at, at + 12) for at in range(first + 2, min(first + 250, len(data)), 12)]
    if data.startswith(b"BM"):
        return [(at, at + 4) for at in range(2, 54, 4)]
    return [(at, at + 8) for at in range(0, min(len(data), 800), 8)]


def _walk(data: bytes, at: int, size: Callable[[int], int]) -> list[Part]:
    found = []
    while at + 8 <= len(data) and len(found) < 200:
        step = max(size(at), 4)
        found.append((at, min(at + step, len(data))))
        at += step
    return found


def _flip(data: bytes, source: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(source.choice((1, 1, 3, 20))):
        out[source.randrange(len(out))] = source.randrange(256)
    return bytes(out)


def _number(data: bytes, source: random.Random) -> bytes:
    """A telling number somewhere in a piece of structure."""
    start, end = source.choice(_parts(data) or [(0, len(data))])
    size = source.choice((1, 2, 4))
    at = source.randrange(start, max(end - size, start) + 1) if source.random() < 0.5 else start
    value = source.choice(NUMBERS) & (2 ** (8 * size) - 1)
    return data[:at] + value.to_bytes(size, source.choice(("big", "little"))) + data[at + size :]


def _drop(data: bytes, source: random.Random) -> bytes:
    start, end = source.choice(_parts(data) or [(0, 1)])
    return data[:start] + data[end:] or data


def _repeat(data: bytes, source: random.Random) -> bytes:
    start, end = source.choice(_parts(data) or [(0, 1)])
    return data[:end] + data[start:end] * source.choice((1, 2, 50)) + data[end:]


def _swap(data: bytes, source: random.Random) -> bytes:
    parts = _parts(data) or [(0, 1)]
    (a, b), (c, d) = sorted(source.choices(parts, k=2))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:] if b <= c else data


def _graft(data: bytes, source: random.Random) -> bytes:
    """A piece of another image."""
    other = source.choice(seeds())
    start, end = source.choice(_parts(other) or [(0, 1)])
    at = source.choice(_parts(data) or [(0, 1)])[0]
    return data[:at] + other[start:end] + data[at:]


def _cut(data: bytes, source: random.Random) -> bytes:
    return data[: source.randrange(1, len(data) + 1)]


def _insert(data: bytes, source: random.Random) -> bytes:
    at = source.choice(_parts(data) or [(0, 1)])[0] if source.random() < 0.5 else source.randrange(len(data) + 1)
    filling = source.choice((b"\xff", b"\0", b"\xff\xda", b"\x21\xfe\x01a", source.randbytes(8)))
    return data[:at] + filling * source.choice((1, 10, 2000)) + data[at:]


def _mend_checksums(data: bytes, _source: random.Random) -> bytes:
    """PNG chunks whose checksums hold, so that what was changed is looked at."""
    if not data.startswith(b"\x89PNG"):
        return data
    out = bytearray(data)
    for start, end in _parts(data):
        if end - start >= 12:
            out[end - 4 : end] = struct.pack(">I", zlib.crc32(out[start + 4 : end - 4]))
    return bytes(out)


_CHANGES = (_flip, _flip, _number, _number, _number, _drop, _repeat, _swap, _graft, _cut, _insert, _mend_checksums)
