"""What the decoder makes of bytes, for the tests of each format: the crop, or the rejection."""

import io

import numpy as np
from PIL import Image

from worker.errors import Rejected
from worker.examine import headers
from worker.examine.pixels import CROP_PX, central_region, try_pillow

Crop = np.ndarray


def crop_of(data: bytes) -> Crop:
    """The decoded region. Raises Rejected."""
    outcome = try_pillow(headers.read(data).picture)
    if isinstance(outcome, Rejected):
        raise outcome
    return outcome


def shown(image: Image.Image) -> Crop:
    """What a viewer shows in the middle."""
    left, top, width, height = central_region(*image.size)
    return np.asarray(image.convert("RGB").crop((left, top, left + width, top + height)))


def rejected(data: bytes) -> str:
    """`reason: detail` of its rejection."""
    try:
        crop = crop_of(data)
    except Rejected as rejection:
        return str(rejection)
    raise AssertionError(f"decoded to {crop.shape}, at most {CROP_PX}")


def opened(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
    return image
