"""The released pipeline's input side, for `bench` to compare with: augly 1.0.0's ops and Pillow's resizes, in one
process.

    python train/bench_augly.py < records.json > result.json

Runs in an interpreter that has augly (`bench --augly-python`), so it needs nothing of this package. It does what the
released
loader does to a record: decodes all five images, though only one of the four fakes is used, makes the eight views one
by one, and
ends each with ToTensor and Normalize (in NumPy here) before they are stacked. Boxes, ops and parameters come with the
request, so
that both sides do the same work; drawing them is not counted here.
"""

from __future__ import annotations

import importlib
import io
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

warnings.filterwarnings("ignore")

RELEASED_NAMES = {"aspect_ratio": "change_aspect_ratio", "rotation": "rotate"}
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
RECORDS_PER_BATCH = 16


def random_crop(image: Image.Image, *, size: list[int], seed: int, **_: Any) -> Image.Image:
    """As torchvision's: the whole deficit on both sides."""
    height, width = size
    pad_x, pad_y = max(0, width - image.width), max(0, height - image.height)
    if pad_x or pad_y:
        image = ImageOps.expand(image, (pad_x, pad_y, pad_x, pad_y))
    rng = np.random.default_rng(seed)
    top, left = int(rng.integers(0, image.height - height + 1)), int(rng.integers(0, image.width - width + 1))
    return image.crop((left, top, left + width, top + height))


def op(name: str) -> Callable[..., Image.Image]:
    # Imported here, because the interpreter that only shares the clock has no augly.
    augly = importlib.import_module("augly.image")
    return random_crop if name == "random_crop" else getattr(augly, RELEASED_NAMES.get(name, name))


def view(image: Image.Image, plan: dict[str, Any]) -> np.ndarray:
    """uint8 [224, 224, 3]: crop, ops, Resize(248), CenterCrop(224)."""
    if plan["box"]:
        top, left, height, width = plan["box"]
        image = image.crop((left, top, left + width, top + height)).resize((224, 224), Image.BICUBIC)
    for name, drawn in plan["steps"]:
        parameters = {key: tuple(value) if key.endswith("color") else value for key, value in drawn.items()}
        if name == "shuffle_pixels":
            parameters["seed"] = 42  # on every call, as released
        image = op(name)(image, **parameters)
    short = min(image.size)
    image = image.resize((int(248 * image.width / short), int(248 * image.height / short)), Image.BICUBIC)
    left, top = round((image.width - 224) / 2), round((image.height - 224) / 2)
    return np.asarray(image.crop((left, top, left + 224, top + 224)))


def normalised(pixels: np.ndarray) -> np.ndarray:
    """float32 [3, 224, 224]: ToTensor and Normalize."""
    values = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32)
    values /= 255
    values -= MEAN[:, None, None]
    values /= STD[:, None, None]
    return values


def decode(path: str) -> Image.Image:
    with Image.open(io.BytesIO(Path(path).read_bytes())) as image:
        return image.convert("RGB")


class Clock:
    """Seconds of CPU time by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.process_time()

    def lap(self, stage: str) -> None:
        now = time.process_time()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def make(records: list[dict[str, Any]], clock: Clock) -> list[float]:
    """The mean grey level of each view, by which the caller sees that both sides made the same views."""
    levels: list[float] = []
    for first in range(0, len(records), RECORDS_PER_BATCH):
        batch: dict[str, list[np.ndarray]] = {}
        for record in records[first : first + RECORDS_PER_BATCH]:
            images = {"real": decode(record["real"]), "fake": decode(record["fake"])}
            clock.lap("decode")
            for path in record["unused"]:
                decode(path)
            clock.lap("decode_unused")
            views = {name: view(images[name.split("_")[0]], plan) for name, plan in record["plans"].items()}
            clock.lap("views")
            for name, pixels in views.items():
                batch.setdefault(name, []).append(normalised(pixels))
            clock.lap("batch")
            levels += [float(pixels.mean()) for pixels in views.values()]
            clock.lap("unmeasured")
        for stacked in batch.values():
            np.stack(stacked)
        clock.lap("batch")
    return levels


def main() -> None:
    records = json.load(sys.stdin)
    make(records[:2], Clock())
    clock, started = Clock(), time.perf_counter()
    levels = make(records, clock)
    json.dump({"levels": levels, "wall": time.perf_counter() - started, "cpu": clock.seconds}, sys.stdout)


if __name__ == "__main__":
    main()
