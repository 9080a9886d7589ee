"""The released pipeline's views, for `bench` to compare with: augly 1.0.0's ops and Pillow's resizes, one process.

    python train/bench_augly.py < pairs.json > result.json

Runs in an interpreter that has augly (`bench --augly-python`), so it imports nothing of this package. It is kinder than the
release: no ToTensor and Normalize, and each image is decoded once for its four views.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
import warnings

import augly.image as augly
import numpy as np
from PIL import Image, ImageOps

warnings.filterwarnings("ignore")

GRID = 5


def grid(low: float, high: float) -> float:
    return float(np.linspace(low, high, GRID, dtype=np.float32)[random.randrange(GRID)])


def random_crop(image: Image.Image) -> Image.Image:
    size = int(grid(64, 512))
    pad_x, pad_y = max(0, size - image.width), max(0, size - image.height)
    if pad_x or pad_y:
        image = ImageOps.expand(image, (pad_x, pad_y, pad_x, pad_y))
    left, top = random.randint(0, image.width - size), random.randint(0, image.height - size)
    return image.crop((left, top, left + size, top + size))


def pad(image: Image.Image) -> Image.Image:
    factor = grid(0.01, 0.25)
    return augly.pad(image, w_factor=factor, h_factor=factor)


def resize(image: Image.Image) -> Image.Image:
    side = int(grid(64, 512))
    return augly.resize(image, width=side, height=side, resample=Image.BICUBIC)


OPS = [
    lambda image: augly.blur(image, radius=random.uniform(0.1, 2)),
    lambda image: augly.brightness(image, factor=random.uniform(0.5, 2)),
    lambda image: augly.change_aspect_ratio(image, ratio=random.uniform(0.75, 2)),
    lambda image: augly.pixelization(image, ratio=random.uniform(0.3, 1)),
    lambda image: augly.rotate(image, degrees=random.uniform(90, 270)),
    lambda image: augly.contrast(image, factor=grid(0.5, 1.5)),
    lambda image: augly.saturation(image, factor=grid(0.5, 1.5)),
    lambda image: augly.encoding_quality(image, quality=int(grid(40, 100))),
    augly.grayscale,
    augly.hflip,
    lambda image: augly.opacity(image, level=grid(0.2, 1)),
    lambda image: augly.overlay_stripes(image, line_width=grid(0.05, 0.35), line_angle=0, line_density=0.5, line_opacity=1.0),
    pad,
    resize,
    random_crop,
    lambda image: augly.scale(image, factor=grid(0.5, 1.5)),
    lambda image: augly.sharpen(image, factor=grid(1.2, 2)),
    lambda image: augly.shuffle_pixels(image, factor=grid(0, 0.35), seed=42),
    lambda image: augly.skew(image, skew_factor=grid(-1, 1), axis=0),
]


def transform(image: Image.Image) -> Image.Image:
    for index in sorted(random.sample(range(len(OPS)), random.randint(0, 2))):
        image = OPS[index](image).convert("RGB")
    return image


def crop(image: Image.Image, low: float, high: float) -> Image.Image:
    for _ in range(10):
        area = image.width * image.height * random.uniform(low, high)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= image.width and 0 < height <= image.height:
            left, top = random.randint(0, image.width - width), random.randint(0, image.height - height)
            return image.crop((left, top, left + width, top + height)).resize((224, 224), Image.BICUBIC)
    return ImageOps.fit(image, (224, 224), Image.BICUBIC)


def tail(image: Image.Image) -> np.ndarray:
    short = min(image.size)
    image = image.resize((int(248 * image.width / short), int(248 * image.height / short)), Image.BICUBIC)
    left, top = round((image.width - 224) / 2), round((image.height - 224) / 2)
    return np.asarray(image.crop((left, top, left + 224, top + 224)))


def views(path: str, clock: dict[str, float]) -> int:
    """The four views of one image; `clock` gathers the CPU seconds of decoding and of the views."""
    started = time.process_time()
    image = Image.open(path).convert("RGB")
    decoded = time.process_time()
    made = [tail(image), tail(transform(image)), tail(transform(crop(image, 0.4, 1.0))), tail(transform(crop(image, 0.05, 0.4)))]
    clock["decode"] += decoded - started
    clock["views"] += time.process_time() - decoded
    return len(made)


def main() -> None:
    request = json.load(sys.stdin)
    random.seed(request["seed"])
    views(request["pairs"][0][0], {"decode": 0.0, "views": 0.0})
    clock = {"decode": 0.0, "views": 0.0}
    started = time.perf_counter()
    made = sum(views(path, clock) for pair in request["pairs"] for path in pair)
    json.dump({"count": made, "wall": time.perf_counter() - started, **clock}, sys.stdout)


if __name__ == "__main__":
    main()
