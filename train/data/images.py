"""Bytes -> RGB image, with a name for everything that can be wrong with them. Every format that Pillow reads, first frame."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import decode_jpeg

MAX_PIXELS = 100_000_000
# Pillow's format names -> the extension under which original bytes are kept.
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "AVIF": "avif"}


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
    """The first frame as RGB, no EXIF rotation. Raises BadImage for anything that is no whole image of at most 100 megapixels."""
    with _opened(data) as image:
        try:
            return image.convert("RGB")
        except Exception as error:  # as in _opened
            raise BadImage(f"cannot be decoded: {error}") from error


def decode_tensor(data: bytes) -> Tensor:
    """uint8 [1, 3, H, W], channels last in memory: the pixels of `decode_image`, for JPEG without Pillow's copies. Raises BadImage."""
    with _opened(data) as image:
        plain = image.format == "JPEG" and image.mode == "RGB"
    if plain:
        try:
            return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))[None]
        except RuntimeError as error:
            raise BadImage(f"cannot be decoded: {str(error).splitlines()[0]}") from error
    return torch.from_numpy(np.array(decode_image(data))).permute(2, 0, 1)[None]


def _opened(data: bytes) -> Image.Image:
    if not data:
        raise BadImage("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # size and EXIF warnings: the size is checked below
            image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise BadImage("not an image") from error
    except Exception as error:  # broken bytes raise whatever a plugin runs into: RuntimeError (AVIF), struct.error, zlib.error, ...
        raise BadImage(f"broken header: {error}") from error
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(f"{image.width}x{image.height} is more than {MAX_PIXELS // 1_000_000} megapixels")
    return image
