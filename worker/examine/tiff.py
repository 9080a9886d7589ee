"""TIFF's directories (TIFF 6.0, BigTIFF): one is chosen and written anew, with only what its pixels depend on.

So orientation, previews, profiles, other pages and directories without end cost and decide nothing, both byte orders of
BigTIFF are read, and a decoder finds the size that was checked.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.examine.picture import Picture, corrupt, unsupported

STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Directories that are walked over to find and count pages.
MAX_DIRECTORIES = 4096
# Pillow makes an object for each; encoders make one for each row at most.
MAX_STRIPS = 200_000
# A tile may be larger than a small image; 4096 x 4096 is beyond any that is in use.
_MAX_SPARE_TILE_PX = 1 << 24

_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
_STRIPS, _SAMPLES, _ROWS, _STRIP_BYTES, _PLANAR = 273, 277, 278, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 322, 323, 324, 325
_EXTRA, _SAMPLE_FORMAT, _YCBCR_SUBSAMPLING = 338, 339, 530
_COLOURS, _JPEG_TABLES = 320, 347
# No picture without these; a type of our own says that a value is not in the file.
_NEEDED = (_STRIPS, _TILES, _COLOURS, _JPEG_TABLES)
_CUT_OFF = 0
# Beside these: fill order, fax options, predictor, colour map, JPEG tables, YCbCr, old-style JPEG.
_FURTHER = (266, 292, 293, 317, 320, 332, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532)
_LONG_LISTS = (_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES)
_INTEGERS = {1: "u1", 3: "u2", 4: "u4", 6: "i1", 8: "i2", 9: "i4", 13: "u4", 16: "u8"}
_BYTES_EACH = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_READ = {1, 2, 3, 4, 5, 6, 7, 8, 32773, 32809, 32946, 34676, 34677, 34925, 50000, 50001}
_NAMES = {
    34661: "JBIG",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG",
    34933: "PNG",
    34934: "JPEG XR",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
# What libtiff reads only where it was built with it.
OPTIONAL_COMPRESSIONS = {34925: "lzma", 50000: "zstd", 50001: "webp"}
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _YCBCR = 0, 1, 6
_JPEGS = (6, 7)
_PHOTOMETRICS = {
    3: "palette",
    4: "mask",
    5: "CMYK",
    6: "YCbCr",
    8: "CIE Lab",
    9: "ICC Lab",
    10: "ITU Lab",
    32803: "camera raw",
    32844: "LogL",
    32845: "LogLuv",
    34892: "camera raw",
}
_FORMATS = {1: "integer", 2: "signed integer", 3: "float", 5: "complex integer", 6: "complex float"}

Tags = dict[int, tuple[int, int, bytes]]  # tag -> type, count, value in the file's byte order
Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Form:
    """Byte order (`<` or `>`), classic or BigTIFF, and where the first directory stands."""

    order: str
    big: bool
    first: int


def read(data: bytes) -> Picture:
    """The first directory that is not marked as a reduced preview, or the first. Raises Rejected `corrupt`, or
    `unsupported_format` with the variant named.
    """
    form = _form(data)
    tags, pages = _choose(data, form)
    width, height = _one(form, tags, _WIDTH), _one(form, tags, _HEIGHT)
    if width < 1 or height < 1:
        raise corrupt(f"the tiff header says {width} x {height} pixels")
    compression = _one(form, tags, _COMPRESSION, 1)
    if compression not in _READ:
        raise unsupported(f"a TIFF packed as {_NAMES.get(compression, f'number {compression}')}")
    bits, sample_format, photometric = _samples(form, tags)
    grey = len(bits) == 1 and photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
    if grey and ((sample_format != 1 and bits[0] != 8) or bits[0] > 16):
        raise unsupported(f"a grey TIFF of {bits[0]} bits a sample, {_FORMATS.get(sample_format, 'unknown format')}")
    if sample_format not in (1, 2):
        raise unsupported(f"a TIFF of {bits[0]} bits a sample, {_FORMATS.get(sample_format, 'unknown format')}")
    wide = grey and bits[0] > 8
    inverted = wide and photometric == _WHITE_IS_ZERO
    _check_whole(tags)
    kept = {tag: tags[tag] for tag in tags if tag in _KEPT and tags[tag][0] != _CUT_OFF}
    if inverted:
        kept[_PHOTOMETRIC] = _short(form, _BLACK_IS_ZERO)
    _lay_out(data, form, kept, width, height)
    return Picture(
        "tiff",
        "TIFF",
        width,
        height,
        _written(data, form, kept),
        frames=pages,
        bits=bits[0] if wide else 8,
        inverted=inverted,
        by_libtiff=_one(form, kept, _PLANAR, 1) == 2 or photometric == _YCBCR,
    )


def _check_whole(tags: Tags) -> None:
    """What no picture can be had without is in the file."""
    for tag in _NEEDED:
        if tag in tags and tags[tag][0] == _CUT_OFF:
            raise corrupt(f"a tiff that is cut off: its tag {tag} reaches beyond the file")


_KEPT = frozenset(
    {_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _STRIPS, _SAMPLES, _ROWS, _STRIP_BYTES, _PLANAR}
    | {_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _EXTRA, _SAMPLE_FORMAT, *_FURTHER}
)
_LOOKED_AT = np.zeros(1 << 16, np.bool_)
_LOOKED_AT[[*_KEPT, _SUBFILE, _OLD_SUBFILE]] = True


def optional_codec(data: bytes) -> str | None:
    """Pillow's name of the packing, where libtiff reads it only if it was built so."""
    form = _form(data)
    return OPTIONAL_COMPRESSIONS.get(_one(form, _choose(data, form)[0], _COMPRESSION, 1))


