"""What happens to images on their way to a moderator, for robustness sweeps: each kind at several strengths, on the
whole image.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial

from PIL import Image, ImageFilter

from train.data.images import MAX_PIXELS, BadImage

Degrade = Callable[[Image.Image], Image.Image]


def encode(image: Image.Image, kind: str, quality: int) -> Image.Image:
    """Encoded and decoded again."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality)
    with Image.open(buffer) as decoded:
        return decoded.convert("RGB")


def shorter_side(image: Image.Image, pixels: int) -> Image.Image:
    """Resized (Lanczos) so that the shorter side has `pixels`. Raises BadImage where that would pass the limit of a
    decoded image.
    """
    factor = pixels / min(image.size)
    width, height = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    if width * height > MAX_PIXELS:
        raise BadImage(
            f"{image.width}x{image.height} with a shorter side of {pixels} is more than "
            f"{MAX_PIXELS // 1_000_000} megapixels"
        )
    return image.resize((width, height), Image.Resampling.LANCZOS)


def blurred(image: Image.Image, radius_px: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius_px))


def central(image: Image.Image, fraction: float) -> Image.Image:
    """The central part with `fraction` of each side."""
    width, height = max(1, round(image.width * fraction)), max(1, round(image.height * fraction))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def shared(image: Image.Image, times: int) -> Image.Image:
    """A social-media chain: longer side to at most 1080 and JPEG 80, then `times - 1` screenshots (0.9 of the size,
    JPEG 70).
    """
    if max(image.size) > 1080:
        image = shorter_side(image, round(min(image.size) * 1080 / max(image.size)))
    image = encode(image, "JPEG", 80)
    for _ in range(times - 1):
        image = encode(shorter_side(image, max(1, round(min(image.size) * 0.9))), "JPEG", 70)
    return image


SWEEPS: Mapping[str, Mapping[str, Degrade]] = {
    "JPEG quality": {str(quality): partial(encode, kind="JPEG", quality=quality) for quality in (95, 85, 75, 65, 50)},
    "WebP quality": {str(quality): partial(encode, kind="WEBP", quality=quality) for quality in (90, 75, 50)},
    "shorter side, px": {str(pixels): partial(shorter_side, pixels=pixels) for pixels in (256, 384, 512, 768, 1024)},
    "blur radius, px": {str(radius): partial(blurred, radius_px=radius) for radius in (0.5, 1.0, 2.0)},
    "central part": {str(fraction): partial(central, fraction=fraction) for fraction in (0.9, 0.7, 0.5)},
    "times shared": {str(times): partial(shared, times=times) for times in (1, 2, 3)},
}
