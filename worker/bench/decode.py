"""`bench decode`: the decoding processes against plain Pillow, on the sample images, turn by turn in one run.

Plain Pillow is what a program would write first: open, convert the whole image, crop, on one thread. The ratio of one
round is what counts; the absolute figures move with the machine and its other work. `lone` is what one image takes
that finds the processes idle: hand-over, decoding and the way back.
"""

from __future__ import annotations

import io
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from worker.bench.apart import Apart, examined_apart
from worker.crop import CROP_PX
from worker.demo import SAMPLES
from worker.errors import SettingsError
from worker.settings import DecodeSettings, LimitSettings

BATCH = 32
ROUNDS = 5
MIN_IMAGES = 96
LONE_IMAGES = 16


def measure_decode(
    settings: DecodeSettings | None = None, images: Sequence[bytes] | None = None, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Images per second of the decoding processes and of plain Pillow, per format, and the median ratio of the rounds.

    `images` are the committed samples when unset, each format repeated to fill three batches. Raises SettingsError
    without samples.
    """
    images = images or [path.read_bytes() for path in sorted(SAMPLES.rglob("*")) if path.is_file()]
    if not images:
        raise SettingsError([f"bench: no sample images at {SAMPLES}: run it in a checkout"])
    with examined_apart(settings or DecodeSettings(), LimitSettings(), BATCH) as apart:
        by_format: dict[str, list[bytes]] = defaultdict(list)
        for index, (info, _) in apart.examine(images).items():
            by_format[info.format].append(images[index])
        found: dict[str, Any] = {"device": apart.decoder, "processes": apart.processes, "rounds_measured": rounds}
        for name, encoded in by_format.items():
            repeated = encoded * -(-MIN_IMAGES // len(encoded))
            found |= {f"{name}_{key}": figure for key, figure in _measure_format(apart, repeated, rounds).items()}
    return found


def _measure_format(apart: Apart, encoded: list[bytes], rounds: int) -> dict[str, float]:
    def ours() -> None:
        apart.decode(encoded)

    def lone() -> None:
        for data in encoded[:LONE_IMAGES]:
            apart.decode([data])

    def plain() -> None:
        for data in encoded:
            with Image.open(io.BytesIO(data)) as image:
                left, top = (max(0, (size - CROP_PX) // 2) for size in image.size)
                image.convert("RGB").crop((left, top, left + CROP_PX, top + CROP_PX))

    ours()  # the first call sets DALI's buffers up
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        seconds["decoder"].append(_seconds(ours))
        seconds["pillow"].append(_seconds(plain))
        seconds["lone"].append(_seconds(lone) / LONE_IMAGES)
    figures = {f"{key}_images_per_s": len(encoded) / statistics.median(seconds[key]) for key in ("decoder", "pillow")}
    ratios = [theirs / own for theirs, own in zip(seconds["pillow"], seconds["decoder"], strict=True)]
    return {
        **figures,
        "lone_ms": statistics.median(seconds["lone"]) * 1000,
        "times_faster_than_pillow": statistics.median(ratios),
    }


def _seconds(act: Callable[[], None]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started