def variant(data: bytes) -> str:
    """What kind of samples a file has, for people, where a decoder does not know it."""
    form = _form(data)
    tags, _ = _choose(data, form)
    bits, sample_format, photometric = _samples(form, tags)
    each = "-".join(str(bit) for bit in bits)
    spoken = f" ({_PHOTOMETRICS[photometric]})" if photometric in _PHOTOMETRICS else ""
    layout = ", in planes" if _one(form, tags, _PLANAR, 1) == 2 else ""
    return f"{each} bits, {_FORMATS.get(sample_format, 'unknown format')}, photometric {photometric}{spoken}{layout}"


def _form(data: bytes) -> _Form:
    order = "<" if data.startswith(b"II") else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    if len(data) < 16:
        raise corrupt("the tiff header cannot be read")
    if not big:
        return _Form(order, big, struct.unpack_from(f"{order}I", data, 4)[0])
    width, zero, first = struct.unpack_from(f"{order}HHQ", data, 4)
    if (width, zero) != (8, 0):
        raise unsupported(f"a BigTIFF with offsets of {width} bytes")
    return _Form(order, big, first)


def _choose(data: bytes, form: _Form) -> tuple[Tags, int]:
    """The directory of the picture, and how many directories there are, as far as they can be read."""
    chosen: Tags | None = None
    first: Tags | None = None
    seen: set[int] = set()
    position = form.first
    while position and position not in seen and len(seen) < MAX_DIRECTORIES:
        read = _directory(data, form, position)
        if read is None:
            break
        seen.add(position)
        tags, position = read
        first = tags if first is None else first
        reduced = _one(form, tags, _SUBFILE, 0) & 1 or _one(form, tags, _OLD_SUBFILE, 0) == 2
        if chosen is None and not reduced and _WIDTH in tags:
            chosen = tags
    if first is None:
        raise corrupt("the tiff header cannot be read: no directory where it says")
    return chosen or first, len(seen)


