"""The 19 image ops of CoDE's transform operator T, as pure functions of a PIL image and their parameters.

Semantics are those of augly 1.0.0 with the released arguments (`params` of the golden rows), torchvision's RandomCrop
for `random_crop`. Why written anew: the originals read and reseed NumPy's global generator, which ties workers to one
another. No function here reads or changes global state. Every op converts its input to RGB and returns RGB.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

Op = Callable[..., Image.Image]


def _rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def blur(image: Image.Image, radius: float = 2.0) -> Image.Image:
    """Gaussian blur; `radius` is the standard deviation in pixels (Pillow's approximation by box blurs)."""
    return _rgb(image).filter(ImageFilter.GaussianBlur(radius))


def brightness(image: Image.Image, factor: float = 1.0) -> Image.Image:
    """Blend with black: 0 black, 1 unchanged, above 1 brighter."""
    return ImageEnhance.Brightness(_rgb(image)).enhance(factor)


def aspect_ratio(image: Image.Image, ratio: float = 1.0) -> Image.Image:
    """Stretch to `ratio` = width / height, keeping the area up to truncation to whole pixels."""
    image = _rgb(image)
    area = image.width * image.height
    width = max(1, int(math.sqrt(ratio * area)))
    return image.resize((width, max(1, int(area / width))), Image.Resampling.BICUBIC)


def pixelization(image: Image.Image, ratio: float = 1.0) -> Image.Image:
    """Shrink by `ratio` and stretch back to the first size, both bicubic."""
    image = _rgb(image)
    small = image.resize(
        (max(1, int(image.width * ratio)), max(1, int(image.height * ratio))), Image.Resampling.BICUBIC
    )
    return small.resize(image.size, Image.Resampling.BICUBIC)


def largest_inscribed(width: float, height: float, radians: float) -> tuple[float, float]:
    """Width and height of the largest axis-aligned rectangle inside a `width` x `height` one turned by `radians`.

    Either two of its corners touch the long sides (a thin rectangle, or 45 degrees) or all four touch a side.
    """
    long, short = max(width, height), min(width, height)
    sine, cosine = abs(math.sin(radians)), abs(math.cos(radians))
    if short <= 2.0 * sine * cosine * long or abs(sine - cosine) < 1e-10:
        half = 0.5 * short
        return (half / sine, half / cosine) if width >= height else (half / cosine, half / sine)
    double_cosine = cosine * cosine - sine * sine
    return (width * cosine - height * sine) / double_cosine, (height * cosine - width * sine) / double_cosine


def inscribed_box(
    width: int, height: int, degrees: float, turned_width: int, turned_height: int
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the largest inscribed rectangle within the turned, expanded image."""
    inner_width, inner_height = largest_inscribed(width, height, math.radians(degrees))
    center_x, center_y = turned_width / 2, turned_height / 2
    left, top = int(center_x - inner_width / 2), int(center_y - inner_height / 2)
    return left, top, max(left + 1, int(center_x + inner_width / 2)), max(top + 1, int(center_y + inner_height / 2))


def rotation(image: Image.Image, degrees: float = 0.0) -> Image.Image:
    """Turn counter-clockwise (nearest neighbour), then keep the largest inscribed rectangle, so that no corner is
    black.
    """
    image = _rgb(image)
    turned = image.rotate(degrees, expand=True)
    return turned.crop(inscribed_box(image.width, image.height, degrees, turned.width, turned.height))


def contrast(image: Image.Image, factor: float = 1.0) -> Image.Image:
    """Blend with the mean grey: 0 plain grey, 1 unchanged."""
    return ImageEnhance.Contrast(_rgb(image)).enhance(factor)


def saturation(image: Image.Image, factor: float = 1.0) -> Image.Image:
    """Blend with the grey version: 0 grey, 1 unchanged."""
    return ImageEnhance.Color(_rgb(image)).enhance(factor)


def encoding_quality(image: Image.Image, quality: int = 50) -> Image.Image:
    """Encode as JPEG (4:2:0, as Pillow does by default) at `quality` and decode again."""
    buffer = io.BytesIO()
    _rgb(image).save(buffer, format="JPEG", quality=int(quality))
    with Image.open(buffer) as decoded:
        return decoded.convert("RGB")


def grayscale(image: Image.Image, mode: str = "luminosity") -> Image.Image:
    """ITU-R 601 luma in all three channels. Raises ValueError for another mode than the recipe's `luminosity`."""
    if mode != "luminosity":
        raise ValueError(f"grayscale mode {mode!r}: the recipe has 'luminosity' only")
    return _rgb(image).convert("L").convert("RGB")


def hflip(image: Image.Image) -> Image.Image:
    """Mirror left to right."""
    return ImageOps.mirror(_rgb(image))


def opacity(image: Image.Image, level: float = 1.0) -> Image.Image:
    """Blend with white: 0 white, 1 unchanged. The mask is 8 bit, as in the original."""
    image = _rgb(image)
    mask = Image.new("L", image.size, int(255 * level))
    return Image.composite(image, Image.new("RGB", image.size, (255, 255, 255)), mask)


def stripe_mask(width: int, height: int, line_width: float, line_angle: float, line_density: float) -> np.ndarray:
    """Bool [height, width], True inside a stripe.

    The stripes are where a cosine of period `(1 - line_density) * min(width, height)` pixels exceeds the value that
    leaves `line_width` (a fraction of the period) above it; one stripe runs through the middle of the image.
    """
    if line_density == 1.0:
        return np.ones((height, width), dtype=bool)
    radians = math.radians(line_angle)
    distance = (1 - line_density) * min(width, height)
    across, down = np.arange(width)[None, :] - width / 2, np.arange(height)[:, None] - height / 2
    phase = (
        across * (math.sin(radians) / distance) - down * (math.cos(radians) / distance)
        if line_angle
        else down * (-1 / distance)
    )
    softness = (np.cos(2 * math.pi * phase) + 1) / 2
    return np.broadcast_to(softness > (math.cos(math.pi * line_width) + 1) / 2, (height, width))


def overlay_stripes(
    image: Image.Image,
    line_width: float = 0.5,
    line_angle: float = 0,
    line_color: Sequence[int] = (255, 255, 255),
    line_opacity: float = 1.0,
    line_density: float = 0.5,
    line_type: str = "solid",
) -> Image.Image:
    """Paint stripes. Raises ValueError for another `line_type` than the recipe's `solid`."""
    if line_type != "solid":
        raise ValueError(f"line_type {line_type!r}: the recipe has 'solid' only")
    image = _rgb(image).copy()
    mask = stripe_mask(image.width, image.height, line_width, line_angle, line_density)
    color: Any = tuple(int(value) for value in line_color)
    image.paste(Image.new("RGB", image.size, color), mask=Image.fromarray(np.uint8(mask * line_opacity * 255)))
    return image


def pad(
    image: Image.Image, w_factor: float = 0.25, h_factor: float = 0.25, color: Sequence[int] = (0, 0, 0)
) -> Image.Image:
    """Add a border of `w_factor` of the width left and right, `h_factor` of the height above and below."""
    image = _rgb(image)
    left, top = int(image.width * w_factor), int(image.height * h_factor)
    fill: Any = tuple(int(value) for value in color)
    padded = Image.new("RGB", (image.width + 2 * left, image.height + 2 * top), fill)
    padded.paste(image, (left, top))
    return padded


def resize(image: Image.Image, width: int, height: int, resample: int = Image.Resampling.BICUBIC) -> Image.Image:
    """Resize to `width` x `height`, whatever the shape was."""
    return _rgb(image).resize((int(width), int(height)), Image.Resampling(resample))


def random_crop_padding(width: int, height: int, size: tuple[int, int]) -> tuple[int, int]:
    """Black pixels (left and right, above and below) before a crop of `size` = (height, width).

    Each side gets the whole deficit, not half of it (torchvision's rule), so a small image can end up mostly black.
    """
    return max(0, size[1] - width), max(0, size[0] - height)


def random_crop(
    image: Image.Image,
    size: int | Sequence[int],
    top: int | None = None,
    left: int | None = None,
    seed: int | None = None,
    *,
    pad_if_needed: bool = True,
    fill: int = 0,
    padding_mode: str = "constant",
) -> Image.Image:
    """Cut `size` (height, width) out of the padded image, at `top`, `left` or where `seed` places it uniformly.

    Raises ValueError if neither `top` and `left` nor `seed` is given, if the crop does not fit and `pad_if_needed` is
    off, or for a `padding_mode` other than the recipe's `constant`.
    """
    if padding_mode != "constant":
        raise ValueError(f"padding_mode {padding_mode!r}: the recipe has 'constant' only")
    image = _rgb(image)
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    pad_x, pad_y = random_crop_padding(image.width, image.height, (height, width))
    if (pad_x or pad_y) and not pad_if_needed:
        raise ValueError(
            f"a crop of {width}x{height} does not fit into {image.width}x{image.height}: set pad_if_needed"
        )
    padded = ImageOps.expand(image, (pad_x, pad_y, pad_x, pad_y), fill=(fill, fill, fill)) if pad_x or pad_y else image
    if top is None or left is None:
        top, left = place_crop(padded.width, padded.height, (height, width), seed)
    return padded.crop((left, top, left + width, top + height))


def place_crop(width: int, height: int, size: tuple[int, int], seed: int | None) -> tuple[int, int]:
    """(top, left), uniform over all places where a crop of `size` = (height, width) fits. Raises ValueError without a
    seed.
    """
    if seed is None:
        raise ValueError("random_crop needs top and left, or a seed")
    rng = np.random.default_rng(seed)
    return int(rng.integers(0, height - size[0] + 1)), int(rng.integers(0, width - size[1] + 1))


def scale(image: Image.Image, factor: float = 0.5, interpolation: int | None = None) -> Image.Image:
    """Resize by `factor`; without `interpolation` Lanczos when shrinking and bilinear when growing."""
    image = _rgb(image)
    default = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BILINEAR
    size = (max(1, int(image.width * factor)), max(1, int(image.height * factor)))
    return image.resize(size, default if interpolation is None else Image.Resampling(interpolation))


def sharpen(image: Image.Image, factor: float = 1.0) -> Image.Image:
    """Extrapolate away from a smoothed version: 1 unchanged, above 1 sharper."""
    return ImageEnhance.Sharpness(_rgb(image)).enhance(factor)


def shuffle_indices(count: int, factor: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 targets and sources among `count` pixels: `int(factor * count)` of them change places with one another."""
    sources = np.random.default_rng(seed).choice(count, size=int(factor * count), replace=False)
    # The same pixels in ascending order: against the random order that `choice` gives them they are a random
    # permutation.
    chosen = np.zeros(count, dtype=bool)
    chosen[sources] = True
    return np.flatnonzero(chosen), sources


def shuffle_pixels(image: Image.Image, factor: float = 1.0, seed: int = 0) -> Image.Image:
    """Permute a random fraction `factor` of the pixels among themselves; `seed` decides which and how."""
    image = _rgb(image)
    pixels = np.array(image).reshape(-1, 3)
    targets, sources = shuffle_indices(len(pixels), factor, seed)
    pixels[targets] = pixels[sources]
    return Image.fromarray(pixels.reshape(image.height, image.width, 3))


def skew(image: Image.Image, skew_factor: float = 0.5, axis: int = 0) -> Image.Image:
    """Shear about the middle (bilinear, black outside): axis 0 shifts the rows, axis 1 the columns."""
    image = _rgb(image)
    along_x = (1, skew_factor, -skew_factor * image.height / 2, 0, 1, 0)
    along_y = (1, 0, 0, skew_factor, 1, -skew_factor * image.width / 2)
    matrix = along_x if axis == 0 else along_y
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)


# In the order in which T applies them.
OPS: Mapping[str, Op] = MappingProxyType(
    {
        op.__name__: op
        for op in (
            blur,
            brightness,
            aspect_ratio,
            pixelization,
            rotation,
            contrast,
            saturation,
            encoding_quality,
            grayscale,
            hflip,
            opacity,
            overlay_stripes,
            pad,
            resize,
            random_crop,
            scale,
            sharpen,
            shuffle_pixels,
            skew,
        )
    }
)
