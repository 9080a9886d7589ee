"""The few EXIF fields that generators write into, from a TIFF block of which nothing is trusted (Exif 3.0, 4.6).

Every offset and count is checked against the block; two directories are read, at most `MAX_ENTRIES` each, and no field
longer than asked for. A field that is damaged is not there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

MAX_ENTRIES = 512
DESCRIPTION, MAKE, MODEL, SOFTWARE, ARTIST = 0x010E, 0x010F, 0x0110, 0x0131, 0x013B
XMP, C2PA, XP_COMMENT = 0x02BC, 0xCD41, 0x9C9C
USER_COMMENT = 0x9286
_EXIF_IFD = 0x8769
_MAIN_TEXTS = frozenset({DESCRIPTION, MAKE, MODEL, SOFTWARE, ARTIST, XP_COMMENT})
# Bytes of one value of each field type; others are none that a text is written as.
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 7: 1, 129: 1}


def texts(block: bytes, max_bytes: int) -> dict[int, str]:
    """Tag -> text of the fields above that are there and not empty, in at most `max_bytes` each."""
    found = raw_tags(block, _MAIN_TEXTS | {_EXIF_IFD}, max_bytes)
    order = _order(block)
    if order is None:
        return {}
    pointer = found.pop(_EXIF_IFD, b"")
    if len(pointer) == 4:
        (offset,) = struct.unpack(order + "I", pointer)
        for tag, raw in _directory(block, order, offset, frozenset({USER_COMMENT}), max_bytes):
            found.setdefault(tag, raw)
    readable = {tag: _text(tag, raw, order) for tag, raw in found.items()}
    return {tag: text for tag, text in readable.items() if text}


def raw_tags(block: bytes, wanted: set[int] | frozenset[int], max_bytes: int) -> dict[int, bytes]:
    """Tag -> bytes of the `wanted` fields in the first directory; none where the block is no TIFF."""
    order = _order(block)
    if order is None or len(block) < 8:
        return {}
    (offset,) = struct.unpack_from(order + "I", block, 4)
    return dict(_directory(block, order, offset, wanted, max_bytes))


def _order(block: bytes) -> str | None:
    return {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])


def _directory(
    block: bytes, order: str, offset: int, wanted: set[int] | frozenset[int], max_bytes: int
) -> Iterator[tuple[int, bytes]]:
    if offset + 2 > len(block):
        return
    (count,) = struct.unpack_from(order + "H", block, offset)
    for entry in range(offset + 2, offset + 2 + 12 * min(count, MAX_ENTRIES), 12):
        if entry + 12 > len(block):
            return
        tag, kind, values = struct.unpack_from(order + "HHI", block, entry)
        size = _TYPE_BYTES.get(kind, 0) * values
        if tag not in wanted or not size:
            continue
        start = entry + 8 if size <= 4 else struct.unpack_from(order + "I", block, entry + 8)[0]
        if size <= max_bytes and start + size <= len(block):
            yield tag, block[start : start + size]
        elif tag == C2PA:  # that it is there says enough; the reader of manifests has bounds of its own
            yield tag, b""


def _text(tag: int, raw: bytes, order: str) -> str:
    if tag == XP_COMMENT:
        return raw.decode("utf-16-le", "replace").rstrip("\0")
    if tag == USER_COMMENT:
        code, content = raw[:8], raw[8:]
        if code.startswith(b"UNICODE"):
            return _utf16(content, order).rstrip("\0").strip()
        if code.rstrip(b"\0") not in (b"", b"ASCII", b"JIS"):  # written without the code
            content = raw
        return content.decode("utf-8", "replace").strip("\0 ")
    return raw.decode("utf-8", "replace").strip("\0 ")


def _utf16(content: bytes, order: str) -> str:
    """The block's byte order by the standard; piexif and others write big-endian always. ASCII tells which it was."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    high_first, low_first = content[0:512:2].count(0), content[1:512:2].count(0)
    if high_first != low_first:
        return content.decode("utf-16-be" if high_first > low_first else "utf-16-le", "replace")
    return content.decode("utf-16-be" if order == ">" else "utf-16-le", "replace")
