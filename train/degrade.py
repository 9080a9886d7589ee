"""What happens to images on their way to a moderator, for robustness sweeps: each kind at several strengths, chains of
them, and what sharing does, on the whole image.

The profiles are patterns of what services do (longest side, codec, quality), not measurements of any one of them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
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


def scaled(image: Image.Image, factor: float) -> Image.Image:
    """By `factor`; an image stays at least 32 px."""
    return shorter_side(image, max(32, round(min(image.size) * factor)))


def noisy(image: Image.Image, levels: float, seed: int) -> Image.Image:
    """Normal noise of so many grey levels, each channel on its own, as of a camera in the dark."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    added = pixels + np.random.default_rng(seed).normal(0, levels, pixels.shape).astype(np.float32)
    return Image.fromarray(np.clip(np.rint(added), 0, 255).astype(np.uint8))


def longest_side(image: Image.Image, pixels: int) -> Image.Image:
    """Shrunk to that longer side; smaller images stay."""
    return image if max(image.size) <= pixels else scaled(image, pixels / max(image.size))


def resent(image: Image.Image, pixels: int, kind: str, quality: int) -> Image.Image:
    """As a service keeps it: the longer side at most `pixels`, then encoded."""
    return encode(longest_side(image, pixels), kind, quality)


def in_turn(image: Image.Image, steps: Sequence[Degrade]) -> Image.Image:
    for step in steps:
        image = step(image)
    return image


def chain(draw: int, length: int) -> Degrade:
    """`length` (1 to 5) different distortions, drawn by the number `draw` alone: a longer chain begins as the shorter
    one.
    """
    rng = np.random.default_rng([2604, draw])
    drawn: list[Degrade] = [
        partial(encode, kind="JPEG", quality=int(rng.integers(30, 96))),
        partial(encode, kind="WEBP", quality=int(rng.integers(30, 91))),
        partial(encode, kind="AVIF", quality=int(rng.integers(35, 86))),
        partial(scaled, factor=float(rng.uniform(0.5, 1.5))),
        partial(central, fraction=float(rng.uniform(0.6, 1.0))),
        partial(blurred, radius_px=float(rng.uniform(0.3, 1.5))),
        partial(noisy, levels=float(rng.uniform(1, 8)), seed=draw),
    ]
    order = rng.permutation(len(drawn))[:length]
    return partial(in_turn, steps=[drawn[place] for place in order])


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
    "AVIF quality": {str(quality): partial(encode, kind="AVIF", quality=quality) for quality in (80, 60, 40)},
    "shorter side, px": {str(pixels): partial(shorter_side, pixels=pixels) for pixels in (256, 384, 512, 768, 1024)},
    "blur radius, px": {str(radius): partial(blurred, radius_px=radius) for radius in (0.5, 1.0, 2.0)},
    "central part": {str(fraction): partial(central, fraction=fraction) for fraction in (0.9, 0.7, 0.5)},
    "times shared": {str(times): partial(shared, times=times) for times in (1, 2, 3)},
}

PROFILES: Mapping[str, Degrade] = {
    "messenger": partial(resent, pixels=1600, kind="JPEG", quality=70),
    "feed": partial(resent, pixels=1080, kind="JPEG", quality=80),
    "feed, WebP": partial(resent, pixels=1080, kind="WEBP", quality=75),
    "forum, AVIF": partial(resent, pixels=1200, kind="AVIF", quality=55),
    "preview": partial(resent, pixels=400, kind="WEBP", quality=70),
    "messenger, then feed": partial(
        in_turn,
        steps=[
            partial(resent, pixels=1600, kind="JPEG", quality=70),
            partial(resent, pixels=1080, kind="JPEG", quality=80),
        ],
    ),
}
