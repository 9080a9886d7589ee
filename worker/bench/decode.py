"""`bench decode`: the decoder against plain Pillow, on the sample images, turn by turn in one run.

Plain Pillow is what a program would write first: open, convert the whole image, crop, on one thread. The ratio of one
round
is what counts; the absolute figures move with the machine and its other work.
"""

from __future__ import annotations

import io
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from worker.contract import ImageInfo
from worker.demo import SAMPLES
from worker.errors import SettingsError
from worker.examine.headers import peek
from worker.examine.pixels import Decoder, central_region
from worker.settings import DecodeSettings

BATCH = 32
ROUNDS = 5
MIN_IMAGES = 96


def measure_decode(
    settings: DecodeSettings | None = None, images: Sequence[bytes] | None = None, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Images per second of header reading, of the decoder and of plain Pillow, per format, and the median ratio of the
    rounds.

    `images` are the committed samples when unset, each format repeated to fill three batches. Raises SettingsError
    without samples.
    """
    by_format: dict[str, list[tuple[bytes, ImageInfo]]] = defaultdict(list)
    for data in images or [path.read_bytes() for path in sorted(SAMPLES.rglob("*")) if path.is_file()]:
        info = peek(data)
        by_format[info.format].append((data, info))
    if not by_format:
        raise SettingsError([f"bench: no sample images at {SAMPLES}: run it in a checkout"])
    decoder = Decoder(settings or DecodeSettings())
    found: dict[str, Any] = {"device": decoder.device, "rounds_measured": rounds}
    for name, pairs in by_format.items():
        repeated = pairs * -(-MIN_IMAGES // len(pairs))
        found |= {f"{name}_{key}": figure for key, figure in _measure_format(decoder, repeated, rounds).items()}
    decoder.close()
    return found


def _measure_format(decoder: Decoder, pairs: list[tuple[bytes, ImageInfo]], rounds: int) -> dict[str, float]:
    encoded = [data for data, _ in pairs]
    infos = [info for _, info in pairs]

    def ours() -> None:
        for start in range(0, len(encoded), BATCH):
            decoder.decode(encoded[start : start + BATCH], infos[start : start + BATCH])

    def plain() -> None:
        for data in encoded:
            with Image.open(io.BytesIO(data)) as image:
                left, top, width, height = central_region(*image.size)
                image.convert("RGB").crop((left, top, left + width, top + height))

    def headers() -> None:
        for data in encoded:
            peek(data)

    ours()  # the first call sets DALI's buffers up
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        seconds["decoder"].append(_seconds(ours))
        seconds["pillow"].append(_seconds(plain))
        seconds["peek"].append(_seconds(headers))
    figures = {f"{key}_images_per_s": len(encoded) / statistics.median(values) for key, values in seconds.items()}
    ratios = [theirs / own for theirs, own in zip(seconds["pillow"], seconds["decoder"], strict=True)]
    return {**figures, "times_faster_than_pillow": statistics.median(ratios)}


def _seconds(act: Callable[[], None]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started
