"""The places of a container that can hold a mark: EXIF, XMP, text chunks, and whether there is a C2PA manifest.

One walk from header to header, a few microseconds for an image without marks. Damage ends the walk; what was found
until then counts. Sizes are bounded: `MAX_MARK_BYTES` each, `MAX_STEPS` headers, `MAX_TEXTS` texts; all that is
decompressed of one file, `MAX_INFLATED_BYTES`: thousands of small chunks may each become a megabyte.
"""

from __future__ import annotations

import contextlib
import itertools
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from worker.examine.provenance import exif

MAX_MARK_BYTES = 1 << 20
MAX_INFLATED_BYTES = 8 << 20
MAX_TEXTS = 64
# A PNG of 25 MB in chunks of 8 KiB has 3,000; the rest of a file with more is not looked at.
MAX_STEPS = 20_000

_JPEG_EXIF, _JPEG_XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_PNG_XMP = "XML:com.adobe.xmp"
# ImageMagick's way to keep a block of another format in a PNG: hexadecimal text below a name and a length.
_PNG_RAW = "Raw profile type "
_AVIF_C2PA = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")


@dataclass(slots=True)
class Marks:
    """What was found, still encoded. `exif` begins with its byte order; `texts` are (keyword, text) in file order."""

    exif: bytes | None = None
    xmp: bytes | None = None
    texts: list[tuple[str, str]] = field(default_factory=list)
    c2pa: bool = False
    _inflatable: int = MAX_INFLATED_BYTES

    def __bool__(self) -> bool:
        return self.c2pa or self.exif is not None or self.xmp is not None or bool(self.texts)

    def add_exif(self, block: bytes) -> None:
        block = block.removeprefix(_JPEG_EXIF)
        if self.exif is None and len(block) <= MAX_MARK_BYTES:
            self.exif = block

    def add_xmp(self, block: bytes) -> None:
        if self.xmp is None and len(block) <= MAX_MARK_BYTES:
            self.xmp = block

    def inflated(self, raw: bytes) -> bytes:
        """`raw` decompressed, at most `MAX_MARK_BYTES`; empty where it is longer or damaged, or too much was before."""
        most = min(MAX_MARK_BYTES, self._inflatable)
        if not most:
            return b""
        inflater = zlib.decompressobj()
        try:
            content = inflater.decompress(raw, most)
        except zlib.error:
            self._inflatable -= most
            return b""
        self._inflatable -= len(content)
        return b"" if inflater.unconsumed_tail else content

    def add_text(self, keyword: str, text: str) -> None:
        if len(self.texts) < MAX_TEXTS and len(text) <= MAX_MARK_BYTES:
            self.texts.append((keyword, text))


def find_marks(data: bytes, image_format: str) -> Marks:
    """The marks in `data`, an image of one of the contract's formats. Never raises; BMP has no place for any."""
    marks = Marks()
    walk = _WALKS.get(image_format)
    if walk is not None:
        with contextlib.suppress(struct.error, IndexError, ValueError):  # cut off, or damaged
            walk(data, marks)
    return marks


def _jpeg(data: bytes, marks: Marks) -> None:
    """Segments before the first scan (ITU-T T.81, B.1; marks behind it are no encoder's habit)."""
    position = 2
    for _ in range(MAX_STEPS):
        while data[position] == 0xFF and data[position + 1] == 0xFF:  # fill bytes
            position += 1
        if data[position] != 0xFF:
            return
        marker = data[position + 1]
        if marker == 0xDA:
            return
        if 0xD0 <= marker <= 0xD8 or marker == 0x01:  # no length
            position += 2
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        body, end = position + 4, position + 2 + length
        if marker == 0xE1:
            if data.startswith(_JPEG_EXIF, body):
                marks.add_exif(data[body:end])
            elif data.startswith(_JPEG_XMP, body):
                marks.add_xmp(data[body + len(_JPEG_XMP) : end])
        elif marker == 0xEB:
            marks.c2pa = marks.c2pa or data.startswith(b"JP", body)
        elif marker == 0xFE:
            marks.add_text("comment", data[body:end].decode("utf-8", "replace"))
        position = end