def _directory(data: bytes, form: _Form, position: int) -> tuple[Tags, int] | None:
    """The tags that are looked at and the next directory's place, or None where none stands here."""
    counter = struct.Struct(f"{form.order}{'Q' if form.big else 'H'}")
    following = struct.Struct(f"{form.order}{'Q' if form.big else 'I'}")
    o = form.order
    fields: list[Any] = [("tag", f"{o}u2"), ("type", f"{o}u2"), ("count", f"{o}u8" if form.big else f"{o}u4")]
    entry = np.dtype([*fields, ("value", "V8" if form.big else "V4")])
    if position + counter.size > len(data):
        return None
    count = counter.unpack_from(data, position)[0]
    start = position + counter.size
    count = min(count, (len(data) - start) // entry.itemsize)
    if not count:
        return None
    entries = np.frombuffer(data, entry, count, start)
    tags: Tags = {}
    for line in entries[_LOOKED_AT[entries["tag"]]][:256]:
        tag, kind, many = int(line["tag"]), int(line["type"]), int(line["count"])
        value = _value(data, form, kind, many, line["value"].tobytes())
        if tag not in tags and (value or kind in _BYTES_EACH):
            tags[tag] = (kind, many, value) if value else (_CUT_OFF, 0, b"")
    end = start + count * entry.itemsize
    following_at = following.unpack_from(data, end)[0] if end + following.size <= len(data) else 0
    return tags, following_at


def _value(data: bytes, form: _Form, kind: int, count: int, inline: bytes) -> bytes | None:
    """A tag's value, never empty; None where its type is unknown or it reaches beyond the file."""
    size = _BYTES_EACH.get(kind, 0) * count
    if size <= len(inline):
        return inline[:size] or None
    offset = int(struct.unpack(f"{form.order}{'Q' if form.big else 'I'}", inline)[0])
    return data[offset : offset + size] if 0 < size <= len(data) - offset else None


def _integers(form: _Form, tags: Tags, tag: int) -> Offsets:
    kind, count, value = tags.get(tag, (4, 0, b""))
    if kind not in _INTEGERS:
        raise corrupt(f"the tiff tag {tag} holds no integers")
    values = np.frombuffer(value, f"{form.order}{_INTEGERS[kind]}", count)
    integers: Offsets = values.astype(np.int64)
    return np.where(integers < 0, np.iinfo(np.int64).max, integers) if kind == 16 else integers


def _one(form: _Form, tags: Tags, tag: int, otherwise: int = -1) -> int:
    """The tag's first value, or `otherwise` where it is not there or no integer."""
    if tag not in tags or tags[tag][0] not in _INTEGERS:
        return otherwise
    return int(_integers(form, tags, tag)[0])


def _samples(form: _Form, tags: Tags) -> tuple[tuple[int, ...], int, int]:
    """Bits of each sample, sample format, photometric interpretation."""
    compression = _one(form, tags, _COMPRESSION, 1)
    photometric = _YCBCR if compression == _JPEGS[0] else _one(form, tags, _PHOTOMETRIC, 0)
    bits = tuple(int(bit) for bit in _integers(form, tags, _BITS)[:16]) or (1,)
    samples = _one(form, tags, _SAMPLES, 3 if compression == _JPEGS[0] else 1)
    if len(bits) == 1 and 1 < samples <= 16:
        bits *= samples
    return bits[: max(samples, 1)], _one(form, tags, _SAMPLE_FORMAT, 1), photometric


def _lay_out(data: bytes, form: _Form, kept: Tags, width: int, height: int) -> None:
    """Bound what a decoder allocates: strips or tiles, and for rows that are not packed, that they are there."""
    tiled = _TILES in kept and _STRIPS not in kept
    if tiled:
        block = _one(form, kept, _TILE_WIDTH), _one(form, kept, _TILE_HEIGHT)
        if min(block) < 1:
            raise corrupt(f"the tiff header says tiles of {block[0]} x {block[1]}")
        if block[0] * block[1] > max(4 * width * height, _MAX_SPARE_TILE_PX):
            raise corrupt(f"a tile of {block[0] * block[1]} pixels in an image of {width * height}")
    else:
        rows = _one(form, kept, _ROWS, height)
        block = width, min(rows, height) if rows > 0 else height
    planes = len(_samples(form, kept)[0]) if _one(form, kept, _PLANAR, 1) == 2 else 1
    needed = -(-width // block[0]) * -(-height // block[1]) * planes
    if needed > MAX_STRIPS:
        raise corrupt(f"a tiff of {needed} strips or tiles; at most {MAX_STRIPS} are read")
    where = _TILES if tiled else _STRIPS
    for tag in _LONG_LISTS:
        if tag in kept:
            kept[tag] = _shortened(form, kept, tag, needed)
    if where not in kept and _one(form, kept, _COMPRESSION, 1) != _JPEGS[0]:
        raise corrupt("the tiff header says neither strips nor tiles")
    if _STRIPS in kept and _one(form, kept, _COMPRESSION, 1) == 1:
        _check_rows(data, form, kept, block, height)


def _check_rows(data: bytes, form: _Form, kept: Tags, block: tuple[int, int], height: int) -> None:
    """Rows that are not packed are all there, before a buffer for all of them is made."""
    bits = _samples(form, kept)[0]
    planar = _one(form, kept, _PLANAR, 1) == 2
    across, down = _subsampling(form, kept)
    row_bytes = (block[0] * (bits[0] if planar else sum(bits)) + 7) // 8
    if (across, down) != (1, 1):  # so many brightnesses with two colours, or planes of two sizes
        row_bytes = 0 if planar else -(-block[0] // across) * (across * down + 2)
    offsets = _integers(form, kept, _STRIPS)
    in_plane = np.arange(len(offsets), dtype=np.int64) % -(-height // block[1])
    rows = -(-np.minimum(block[1], height - in_plane * block[1]) // down)
    if (row_bytes * rows > len(data) - offsets).any():
        raise corrupt("a tiff whose rows reach beyond the file")


def _subsampling(form: _Form, kept: Tags) -> tuple[int, int]:
    """Pixels that share a colour, across and down; (1, 1) where it is not YCbCr."""
    if _samples(form, kept)[2] != _YCBCR:
        return 1, 1
    found = [int(factor) for factor in _integers(form, kept, _YCBCR_SUBSAMPLING)[:2]] or [2, 2]
    if len(found) != 2 or not all(factor in (1, 2, 4) for factor in found):
        raise corrupt(f"the tiff header says {' x '.join(map(str, found))} pixels to a colour")
    return found[0], found[1]


def _shortened(form: _Form, kept: Tags, tag: int, needed: int) -> tuple[int, int, bytes]:
    """A list of offsets or sizes with no more entries than blocks, as 32-bit integers."""
    values = np.minimum(_integers(form, kept, tag)[:needed], 2**32 - 1)
    return 4, len(values), values.astype(f"{form.order}u4").tobytes()


def _short(form: _Form, value: int) -> tuple[int, int, bytes]:
    return 3, 1, struct.pack(f"{form.order}H", value)


def _written(data: bytes, form: _Form, kept: Tags) -> bytes:
    """A classic TIFF: the same bytes at the same places, with a directory of `kept` behind them."""
    o = form.order
    padded = len(data) + len(data) % 2
    values_at = padded + 2 + 12 * len(kept) + 4
    entries, values = [], []
    for tag, (kind, count, value) in sorted(kept.items()):
        wide = kind in (13, 16)  # offsets and 64-bit integers, which a classic TIFF has not
        body = _narrow(form, kind, count, value) if wide else value
        entry = struct.pack(f"{o}HHI", tag, 4 if wide else kind, count)
        if len(body) <= 4:
            entries.append(entry + body.ljust(4, b"\0"))
            continue
        entries.append(entry + struct.pack(f"{o}I", values_at))
        values.append(body + b"\0" * (len(body) % 2))
        values_at += len(values[-1])
    header = (b"II*\0" if o == "<" else b"MM\0*") + struct.pack(f"{o}I", padded)
    start = (header, data[8:], b"\0" * (padded - len(data)))
    return b"".join((*start, struct.pack(f"{o}H", len(entries)), *entries, bytes(4), *values))


def _narrow(form: _Form, kind: int, count: int, value: bytes) -> bytes:
    """64-bit integers as 32-bit ones: no offset in a file of 25 MB needs more."""
    wide = np.frombuffer(value, f"{form.order}{_INTEGERS[kind]}", count)
    narrow: npt.NDArray[np.uint32] = np.minimum(wide, 2**32 - 1).astype(f"{form.order}u4")
    return narrow.tobytes()
