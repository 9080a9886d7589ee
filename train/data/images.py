"""Bytes -> RGB image, with a name for everything that can be wrong with them. Every format that Pillow reads, first
frame.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torchvision.io import decode_jpeg, decode_webp

MAX_PIXELS = 100_000_000
Image.init()
_FORMATS = [name for name in Image.ID if name != "EPS"]  # Pillow hands that one to an interpreter (Ghostscript)
# Pillow's format names -> the extension under which original bytes are kept.
EXTENSIONS = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
    "AVIF": "avif",
}
_DECODERS = {"JPEG": decode_jpeg, "WEBP": decode_webp}  # not decode_png, which kills the process on some broken files


class DataError(ValueError):
    """The data cannot be used as asked; the message says what to change."""


class BadImage(ValueError):
    """These bytes are no usable image; the message says why."""


@dataclass(frozen=True)
class Header:
    """What the header says: Pillow's format name and the size in pixels."""

    format: str
    width: int
    height: int


def read_header(data: bytes) -> Header:
    """Format and size without decoding. Raises BadImage."""
    with _opened(data) as image:
        return Header(image.format or "unknown", image.width, image.height)


def decode_image(data: bytes) -> Image.Image:
    """The first frame as RGB, no EXIF rotation. Raises BadImage for anything that is no whole image of at most 100
    megapixels.
    """
    with _opened(data) as image:
        try:
            return image.convert("RGB")
        except Exception as error:  # as in _opened
            raise BadImage(f"cannot be decoded: {error}") from error


def decode_pixels(data: bytes) -> np.ndarray:
    """uint8 [H, W, 3]: the pixels of `decode_image`, without Pillow's copies for the formats of a data set's bulk.
    Raises BadImage.
    """
    with _opened(data) as image:
        plain = image.mode == "RGB" and not getattr(image, "is_animated", False)
        decoder = _DECODERS.get(image.format or "") if plain else None
    if decoder is not None:
        try:
            pixels = decoder(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        except RuntimeError as error:
            raise BadImage(f"cannot be decoded: {str(error).splitlines()[0]}") from error
        if pixels.dtype == torch.uint8 and len(pixels) == len("RGB"):  # else there is more to it: as Pillow reads it
            return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
    return np.array(decode_image(data))


def _opened(data: bytes) -> Image.Image:
    if not data:
        raise BadImage("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # size and EXIF warnings: the size is checked below
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise BadImage("not an image") from error
    except (
        Exception
    ) as error:  # broken bytes raise whatever a plugin runs into: RuntimeError (AVIF), struct.error, zlib.error, ...
        raise BadImage(f"broken header: {error}") from error
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(f"{image.width}x{image.height} is more than {MAX_PIXELS // 1_000_000} megapixels")
    return image
