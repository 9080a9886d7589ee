"""A copy of a folder in which format, size and compression no longer tell real from generated, as far as that can be
done.

Every image becomes square JPEGs (`copies` of them, each another cut) whose side and quality are drawn from one
distribution for both classes; half are cut to that side, half shrunk on the way; no source or generator has more than a
limited number of images. What stays: subjects, and the size at which a scene was made. Metadata goes. Used for the demo
weights.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image

from train.data.images import DataError, decode_image
from train.data.records import Labelled, held_out
from triton_models.files import replacing
from triton_models.weights import FAKE

UNFINISHED = ".unfinished.json"  # what a destination was begun with, until it is whole
SIDE_PX = (224, 353)
QUALITY = (60, 99)
SHRINK = (0.35, 1.0)


def equalise_image(
    image: Image.Image, rng: np.random.Generator, side_px: tuple[int, int] = SIDE_PX
) -> tuple[Image.Image, dict[str, int]]:
    """(square RGB image, how to keep it as JPEG); an image smaller than the side drawn keeps its own shorter side."""
    side = min(*image.size, int(rng.integers(*side_px)))
    # The box first, so that large photographs are not resized whole.
    box = min(*image.size, round(side / rng.uniform(*SHRINK))) if rng.random() < 0.5 else side
    left, top = int(rng.integers(image.width - box + 1)), int(rng.integers(image.height - box + 1))
    image = image.crop((left, top, left + box, top + box)).resize((side, side), Image.Resampling.LANCZOS)
    return image, {"quality": int(rng.integers(*QUALITY)), "subsampling": 2 * int(rng.integers(2))}


def controlled(image: Image.Image) -> Image.Image:
    """The image cut, shrunk and compressed as by `equalise_image`, by a draw of its own pixels: what is measured on
    such images cannot rest on format, size or the last compression.
    """
    seed = int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=8).digest(), "little")
    cut, kept_as = equalise_image(image, np.random.default_rng(seed))
    encoded = io.BytesIO()
    cut.save(encoded, "JPEG", **kept_as)
    return Image.open(encoded).convert("RGB")


def equalise_folder(
    images: list[Labelled],
    destination: Path,
    *,
    held_out_fraction: float,
    validation_fraction: float = 0.0,
    max_per_generator: int,
    unseen: Collection[str] = (),
    copies: int = 1,
    side_px: tuple[int, int] = SIDE_PX,
    seed: int = 0,
) -> dict[str, int]:
    """Write `{train,validation}/{real,fake}/<generator>/` equalised, `held_out/…` and `unseen/…` in original bytes;
    returns the counts.

    A destination that was left half filled is gone on with. All cuts of an image are on the same side. Held out is
    decided by content, so the same images are held out every time; `unseen` are whole sources or generators kept aside;
    the side of a cut is drawn from [side_px[0], side_px[1]). Files are named by the image's SHA-256: `photograph` in
    train/data/records.py knows the cuts of one by it. Raises DataError for a name in `unseen` that the images do not
    have, and for a destination begun otherwise.
    """
    begun = _begin(
        images,
        destination,
        unseen=unseen,
        fractions=[held_out_fraction, validation_fraction],
        numbers=[max_per_generator, copies, *side_px, seed],
    )
    counts: Counter[str] = Counter()
    of_generator: Counter[tuple[int, str]] = Counter()
    for image in sorted(images, key=lambda entry: entry.id):
        label = "fake" if image.label == FAKE else "real"
        aside = "unseen" if image.generator in unseen else "held_out" if held_out(image.id, held_out_fraction) else None
        if aside is not None:
            path = destination / aside / label / image.generator / image.id[:16]
            if not path.exists():
                _write(path, image.key.read())
            counts[f"{aside} {label}"] += 1
            continue
        if of_generator[image.label, image.generator] >= max_per_generator:
            counts[f"left out {label}"] += 1
            continue
        of_generator[image.label, image.generator] += 1
        part = "validation" if held_out(f"validation {image.id}", validation_fraction) else "train"
        folder = destination / part / label / image.generator
        missing = {
            copy: path for copy in range(copies) if not (path := folder / f"{image.id[:16]}-{copy}.jpg").exists()
        }
        if missing:
            pixels = decode_image(image.key.read())
        for copy, path in missing.items():
            cut, kept_as = equalise_image(pixels, np.random.default_rng([seed, copy, int(image.id[:12], 16)]), side_px)
            encoded = io.BytesIO()
            cut.save(encoded, "JPEG", **kept_as)
            _write(path, encoded.getvalue())
        counts[f"{part} {label}"] += 1
    (destination / "equalised.json").write_text(json.dumps(dict(counts), indent=2, sort_keys=True) + "\n")
    begun.unlink()
    return dict(counts)


def _begin(
    images: list[Labelled],
    destination: Path,
    *,
    unseen: Collection[str],
    fractions: list[float],
    numbers: list[int],
) -> Path:
    """Note what the destination is begun with, in the file that is returned. Raises DataError as equalise_folder."""
    unknown = set(unseen) - {image.generator for image in images}
    if unknown:
        raise DataError(
            f"no images of {', '.join(sorted(unknown))}: the names are the folders below fake/ (and below real/)"
        )
    asked = {
        "images": hashlib.sha256(
            "".join(sorted(f"{image.id} {image.label} {image.generator}\n" for image in images)).encode()
        ).hexdigest(),
        "fractions": fractions,
        "numbers": numbers,
        "unseen": sorted(unseen),
    }
    begun = destination / UNFINISHED
    if begun.exists() and begun.read_text() != json.dumps(asked):
        raise DataError(f"{destination} was begun with other images or options: give the same, or name a new folder")
    _write(begun, json.dumps(asked).encode())
    return begun


def _write(path: Path, data: bytes) -> None:
    """All of `data` or nothing: what stands there is not made again."""
    with replacing(path) as partial:
        partial.write_bytes(data)
