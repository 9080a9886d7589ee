"""What an image's header says, without decoding it: format, size, and whether that is within the limits.

JPEG, PNG, WebP and GIF are read right here (a few microseconds, and no buffer is made for a size that only a header
claims); Pillow opens the rest and whatever looks unusual. Sizes are those of Pillow's first frame.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from worker.contract import ImageInfo
from worker.errors import Rejected, RejectReason
from worker.settings import LimitSettings

# Pillow's own guard knows one number for all and would refuse images below our limits; check_limits() stands before
# every decode.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns about odd metadata of single images; what comes in is not ours to mend, and a sender could fill the log
# with it.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_JPEG_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_JPEG_SCAN = 0xDA
# Segments that carry a length; anything else before the scan is unusual.
_JPEG_SEGMENTS = _JPEG_FRAMES | {0xC4, 0xCC, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}
_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TIFF_TILE_WIDTH, _TIFF_TILE_LENGTH = 322, 323
# A tile may be larger than a small image; 4096 x 4096 is beyond any that is in use.
_MAX_SPARE_TILE_PX = 1 << 24
_AVIF_BRANDS = (b"avif", b"avis", b"mif1", b"msf1")
_TRIED = {
    "jpeg": ["JPEG"],
    "png": ["PNG"],
    "webp": ["WEBP"],
    "bmp": ["BMP"],
    "tiff": ["TIFF"],
    "gif": ["GIF"],
    "avif": ["AVIF"],
}


@dataclass(frozen=True, slots=True)
class JpegFrame:
    """A JPEG's frame header. `marker`: 0xC0 is baseline; `scan`: where the first scan's marker stands."""

    marker: int
    width: int
    height: int
    components: int
    scan: int


def jpeg_frame(data: bytes) -> JpegFrame | None:
    """The frame header of an ordinary JPEG (ITU-T T.81, annex B); None where anything before the scan is unusual."""
    position, size = 2, len(data)
    found: tuple[int, int, int, int] | None = None
    while position + 4 <= size:
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == _JPEG_SCAN:
            return JpegFrame(*found, scan=position) if found else None
        if marker not in _JPEG_SEGMENTS:
            return None
        length = data[position + 2] << 8 | data[position + 3]
        if length < 2:
            return None
        if marker in _JPEG_FRAMES:
            if found or length < 8 or position + 10 > size:
                return None
            precision, height, width, components = struct.unpack_from(">BHHB", data, position + 4)
            if precision != 8 or not width or not height or components not in (1, 3, 4) or length != 8 + 3 * components:
                return None
            found = (marker, width, height, components)
        position += 2 + length
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    frame = jpeg_frame(data)
    return (frame.width, frame.height) if frame else None


def _png_size(data: bytes) -> tuple[int, int] | None:
    """PNG, third edition, 11.2.1."""
    if len(data) < 33 or not data.startswith(_PNG_START):
        return None
    width, height = struct.unpack_from(">II", data, 16)
    return (width, height) if 0 < width < 2**31 and 0 < height < 2**31 else None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """RFC 9649, 2.5 to 2.7. Never left to Pillow: opening makes two canvases of the size that the header claims."""
    if len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = (value & 0x3FFF for value in struct.unpack_from("<HH", data, 26))
        return (width, height) if width and height else None
    return None


def _gif_size(data: bytes) -> tuple[int, int] | None:
    """The screen, or the first frame where that reaches further (GIF89a). Never left to Pillow: opening may fill a
    whole frame.
    """
    if len(data) < 13:
        return None
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while position < len(data) and data[position] != 0x2C:
        if data[position] == 0x3B:
            return None
        if data[position] != 0x21:  # what stands between blocks is skipped, as Pillow does
            position += 1
            continue
        position += 2
        while position < len(data) and data[position]:
            position += 1 + data[position]
        position += 1
    if position + 10 > len(data):
        return None
    left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, position + 1)
    width, height = max(width, left + frame_width), max(height, top + frame_height)
    return (width, height) if width and height else None


def _sniff(data: bytes) -> str | None:
    """The format by its first bytes, one of the contract's, or None."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if data.startswith(b"BM"):
        return "bmp"
    if data.startswith(_TIFF_STARTS):
        return "tiff"
    if data[4:8] == b"ftyp" and data[8:12] in _AVIF_BRANDS:
        return "avif"
    return None


def _size_by_pillow(data: bytes, name: str) -> tuple[int, int]:
    with Image.open(io.BytesIO(data), formats=_TRIED[name]) as image:
        width, height = image.size
        if name == "tiff":
            _check_tiff_tile(image, width * height)
        return width, height


def _check_tiff_tile(image: Image.Image, pixels: int) -> None:
    """The decoder makes room for a whole tile: 146 bytes that claim a tile of 32768 x 32768 for an image of 16 x 16
    take 1 GB.
    """
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    tile = int(tags.get(_TIFF_TILE_WIDTH, 1)) * int(tags.get(_TIFF_TILE_LENGTH, 1))
    if tile > max(4 * pixels, _MAX_SPARE_TILE_PX):
        raise ValueError(f"a tile of {tile} pixels in an image of {pixels}")


_READERS = {"jpeg": _jpeg_size, "png": _png_size, "webp": _webp_size, "gif": _gif_size}
_NEVER_BY_PILLOW = ("webp", "gif")


def peek(data: bytes, *, stage: str = "intake") -> ImageInfo:
    """Format and size (pixels) from the header alone; MPO counts as JPEG.

    A header that can be read is no promise that the image decodes. Raises Rejected: `empty`, `unsupported_format` for
    bytes
    that begin like none of the contract's formats, `corrupt` for a header that cannot be read; MemoryError passes
    through.
    """
    if not data:
        raise Rejected(RejectReason.EMPTY, "no bytes", stage=stage)
    name = _sniff(data)
    if name is None:
        raise Rejected(
            RejectReason.UNSUPPORTED_FORMAT,
            f"begins with {data[:12]!r}: no JPEG, PNG, WebP, BMP, TIFF, GIF or AVIF",
            stage=stage,
        )
    reader = _READERS.get(name)
    size = reader(data) if reader else None
    if size is None:
        if name in _NEVER_BY_PILLOW:
            raise Rejected(RejectReason.CORRUPT, f"the {name} header cannot be read", stage=stage)
        try:
            size = _size_by_pillow(data, name)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - Pillow's plugins raise whatever their parsing runs into
            unknown = name == "avif" and data[8:12] not in (b"avif", b"avis")
            reason = RejectReason.UNSUPPORTED_FORMAT if unknown else RejectReason.CORRUPT
            raise Rejected(
                reason, f"the {name} header cannot be read ({type(error).__name__}: {error})"[:300], stage=stage
            ) from None
    width, height = size
    if width < 1 or height < 1:
        raise Rejected(RejectReason.CORRUPT, f"the {name} header says {width} x {height} pixels", stage=stage)
    return ImageInfo(format=name, width=width, height=height, bytes=len(data))


def check_limits(info: ImageInfo, limits: LimitSettings, *, stage: str = "intake") -> None:
    """Raises Rejected `too_large` or `too_many_pixels` for an image beyond `limits`; nothing is decoded for it."""
    if info.bytes > limits.max_image_bytes:
        raise Rejected(
            RejectReason.TOO_LARGE, f"{info.bytes} bytes, at most {limits.max_image_bytes} are taken", stage=stage
        )
    if info.width * info.height > limits.max_image_pixels:
        raise Rejected(
            RejectReason.TOO_MANY_PIXELS,
            f"{info.width} x {info.height} pixels, at most {limits.max_image_pixels} are taken",
            stage=stage,
        )
