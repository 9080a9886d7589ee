"""JPEG's segments (ITU-T T.81, annex B), walked as libjpeg walks them: fill bytes and junk in one search each.

Kept for the decoder: tables, frame, scans, comments, and the two application segments that say what the components are
(JFIF, Adobe). The quality is told from the quantisation table of the first component.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from functools import lru_cache

from worker.examine.picture import Picture, corrupt, unsupported

# Every scan of a progressive JPEG walks over the whole image; encoders write about ten. A file within the limits could
# hold 400,000 and occupy the decoder for hours.
MAX_SCANS = 100
# Ninety scans of 100 megapixels take ten seconds, thirty take three.
MAX_SCANNED_PX = 3_000_000_000
# A segment holds up to 64 KiB; walking over 100,000 takes 0.1 s.
MAX_SEGMENTS = 100_000

_SOS, _EOI, _DQT, _COM, _APP0, _APP14 = 0xDA, 0xD9, 0xDB, 0xFE, 0xE0, 0xEE
_BASELINE = (0xC0, 0xC1)
_PROGRESSIVE = (0xC2, 0xCA)
_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA})
_OTHER_FRAMES = {
    0xC5: "hierarchical",
    0xC6: "hierarchical",
    0xC7: "hierarchical",
    0xCB: "lossless with arithmetic coding",
    0xCD: "hierarchical",
    0xCE: "hierarchical",
    0xCF: "hierarchical",
    0xDE: "hierarchical",
    0xF7: "JPEG-LS",
}
# Application segments that say what the components are: their names, and their sizes in bytes at least.
_NAMED = {_APP0: (b"JFIF\0", 14), _APP14: (b"Adobe", 12)}
_KEPT = frozenset({0xC4, 0xCC, _DQT, 0xDD, _COM})
_WITH_LENGTH = _KEPT | _FRAMES | {0xDC, *range(0xE0, 0xF0)}
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
# What libjpeg's next_marker() takes: anything but FF is junk, FF FF is fill, FF 00 is stuffing.
_MARKER = re.compile(rb"\xff[\x01-\xfe]")
_FILL = re.compile(rb"\xff*+")
# In a scan's data only stuffing (FF 00), restarts (FF D0 to D7) and fill (FF FF) may follow an FF.
_SCAN_END = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")

# The luminance table of T.81, annex K, in the order of the file (zigzag), from which encoders scale theirs.
_STANDARD = (
    *(16, 11, 12, 14, 12, 10, 16, 14, 13, 14, 18, 17, 16, 19, 24, 40),
    *(26, 24, 22, 22, 24, 49, 35, 37, 29, 40, 58, 51, 61, 60, 57, 51),
    *(56, 55, 64, 72, 92, 78, 64, 68, 87, 69, 55, 56, 80, 109, 81, 87),
    *(95, 98, 103, 104, 103, 62, 77, 113, 121, 112, 100, 120, 92, 101, 103, 99),
)


@dataclass(slots=True)
class _Headers:
    """What stands before the first scan."""

    kept: list[bytes] = field(default_factory=lambda: [b"\xff\xd8"])
    tables: dict[int, tuple[int, ...]] = field(default_factory=dict)
    frame: int = 0
    width: int = 0
    height: int = 0
    components: int = 0
    table: int = 0
    scan: int = 0
    restart: bool = False


def read(data: bytes) -> Picture:
    """Raises Rejected `corrupt` or `unsupported_format` (12 bits, two components, JPEG-LS, hierarchical)."""
    headers = _headers(data)
    if data[headers.scan + 4 : headers.scan + 5] == bytes([headers.components]) and headers.frame not in _PROGRESSIVE:
        scans, end, clean = _one_scan(data, headers.scan)
    else:
        scans, end, clean = _all_scans(data, headers.scan)
    if scans > MAX_SCANS:
        raise corrupt(f"a JPEG of more than {MAX_SCANS} scans")
    if scans > 1 and scans * headers.width * headers.height > MAX_SCANNED_PX:
        raise corrupt(f"a JPEG of {scans} scans over {headers.width} x {headers.height} pixels")
    exact = clean and scans == 1 and headers.frame in _BASELINE and headers.components != 4
    table = headers.tables.get(headers.table)
    return Picture(
        "jpeg",
        "JPEG",
        headers.width,
        headers.height,
        b"".join((*headers.kept, data[headers.scan : end])),
        jpeg_quality=_quality(table) if table else None,
        exact=exact,
        passes=scans,
    )


def _headers(data: bytes) -> _Headers:
    headers, position = _Headers(), 2
    for _ in range(MAX_SEGMENTS):
        found = _next_marker(data, position)
        if found is None:
            raise corrupt("the jpeg header cannot be read: it ends before the first scan")
        marker, position = data[found.end() - 1], found.end()
        if marker in _WITHOUT_LENGTH:
            continue
        if marker in _OTHER_FRAMES:
            raise unsupported(f"a JPEG of a kind that is not read: {_OTHER_FRAMES[marker]}")
        if marker == _SOS:
            if not headers.frame:
                raise corrupt("the jpeg header cannot be read: a scan before the frame header")
            headers.scan = position - 2
            return headers
        length = int.from_bytes(data[position : position + 2])
        if marker not in _WITH_LENGTH or length < 2 or position + length > len(data):
            raise corrupt(f"the jpeg header cannot be read: marker FF {marker:02X}, length {length}")
        _take(headers, marker, data[position + 2 : position + length])
        position += length
    raise corrupt(f"the jpeg header cannot be read: more than {MAX_SEGMENTS} segments")


def _next_marker(data: bytes, position: int) -> re.Match[bytes] | None:
    """Behind a run of fill bytes, which one step crosses: 24 MB of them take milliseconds instead of seconds."""
    filled = _FILL.match(data, position)
    return _MARKER.search(data, filled.end() - 1 if filled and filled.group() else position)


def _take(headers: _Headers, marker: int, body: bytes) -> None:
    if marker in _FRAMES:
        _take_frame(headers, marker, body)
    elif marker == _DQT:
        headers.tables |= dict(_quantisation_tables(body))
    elif not (marker in _KEPT or (marker in _NAMED and _is_whole(marker, body))):
        return
    headers.kept.append(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body)


def _is_whole(marker: int, body: bytes) -> bool:
    """Whether libjpeg heeds it: one that is cut short says nothing there, and is an error to Pillow."""
    name, size = _NAMED[marker]
    return body.startswith(name) and len(body) >= size


def _take_frame(headers: _Headers, marker: int, body: bytes) -> None:
    if headers.frame or len(body) < 6:
        raise corrupt("the jpeg header cannot be read: no frame header, or two")
    precision, height, width, components = struct.unpack_from(">BHHB", body)
    if precision != 8:
        raise unsupported(f"a JPEG of {precision} bits a sample")
    if components not in (1, 3, 4):
        raise unsupported(f"a JPEG of {components} components")
    if width and not height:
        raise unsupported("a JPEG whose height follows its first scan (DNL)")
    if not width or len(body) != 6 + 3 * components:
        raise corrupt(f"the jpeg header says {width} x {height} pixels in {components} components")
    headers.frame, headers.width, headers.height, headers.components = marker, width, height, components
    headers.table = body[8]


def _one_scan(data: bytes, scan: int) -> tuple[int, int, bool]:
    """Scans, end of what is kept, and whether nothing but the image's end follows: a decoder stops at its last row."""
    found = _SCAN_END.search(data, scan + 2)
    if found is None:
        return 1, len(data), False
    clean = found.group() == b"\xff\xd9"
    return 1, found.end() if clean else len(data), clean


