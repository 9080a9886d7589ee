"""BMP's headers (BITMAPCOREHEADER to BITMAPV5HEADER): size, depth, packing, and whether the rows are there.

Run-length packing is unpacked by `rle`: Pillow does it byte by byte, 20 s for a kilobyte.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from worker.examine.picture import Picture, corrupt, unsupported

RLE8, RLE4 = 1, 2
_RAW, _BITFIELDS = 0, 3
_CORE_HEADER = 12
_HEADERS = (_CORE_HEADER, 40, 52, 56, 64, 108, 124)
_DEPTHS = (1, 4, 8, 16, 24, 32)
_OTHER_PACKINGS = {4: "a JPEG", 5: "a PNG", 6: "bit fields with alpha (6)", 11: "CMYK", 12: "CMYK", 13: "CMYK"}
_OS2_HEADER, _OS2_PACKINGS = 64, {3: "packed by Huffman's code", 4: "run-length in 24 bits"}
# Red, green, blue (and alpha for 32 bits): what Pillow has unpackers for.
_MASKS_16 = ((0xF800, 0x7E0, 0x1F), (0x7C00, 0x3E0, 0x1F))
_MASKS_24 = ((0xFF0000, 0xFF00, 0xFF),)
_MASKS_32 = (
    (0xFF0000, 0xFF00, 0xFF, 0),
    (0xFF000000, 0xFF0000, 0xFF00, 0),
    (0xFF000000, 0xFF00, 0xFF, 0),
    (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
    (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
    (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
    (0xFF000000, 0xFF00, 0xFF, 0xFF0000),
    (0, 0, 0, 0),
)


@dataclass(frozen=True, slots=True)
class Layout:
    """What the header says. `offset`: of the rows; `top_down`: the first row stands first; `palette`: BGR(x)."""

    width: int
    height: int
    top_down: bool
    bits: int
    packing: int
    offset: int
    palette: bytes
    entry_bytes: int


def read(data: bytes) -> Picture:
    """Raises Rejected `corrupt`, or `unsupported_format` with the variant named."""
    layout = read_layout(data)
    packed = layout.packing in (RLE8, RLE4)
    if not packed:
        row = (layout.width * layout.bits + 7) // 8
        stride = (layout.width * layout.bits + 31) // 32 * 4
        # Judged before a buffer for all of them is made.
        if layout.offset + stride * (layout.height - 1) + row > len(data):
            raise corrupt(f"a bmp of {len(data)} bytes says {layout.width} x {layout.height} pixels")
        if len(layout.palette) > layout.entry_bytes << layout.bits:
            data = _with_fewer_colours(data, layout)
    return Picture("bmp", "" if packed else "BMP", layout.width, layout.height, data)


def _with_fewer_colours(data: bytes, layout: Layout) -> bytes:
    """The same rows with no more colours than their numbers reach, where the header says more."""
    return data[:10] + struct.pack("<I", layout.offset) + data[14:46] + struct.pack("<I", 1 << layout.bits) + data[50:]


def read_layout(data: bytes) -> Layout:
    """The header of a BMP. Raises Rejected as `read` does."""
    if len(data) < 26:
        raise corrupt("the bmp header cannot be read")
    offset, header = struct.unpack_from("<II", data, 10)
    if header not in _HEADERS:
        raise unsupported(f"a BMP with a header of {header} bytes")
    if len(data) < 14 + header:
        raise corrupt("the bmp header cannot be read")
    if header == _CORE_HEADER:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        top_down, packing, colours, entry = False, _RAW, 0, 3
    else:
        width, height, _, bits, packing = struct.unpack_from("<IIHHI", data, 18)
        colours, entry = int.from_bytes(data[46:50], "little"), 4
        top_down = data[25] == 0xFF
        height = 2**32 - height if top_down else height
    if not (0 < width < 2**31 and 0 < height < 2**31):
        raise corrupt(f"the bmp header says {width} x {height} pixels")
    _check_kind(data, header, bits, packing)
    colours = (colours or 1 << bits) if bits <= 8 else 0
    if colours > 65_536:
        raise corrupt(f"the bmp header says {colours} colours")
    start = 14 + header
    # As Pillow has it: an offset right behind the header, or none, means behind the palette.
    if bits <= 8 and offset in (0, start):
        offset = start + entry * colours
    return Layout(width, height, top_down, bits, packing, offset or start, data[start : start + entry * colours], entry)


def _check_kind(data: bytes, header: int, bits: int, packing: int) -> None:
    if header == _OS2_HEADER and packing in _OS2_PACKINGS:
        raise unsupported(f"a BMP of OS/2, {_OS2_PACKINGS[packing]}")
    if packing in _OTHER_PACKINGS or packing > _BITFIELDS:
        raise unsupported(f"a BMP that holds {_OTHER_PACKINGS.get(packing, f'an unknown packing ({packing})')}")
    if bits not in _DEPTHS:
        raise unsupported(f"a BMP of {bits} bits a pixel")
    if packing in (RLE8, RLE4) and bits != (8 if packing == RLE8 else 4):
        raise corrupt(f"a run-length bmp of {bits} bits a pixel")
    if packing == _BITFIELDS:
        count = 4 if header >= 56 else 3
        if len(data) < 54 + 4 * count:
            raise corrupt("the bmp header cannot be read")
        masks = struct.unpack_from(f"<{count}I", data, 54)
        known: dict[int, tuple[tuple[int, ...], ...]] = {16: _MASKS_16, 24: _MASKS_24, 32: _MASKS_32}
        fitted = (*masks, 0)[:4] if bits == 32 else masks[:3]
        if fitted not in known.get(bits, ()):
            raise unsupported(f"a BMP of {bits} bits with the masks {' '.join(f'{mask:X}' for mask in masks)}")
