"""What the decoder makes of bytes, for the tests of each format: the crop, or the rejection."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from worker.errors import Rejected
from worker.examine import headers
from worker.examine.body import Body
from worker.examine.pixels import CROP_PX, central_region, try_pillow

Crop = np.ndarray


def crop_of(data: bytes) -> Crop:
    """The decoded region. Raises Rejected."""
    outcome = try_pillow(headers.read(data).picture)
    if isinstance(outcome, Rejected):
        raise outcome
    return outcome


def decoded(body: Body, images: Sequence[bytes]) -> tuple[Crop, dict[int, Rejected]]:
    """The crops of images within the limits, as a child makes them: together where it can, else one by one."""
    pixels = np.zeros((len(images), CROP_PX, CROP_PX, 3), np.uint8)
    headers_read = [body.read(image, 100_000_000, 100_000_000) for image in images]
    together = [i for i, header in enumerate(headers_read) if header.together]
    refused = (
        body.decode_together([headers_read[i] for i in together], [pixels[i] for i in together]) if together else set()
    )
    failures: dict[int, Rejected] = {}
    for i in sorted({*range(len(images))} - {at for n, at in enumerate(together) if n not in refused}):
        try:
            body.decode_one(headers_read[i], pixels[i])
        except Rejected as rejection:
            failures[i] = rejection
    return pixels, failures


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