def _all_scans(data: bytes, scan: int) -> tuple[int, int, bool]:
    """The same where all scans are read before the first row is there."""
    scans, position = 0, scan
    for _ in range(MAX_SEGMENTS):
        marker = data[position + 1]
        position += 2
        if marker == _EOI:
            return scans, position, True
        scans += marker == _SOS
        if marker in _WITH_LENGTH or marker == _SOS:
            position += int.from_bytes(data[position : position + 2])
        elif marker not in _WITHOUT_LENGTH:
            break  # libjpeg gives up here too
        found = _SCAN_END.search(data, position) if marker == _SOS else _next_marker(data, position)
        if found is None or scans > MAX_SCANS:
            break
        position = found.start()
    return scans, len(data), False


def _quantisation_tables(body: bytes) -> list[tuple[int, tuple[int, ...]]]:
    tables, position = [], 0
    while position < len(body):
        wide, name = divmod(body[position], 16)
        form = ">64H" if wide else "64B"
        if position + 1 + struct.calcsize(form) > len(body):
            raise corrupt("the jpeg header cannot be read: a quantisation table is cut off")
        tables.append((name, struct.unpack_from(form, body, position + 1)))
        position += 1 + struct.calcsize(form)
    return tables


def _scaled(quality: int) -> tuple[int, ...]:
    """The table that libjpeg's jpeg_set_quality() makes, kept to 8 bits."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return tuple(min(max((value * scale + 50) // 100, 1), 255) for value in _STANDARD)


@lru_cache(maxsize=1)
def _qualities() -> dict[tuple[int, ...], int]:
    return {_scaled(quality): quality for quality in range(1, 101)}


def _quality(table: tuple[int, ...]) -> int:
    """The quality of libjpeg's scale whose table this is, else the one whose scaling is this table's on average."""
    known = _qualities().get(table)
    if known is not None:
        return known
    scale = sum(value * 100 / standard for value, standard in zip(table, _STANDARD, strict=True)) / 64
    quality = (200 - scale) / 2 if scale <= 100 else 5000 / scale
    return min(max(round(quality), 1), 100)