def _png(data: bytes, marks: Marks) -> None:
    """Chunks, before and behind the pixels (PNG, third edition, 5.3 and 11.3)."""
    position, size = 8, len(data)
    for _ in range(MAX_STEPS):
        if position + 8 > size:
            return
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind in _PNG_KINDS:
            # Of a longer text the beginning says enough of whose it is.
            body = data[position + 8 : position + 8 + min(length, MAX_MARK_BYTES)]
            if kind == b"caBX":
                marks.c2pa = True
            elif kind == b"eXIf":
                marks.add_exif(body)
            else:
                _png_text(kind, body, marks)
        elif kind == b"IEND":
            return
        position += 12 + length


_PNG_KINDS = frozenset({b"caBX", b"eXIf", b"tEXt", b"zTXt", b"iTXt"})


def _png_text(kind: bytes, body: bytes, marks: Marks) -> None:
    name, _, rest = body.partition(b"\0")
    keyword = name.decode("latin-1")
    if kind == b"tEXt":
        # Latin-1 by the specification; generators write UTF-8.
        text = _decoded(rest)
    elif kind == b"zTXt":
        text = _decoded(marks.inflated(rest[1:]))
    else:
        compressed, rest = rest[:1], rest[2:]
        _language, _, rest = rest.partition(b"\0")
        _translated, _, rest = rest.partition(b"\0")
        text = (marks.inflated(rest) if compressed == b"\1" else rest).decode("utf-8", "replace")
    if keyword == _PNG_XMP:
        marks.add_xmp(text.encode())
    elif keyword.startswith(_PNG_RAW):
        _raw_profile(keyword.removeprefix(_PNG_RAW), text, marks)
    else:
        marks.add_text(keyword, text)


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _raw_profile(name: str, text: str, marks: Marks) -> None:
    lines = text.strip().split("\n", 2)
    if len(lines) < 3 or name.lower() not in ("exif", "app1", "xmp"):
        return
    block = bytes.fromhex(lines[2])
    if block.startswith(_JPEG_XMP):
        marks.add_xmp(block.removeprefix(_JPEG_XMP))
    elif name.lower() == "xmp":
        marks.add_xmp(block)
    else:
        marks.add_exif(block)


def _webp(data: bytes, marks: Marks) -> None:
    """RIFF chunks (RFC 9649, 2.7)."""
    position, size = 12, len(data)
    for _ in range(MAX_STEPS):
        if position + 8 > size:
            return
        kind, length = struct.unpack_from("<4sI", data, position)
        body = position + 8
        if kind == b"EXIF":
            marks.add_exif(data[body : body + length])
        elif kind == b"XMP ":
            marks.add_xmp(data[body : body + length])
        elif kind == b"C2PA":
            marks.c2pa = True
        position = body + length + (length & 1)


def _tiff(data: bytes, marks: Marks) -> None:
    """The file is one EXIF block; XMP and C2PA are tags of its first directory."""
    if data[2:4] not in (b"*\0", b"\0*"):  # BigTIFF: nobody writes marks there
        return
    marks.exif = data
    tags = exif.raw_tags(data, {exif.XMP, exif.C2PA}, MAX_MARK_BYTES)
    if exif.XMP in tags:
        marks.add_xmp(tags[exif.XMP])
    marks.c2pa = exif.C2PA in tags


