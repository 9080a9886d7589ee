"""PNG's chunks (W3C, third edition), APNG's among them: header, palette and the first frame that viewers show.

What is kept is written anew with lengths and checksums that hold, so that no decoder follows a length that is only
claimed, unpacks a text or complains about a profile.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

from worker.examine.picture import Picture, corrupt, unsupported

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# 25 MB could hold two million; walking over these takes 0.2 s.
MAX_CHUNKS = 500_000
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PALETTE = 3


@dataclass(slots=True)
class _Chunks:
    """What was found: `default` is the picture of old readers, `first` that of the animation where it is another."""

    palette: bytes = b""
    palettes: int = 0
    default: list[bytes] = field(default_factory=list)
    whole: bool = True  # no piece of the picture reaches beyond the file
    animations: int = 0
    controls: int = 0
    hidden: bool = False  # the default picture is no frame of the animation
    control: tuple[int, ...] = ()
    first: list[bytes] = field(default_factory=list)


def read(data: bytes) -> Picture:
    """Raises Rejected `corrupt`, or `unsupported_format` for Apple's own variant."""
    if data[12:16] == b"CgBI":
        raise unsupported("a PNG of Apple's own variant (CgBI)")
    if len(data) < 33 or data[8:16] != b"\0\0\0\rIHDR":
        raise corrupt("the png header cannot be read")
    width, height, depth, colour, packing, filtering, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    if not (0 < width < 2**31 and 0 < height < 2**31):
        raise corrupt(f"the png header says {width} x {height} pixels")
    if depth not in _DEPTHS.get(colour, ()) or packing or filtering or interlace > 1:
        raise corrupt(f"the png header says {depth} bits, colour type {colour}, interlacing {interlace}")
    if zlib.crc32(data[12:29]) != int.from_bytes(data[29:33]):
        raise corrupt("the png header has a wrong checksum")
    chunks = _walk(data, (width, height))
    if colour == _PALETTE:
        _check_palette(chunks)
    body, box, size = b"".join(chunks.default), None, (width, height)
    if chunks.hidden and chunks.first:
        _, w, h, left, top = chunks.control
        body, box, size = b"".join(chunks.first), (left, top, w, h), (w, h)
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlace)
    kept = [SIGNATURE, _chunk(b"IHDR", header)]
    if colour == _PALETTE:
        kept.append(_chunk(b"PLTE", chunks.palette))
    kept += [_chunk(b"IDAT", body), _chunk(b"IEND", b"")]
    return Picture(
        "png",
        "PNG",
        width,
        height,
        b"".join(kept),
        box=box,
        frames=max(chunks.controls, 1) if chunks.animations == 1 else 1,
        exact=depth <= 8 and box is None and chunks.whole,
        bits=16 if depth == 16 and colour == 0 else 8,
    )


def _walk(data: bytes, size: tuple[int, int]) -> _Chunks:
    found, position, after = _Chunks(), 33, False
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(data):
            break
        length = int.from_bytes(data[position : position + 4])
        kind = data[position + 4 : position + 8]
        start, end = position + 8, position + 8 + length
        if not kind.isalpha() or kind == b"IEND":
            break
        if kind == b"IDAT" and not after:
            found.default.append(data[start:end])
            found.whole = found.whole and end + 4 <= len(data)
        elif found.default:
            after = True
            _take_frame(found, kind, data[start:end], size)
        elif end + 4 > len(data):
            raise corrupt(f"the png chunk {kind.decode()} is longer than the file")
        else:
            _take_early(found, kind, data[start : end + 4])
        position = end + 4
    if not found.default:
        raise corrupt("a png without a picture")
    return found


def _check_palette(found: _Chunks) -> None:
    """Without one that holds no viewer shows anything (11.2.2), while a decoder may take grey in its place."""
    if found.palettes != 1:
        raise corrupt(f"a png with {found.palettes or 'no'} palettes, whose pixels are numbers in one")
    if len(found.palette) % 3 or not 3 <= len(found.palette) <= 768:
        raise corrupt(f"a png with a palette of {len(found.palette)} bytes, where 3 to 768 in threes are right")


def _take_early(found: _Chunks, kind: bytes, body: bytes) -> None:
    """A chunk before the picture; `body` with its checksum."""
    if kind == b"PLTE":
        if zlib.crc32(kind + body[:-4]) != int.from_bytes(body[-4:]):
            raise corrupt("the png palette has a wrong checksum")
        found.palette = body[:-4]
        found.palettes += 1
    elif kind == b"acTL" and len(body) >= 12:
        found.animations += 1
        found.hidden = found.animations == 1 and int.from_bytes(body[:4]) > 0 and not found.controls
    elif kind == b"fcTL":
        found.controls += 1
        found.hidden = False


def _take_frame(found: _Chunks, kind: bytes, body: bytes, size: tuple[int, int]) -> None:
    """A chunk behind the picture: the first frame's, where the picture is none of the animation.

    An animation that is wrong in its first frame is none: viewers show the picture.
    """
    if kind == b"fcTL":
        found.controls += 1
        if found.hidden and found.controls == 1 and len(body) == 26:
            control = struct.unpack_from(">5I", body)
            _, width, height, left, top = control
            if control[0] == 0 and width and height and left + width <= size[0] and top + height <= size[1]:
                found.control = control
    elif kind == b"fdAT" and found.controls == 1 and found.control:
        if len(body) > 4 and int.from_bytes(body[:4]) == len(found.first) + 1:
            found.first.append(body[4:])
        else:
            found.hidden = False


def _chunk(kind: bytes, body: bytes) -> bytes:
    return b"".join((struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))))
