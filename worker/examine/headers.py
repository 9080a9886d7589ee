"""What an image's header says, without decoding it: format, size, cost, and the bytes that its pixels depend on.

The format is told by the first bytes; one reader for each walks the file and says what a decoder may open, and nothing
else is opened. A header costs milliseconds whatever it holds. AVIF, and HEIC where the extra `heif` is installed, are
measured by their decoder.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from PIL import Image

from worker.contract import ImageInfo
from worker.errors import Rejected, RejectReason
from worker.examine import bmp, boxes, gif, jpeg, jxl, others, png, tiff, webp
from worker.examine.picture import Picture, corrupt, reason_of, unsupported
from worker.settings import LimitSettings

# Pillow's own guard knows one number for all and would refuse images below our limits; check_limits() stands before
# every decode.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns about odd metadata of single images; what comes in is not ours to mend, and a sender could fill the log
# with it.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())
logging.getLogger("PIL").propagate = False

# Format -> Pillow's name of it and the package that brings it; worker[heif] installs both.
_PLUGINS = {"heic": ("HEIF", "pillow_heif", "HEIC"), "jxl": ("JXL", "pillow_jxl", "JPEG XL")}


# What libavif and libheif take at most.
_MAX_SIDE_PX = 32_768
_MAX_DECODER_PX = 16_384 * 16_384


@dataclass(frozen=True, slots=True)
class Header:
    """What was checked (`info`), and what is opened for it (`picture`)."""

    info: ImageInfo
    picture: Picture


def read(data: bytes, *, stage: str = "intake") -> Header:
    """The header of an image; MPO counts as JPEG. A header that can be read is no promise that the image decodes.

    Raises Rejected: `empty`; `unsupported_format` for a format that the contract does not name, or a variant that is
    not read, which `detail` names; `corrupt` for a header that cannot be read.
    """
    try:
        picture = _read(data)
    except Rejected as rejected:
        raise Rejected(rejected.reason, rejected.detail, stage=stage) from None
    info = ImageInfo(
        format=picture.format,
        width=picture.width,
        height=picture.height,
        bytes=len(data),
        jpeg_quality=picture.jpeg_quality,
        frames=picture.frames,
    )
    return Header(info, picture)


def peek(data: bytes, *, stage: str = "intake") -> ImageInfo:
    """Format and size (pixels) from the header alone. Raises as `read` does."""
    return read(data, stage=stage).info


def jpeg_quality(data: bytes) -> int | None:
    """1 to 100, of libjpeg's scale, estimated from the quantisation tables; None where `data` is no readable JPEG."""
    if _sniff(data) != "jpeg":
        return None
    try:
        return jpeg.read(data).jpeg_quality
    except Rejected:
        return None


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


def _read(data: bytes) -> Picture:
    if not data:
        raise Rejected(RejectReason.EMPTY, "no bytes", stage="intake")
    name = _sniff(data)
    if name is None:
        seen = others.name(data)
        seems = f", which looks like {seen}" if seen else ""
        raise unsupported(f"begins with {data[:12]!r}{seems}: no JPEG, PNG, WebP, BMP, TIFF, GIF or AVIF")
    try:
        return _READERS[name](data)
    except (IndexError, ValueError, OverflowError, struct.error):
        # Where a reader runs off the end; the fuzzer's finds say where.
        raise corrupt(f"the {name} header cannot be read") from None


def _sniff(data: bytes) -> str | None:
    """The format by its first bytes, or None."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(png.SIGNATURE):
        return "png"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if data.startswith(b"BM"):
        return "bmp"
    if data.startswith(tiff.STARTS):
        return "tiff"
    if data.startswith(jxl.STARTS):
        return "jxl"
    brand = boxes.brand(data)
    return "avif" if brand == b"avif" else "heic" if brand else None


def _by_decoder(data: bytes, name: str, opener: str) -> Picture:
    """A picture whose header only its decoder reads; nothing is decoded for it."""
    hidden = boxes.plain(data)
    try:
        with Image.open(io.BytesIO(hidden), formats=[opener]) as image:
            (width, height), frames = image.size, getattr(image, "n_frames", 1)
    except MemoryError:
        raise corrupt(f"the {name} header asks for more memory than there is") from None
    except Exception as error:  # noqa: BLE001 - Pillow's plugins raise whatever their parsing runs into
        return _without_decoder(hidden, name, opener, error)
    return Picture(name, opener, width, height, hidden, frames=frames)


def _without_decoder(data: bytes, name: str, opener: str, error: Exception) -> Picture:
    """A picture of the size that the boxes claim, where its decoder says nothing for it is too large; else Rejected."""
    width, height = boxes.size(data)
    if max(width, height) > _MAX_SIDE_PX or width * height > _MAX_DECODER_PX:
        if width * height <= _MAX_DECODER_PX:
            raise unsupported(f"{width} x {height} pixels, where the decoder of {name} takes {_MAX_SIDE_PX} a side")
        return Picture(name, opener, width, height, data)
    missing = boxes.missing(data)
    if missing:
        raise corrupt(f"the {name} is cut off: {missing} bytes are missing")
    raise corrupt(f"the {name} header cannot be read ({reason_of(error, data, opener)})")


def _read_avif(data: bytes) -> Picture:
    if "AVIF" not in Image.registered_extensions().values():
        raise unsupported("AVIF, which this Pillow does not read: install pillow>=11.3")
    return _by_decoder(data, "avif", "AVIF")


def _read_plugin(data: bytes, name: str) -> Picture:
    opener, package, spoken = _PLUGINS[name]
    if find_spec(package) is None:
        raise unsupported(
            f"{spoken}, which is read where the extra heif is installed: pip install 'assay-worker[heif]'"
        )
    load_plugins()
    return jxl.read(data) if name == "jxl" else _by_decoder(data, name, opener)


def load_plugins() -> None:
    """Import every decoder that is installed, so that none is loaded while an image waits."""
    Image.init()
    for opener, package, _ in _PLUGINS.values():
        if find_spec(package) is not None and opener not in Image.OPEN:
            module = import_module(package)
            if opener == "HEIF":
                module.register_heif_opener(thumbnails=False)
            else:
                module.JpegXLImagePlugin.DECODE_THREADS = 0  # children are as many as cores


_READERS: dict[str, Callable[[bytes], Picture]] = {
    "jpeg": jpeg.read,
    "png": png.read,
    "webp": webp.read,
    "gif": gif.read,
    "bmp": bmp.read,
    "tiff": tiff.read,
    "avif": _read_avif,
    "heic": lambda data: _read_plugin(data, "heic"),
    "jxl": lambda data: _read_plugin(data, "jxl"),
}