def _gif(data: bytes, marks: Marks) -> None:
    """Extensions of the first frame: comments, and XMP and C2PA as application blocks (GIF89a, 24 and 26)."""
    flags = data[10]
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    for _ in range(MAX_STEPS):
        if data[position] != 0x21:
            return
        label = data[position + 1]
        blocks = position + 2
        if label == 0xFF and data.startswith(b"\x0bXMP DataXMP", blocks):
            # The text stands there as it is; what follows it reads as blocks from any byte of it.
            end = data.index(b"\x01\xff\xfe\xfd", blocks, blocks + MAX_MARK_BYTES)
            marks.add_xmp(data[blocks + 12 : end])
            position = end + 258
            continue
        marks.c2pa = marks.c2pa or (label == 0xFF and data.startswith(b"\x0bC2PA_GIF", blocks))
        content = []
        while length := data[blocks]:
            if label == 0xFE:
                content.append(data[blocks + 1 : blocks + 1 + length])
            blocks += 1 + length
        if content:
            marks.add_text("comment", b"".join(content).decode("utf-8", "replace"))
        position = blocks + 1


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, start of body, end) of the boxes side by side (ISO/IEC 14496-12, 4.2)."""
    for _ in range(MAX_STEPS):
        if start + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, start)
        body = start + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, body)
            body += 8
        stop = end if size == 0 else start + size
        if stop < body or stop > end:
            return
        yield kind, body, stop
        start = stop


def _isobmff(data: bytes, marks: Marks) -> None:
    """AVIF and HEIC: C2PA in a box of its own; EXIF and XMP are items that `iloc` places (ISO/IEC 23008-12, A)."""
    for kind, body, end in _boxes(data, 0, len(data)):
        if kind == b"uuid" and data.startswith(_AVIF_C2PA, body):
            marks.c2pa = True
        elif kind == b"meta":
            _items(data, body + 4, end, marks)


def _items(data: bytes, start: int, end: int, marks: Marks) -> None:
    kinds: dict[int, bytes] = {}
    places: dict[int, tuple[int, int]] = {}
    for kind, body, stop in _boxes(data, start, end):
        if kind == b"iinf":
            first = body + (6 if data[body] == 0 else 8)
            for entry, at, _ in itertools.islice(_boxes(data, first, stop), MAX_TEXTS):
                if entry == b"infe" and data[at] == 2:
                    item, _protection, item_kind = struct.unpack_from(">HH4s", data, at + 4)
                    kinds[item] = item_kind
        elif kind == b"iloc":
            places = dict(itertools.islice(_locations(data, body), MAX_TEXTS))
    for item, item_kind in kinds.items():
        offset, length = places.get(item, (0, 0))
        if item_kind == b"Exif" and length > 4:
            (skipped,) = struct.unpack_from(">I", data, offset)
            marks.add_exif(data[offset + 4 + skipped : offset + length])
        elif item_kind == b"mime" and length:
            block = data[offset : offset + min(length, MAX_MARK_BYTES + 1)]
            if b"xmpmeta" in block[:4096]:
                marks.add_xmp(block)


def _locations(data: bytes, body: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Item -> (offset, length) of those that lie in the file in one piece (ISO/IEC 14496-12, 8.11.3)."""
    version, sizes, more = data[body], data[body + 4], data[body + 5]
    offset_bytes, length_bytes, base_bytes = sizes >> 4, sizes & 15, more >> 4
    index_bytes = more & 15 if version in (1, 2) else 0
    wide = version == 2
    position = body + 6
    count, position = _number(data, position, 4 if wide else 2)
    for _ in range(min(count, MAX_STEPS)):
        item, position = _number(data, position, 4 if wide else 2)
        method = 0
        if version in (1, 2):
            method, position = _number(data, position, 2)
        position += 2
        base, position = _number(data, position, base_bytes)
        extents, position = _number(data, position, 2)
        for _extent in range(min(extents, MAX_TEXTS)):
            position += index_bytes
            offset, position = _number(data, position, offset_bytes)
            length, position = _number(data, position, length_bytes)
            if extents == 1 and method & 15 == 0:
                yield item, (base + offset, length)


def _number(data: bytes, position: int, size: int) -> tuple[int, int]:
    if position + size > len(data):
        raise IndexError(position)
    return int.from_bytes(data[position : position + size], "big"), position + size


_WALKS: dict[str, Callable[[bytes, Marks], None]] = {
    "jpeg": _jpeg,
    "png": _png,
    "webp": _webp,
    "tiff": _tiff,
    "gif": _gif,
    "avif": _isobmff,
    "heic": _isobmff,
}
