"""Synthetic data sets for tests and trials: textures as "reals", and the same textures carrying the trace of an
up-sampler as "fakes".

Both classes have the same sizes, format, spectrum and subjects; only the correlation between neighbouring pixels
differs, as it does after a generator's last up-sampling layer. With `shuffled_labels` nothing distinguishes the
folders.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from train.data.shards import D3Record

TRACE = 0.35  # of a fake's finest detail comes from the up-sampler


def texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Float [size, size, 3] in 0..255: coloured noise with a 1/f spectrum."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = 1 / size
    spectrum = np.fft.rfft2(rng.normal(size=(3, size, size))) / frequency
    field = np.fft.irfft2(spectrum, s=(size, size)).transpose(1, 2, 0)
    made: np.ndarray = 127 + 45 * (field - field.mean()) / field.std() + rng.normal(0, 4, (size, size, 3))
    return made


def upsampled(image: np.ndarray) -> np.ndarray:
    """The same picture with part of its finest detail replaced by what doubling every other pixel gives: a periodic
    neighbour correlation.
    """
    half = image[::2, ::2]
    return (1 - TRACE) * image + TRACE * half.repeat(2, axis=0).repeat(2, axis=1)[: image.shape[0], : image.shape[1]]


def synthetic_image(*, fake: bool, rng: np.random.Generator, size: int = 224) -> Image.Image:
    """One image of either class."""
    pixels = texture(rng, size)
    return Image.fromarray(np.clip(upsampled(pixels) if fake else pixels, 0, 255).astype(np.uint8))


def write_synthetic_folder(
    folder: Path, count: int, *, seed: int = 0, size: int = 224, shuffled_labels: bool = False
) -> None:
    """`count` PNG images of each class as real/… and fake/upsampled/…."""
    rng = np.random.default_rng(seed)
    for name in ("real", "fake/upsampled"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        for name in ("real", "fake/upsampled"):
            fake = bool(rng.integers(2)) if shuffled_labels else name != "real"
            synthetic_image(fake=fake, rng=rng, size=size).save(folder / name / f"{seed}-{index:05d}.png")


def synthetic_record(index: int, *, seed: int = 0, size: int = 64) -> D3Record:
    """A D3-like record: one JPEG real and four PNG fakes."""
    rng = np.random.default_rng([seed, index])

    def encoded(image: Image.Image, kind: str) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind)
        return buffer.getvalue()

    images = {"real": encoded(synthetic_image(fake=False, rng=rng, size=size), "JPEG")}
    images |= {f"gen_{slot}": encoded(synthetic_image(fake=True, rng=rng, size=size), "PNG") for slot in range(4)}
    return D3Record(
        f"elsa_v2__train__{index:08d}",
        images,
        f"texture {index}",
        f"https://images.example/{index}.jpg",
        {"row": index},
    )
