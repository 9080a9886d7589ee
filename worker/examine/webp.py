"""WebP's chunks (RFC 9649, 2.5 to 2.7): the canvas and its first frame, without what a file says of itself.

Never left to Pillow unread: opening makes canvases of the size that the header claims.
"""

from __future__ import annotations

import struct

import numpy as np
from PIL import _webp

from worker.crop import Pixels
from worker.errors import Rejected
from worker.examine.picture import Picture, corrupt

# 25 MB could hold three million; walking over these takes 0.1 s.
MAX_CHUNKS = 100_000
_HEADER_BYTES = 30  # of a file with a canvas: RIFF and VP8X
_ALPHA, _ANIMATION = 0x10, 0x02
_PICTURES = (b"VP8 ", b"VP8L")


def read(data: bytes) -> Picture:
    """Raises Rejected `corrupt`."""
    kind = data[12:16]
    if kind in _PICTURES:
        body = _body(data, 12)
        width, height = _size(kind, body)
        return Picture("webp", "WEBP", width, height, _riff([(kind, body)]))
    if kind != b"VP8X" or len(data) < _HEADER_BYTES:
        raise corrupt("the webp header cannot be read")
    flags, width, height = data[20], _int24(data, 24) + 1, _int24(data, 27) + 1
    chunks, frames = _first_frame(data, animated=bool(flags & _ANIMATION))
    if not chunks:
        # The size stands: an image beyond the limits is that, whatever else is wrong with it.
        return Picture("webp", "WEBP", width, height, data[:_HEADER_BYTES])
    flags &= _ALPHA | _ANIMATION
    header = bytes([flags, 0, 0, 0]) + data[24:30]
    return Picture("webp", "WEBP", width, height, _riff([(b"VP8X", header), *chunks]), frames=frames)


def region(picture: Picture, left: int, top: int, width: int, height: int) -> Pixels:
    """uint8 [height, width, 3]: that part of the first frame. Raises whatever the decoder raises.

    By Pillow's own decoder object: its image class copies the whole canvas twice more, which is 0.8 GB and five of
    seven seconds for 100 megapixels.
    """
    try:
        decoder = _webp.WebPAnimDecoder(picture.data)
    except OSError:  # "could not create decoder object"
        raise _refused(picture) from None
    (canvas_width, canvas_height), *_ = decoder.get_info()
    if (canvas_width, canvas_height) != (picture.width, picture.height):
        raise corrupt(f"opens as {canvas_width} x {canvas_height} pixels; its header was read as other")
    try:
        frame = decoder.get_next()
    except OSError:  # "failed to read next frame"
        frame = None
    if frame is None:
        raise corrupt("a webp whose first frame cannot be decoded")
    canvas = np.frombuffer(frame[0], np.uint8).reshape(canvas_height, canvas_width, 4)
    return canvas[top : top + height, left : left + width, :3].copy()


def _refused(picture: Picture) -> Rejected:
    """Why its decoder does not begin."""
    canvas = f"{picture.width} x {picture.height}"
    kind = picture.data[_HEADER_BYTES : _HEADER_BYTES + 4]
    if not kind:
        return corrupt(f"a webp of {canvas} pixels without a whole picture")
    if kind in _PICTURES:
        try:
            width, height = _size(kind, _body(picture.data, _HEADER_BYTES))
        except Rejected as rejected:
            return rejected
        if (width, height) != (picture.width, picture.height):
            return corrupt(f"a webp whose canvas is {canvas} pixels, and its picture {width} x {height}")
    return corrupt(f"a webp of {canvas} pixels whose chunks do not fit together")


def _first_frame(data: bytes, *, animated: bool) -> tuple[list[tuple[bytes, bytes]], int]:
    """The chunks of the first frame that is whole, and how many frames there are."""
    kept: list[tuple[bytes, bytes]] = []
    position, frames, done = 12, 0, False
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(data):
            break
        kind, length = struct.unpack_from("<4sI", data, position)
        if position + 8 + length > len(data):
            break
        if kind == b"ANMF":
            frames += 1
        wanted = (b"ANIM", b"ANMF") if animated else (b"ALPH", *_PICTURES)
        if kind in wanted and not done:
            kept.append((kind, data[position + 8 : position + 8 + length]))
            done = kind == b"ANMF" or kind in _PICTURES
        position += 8 + length + (length & 1)
        if done and not animated:
            break
    return (kept if done else []), max(frames, 1)


def _body(data: bytes, position: int) -> bytes:
    length = int.from_bytes(data[position + 4 : position + 8], "little")
    if position + 8 + length > len(data):
        raise corrupt("a webp that is cut off")
    return data[position + 8 : position + 8 + length]


def _size(kind: bytes, body: bytes) -> tuple[int, int]:
    if kind == b"VP8L" and len(body) >= 5 and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and len(body) >= 10 and body[3:6] == b"\x9d\x01\x2a":
        width, height = (value & 0x3FFF for value in struct.unpack_from("<HH", body, 6))
        if width and height:
            return width, height
    raise corrupt("the webp header cannot be read")


def _int24(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 3], "little")


def _riff(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [b"WEBP"]
    for kind, body in chunks:
        parts += [kind, struct.pack("<I", len(body)), body, b"\0" * (len(body) & 1)]
    body = b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body
