"""A copy of a folder in which format, size and compression no longer tell real from generated, as far as that can be done.

Every image becomes a square JPEG whose side and quality are drawn from one distribution for both classes; half are cut to that
side, half shrunk to it; no source or generator has more than a limited number of images. What stays: subjects, and the size
at which a scene was made. Metadata goes. Used for the demo weights.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from train.data.images import decode_image
from train.data.records import FAKE, Labelled, held_out

SIDE_PX = (224, 353)
QUALITY = (70, 96)


def equalise_image(image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, int]:
    """(square RGB image, JPEG quality to keep it in); an image smaller than the side drawn keeps its own shorter side."""
    side = min(*image.size, int(rng.integers(*SIDE_PX)))
    if rng.random() < 0.5:
        factor = side / min(image.size)
        image = image.resize((max(side, round(image.width * factor)), max(side, round(image.height * factor))), Image.Resampling.LANCZOS)
    left, top = int(rng.integers(image.width - side + 1)), int(rng.integers(image.height - side + 1))
    return image.crop((left, top, left + side, top + side)), int(rng.integers(*QUALITY))


def equalise_folder(images: list[Labelled], destination: Path, *, held_out_fraction: float, max_per_generator: int, seed: int = 0) -> dict[str, int]:
    """Write `train/{real,fake}/<generator>/` equalised and `held_out/…` in original bytes; returns the counts.

    Held out is decided by content, so the same images are held out every time. Files are named by their SHA-256.
    """
    counts: Counter[str] = Counter()
    of_generator: Counter[tuple[int, str]] = Counter()
    for image in sorted(images, key=lambda entry: entry.id):
        label = "fake" if image.label == FAKE else "real"
        data = image.key.read()
        if held_out(image.id, held_out_fraction):
            path = destination / "held_out" / label / image.generator / image.id[:16]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            counts[f"held_out {label}"] += 1
            continue
        if of_generator[image.label, image.generator] >= max_per_generator:
            counts[f"left out {label}"] += 1
            continue
        of_generator[image.label, image.generator] += 1
        rng = np.random.default_rng([seed, int(image.id[:12], 16)])
        pixels, quality = equalise_image(decode_image(data), rng)
        path = destination / "train" / label / image.generator / f"{image.id[:16]}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels.save(path, "JPEG", quality=quality)
        counts[f"train {label}"] += 1
    (destination / "equalised.json").write_text(json.dumps(dict(counts), indent=2, sort_keys=True) + "\n")
    return dict(counts)
