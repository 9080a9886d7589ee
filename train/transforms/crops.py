"""The crops: random-resized boxes for global and local views, the training tail, and the crop of inference.

Rules and rounding are torchvision's (RandomResizedCrop, Resize, CenterCrop), because those made the published weights.
The golden crops in tests/golden/crops check them.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

GLOBAL_SCALE = (0.4, 1.0)
LOCAL_SCALE = (0.05, 0.4)
RATIO = (3 / 4, 4 / 3)
CROP_FRACTION = 0.9
ATTEMPTS = 10


def sample_box(
    width: int,
    height: int,
    scale: tuple[float, float],
    rng: np.random.Generator,
    ratio: tuple[float, float] = RATIO,
) -> tuple[int, int, int, int]:
    """A random-resized-crop box (top, left, height, width) in an image of `width` x `height` pixels.

    Area uniform in `scale`, width / height log-uniform in `ratio`; after 10 boxes that do not fit, the central one with
    its ratio clamped (torchvision's RandomResizedCrop.get_params).
    """
    area = width * height
    for _ in range(ATTEMPTS):
        target = area * rng.uniform(scale[0], scale[1])
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_width, box_height = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            return (
                int(rng.integers(0, height - box_height + 1)),
                int(rng.integers(0, width - box_width + 1)),
                box_height,
                box_width,
            )
    box_width, box_height = width, height
    if width / height < ratio[0]:
        box_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        box_width = round(height * ratio[1])
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def resized_crop(image: Image.Image, top: int, left: int, height: int, width: int, size: int = 224) -> Image.Image:
    """The box cut out and resized to `size` x `size` (bicubic), RGB."""
    return (
        image.convert("RGB")
        .crop((left, top, left + width, top + height))
        .resize((size, size), Image.Resampling.BICUBIC)
    )


def center_anchor(extent: int, size: int) -> tuple[int, int]:
    """(padding before, offset of the crop after padding) along one axis of `extent` pixels: floor for the padding, half
    to even for the crop.
    """
    if extent < size:
        return (size - extent) // 2, 0
    return 0, round((extent - size) / 2)


def center_crop(image: Image.Image, size: int = 224) -> np.ndarray:
    """uint8 [size, size, 3]: the crop of inference. Native resolution, black padding where the image is smaller, no
    EXIF rotation.
    """
    pad_left, left = center_anchor(image.width, size)
    pad_top, top = center_anchor(image.height, size)
    box = (left, top, left + min(size, image.width), top + min(size, image.height))
    # Cropping first keeps the conversion cheap; it is the same pixels, except in a palette's or CMYK's own space, which
    # is per pixel too.
    pixels = np.asarray(image.crop(box).convert("RGB") if image.mode != "RGB" else image.crop(box))
    if pixels.shape[:2] == (size, size):
        return pixels.copy()
    canvas = np.zeros((size, size, 3), dtype=np.uint8)
    canvas[pad_top : pad_top + pixels.shape[0], pad_left : pad_left + pixels.shape[1]] = pixels
    return canvas


def tail_size(width: int, height: int, short: int) -> tuple[int, int]:
    """(width, height) after a resize of the shorter side to `short`; the longer one is truncated."""
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def resize_tail(image: Image.Image, size: int = 224) -> np.ndarray:
    """uint8 [size, size, 3]: the end of every training view. Shorter side to floor(size / 0.9) (248 for 224), bicubic,
    then the centre.
    """
    image = image.convert("RGB")
    target = tail_size(image.width, image.height, math.floor(size / CROP_FRACTION))
    return center_crop(image.resize(target, Image.Resampling.BICUBIC) if target != image.size else image, size)
