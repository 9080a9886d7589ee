"""Several crops of one picture at its native size, for a detector that looks at more than the centre.

`grid:N` has them evenly from corner to corner, row by row: four are the corners. `texture:N` has the N tiles with most
fine detail, of those that fit side by side around the centre: the mean absolute Laplacian of the brightness, most
first, ties row by row; where there are fewer tiles than N they come again from the first. A picture that is smaller
than a crop is centred in black, as the central crop is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from worker.crop import Pixels
from worker.examine.pixels import place

_LUMA = np.array([77, 150, 29], np.int32)  # ITU-R BT.601's weights of red, green, blue, of 256


def make(pixels: Pixels, crop_px: int, kind: str, count: int, row: Pixels) -> None:
    """Crops of the whole picture uint8 [H, W, 3] into `row`, uint8 [count * crop_px, crop_px, 3] of zeros."""
    height, width = pixels.shape[:2]
    corners = grid(width, height, crop_px, count) if kind == "grid" else texture(pixels, crop_px, count)
    for number, (left, top) in enumerate(corners):
        region = pixels[top : top + crop_px, left : left + crop_px]
        place(region, row[number * crop_px : (number + 1) * crop_px])


def grid(width: int, height: int, crop_px: int, count: int) -> list[tuple[int, int]]:
    """Left and top of each; `count` is a square number."""
    side = round(count**0.5)
    lefts, tops = (
        [round(max(length - crop_px, 0) * at / (side - 1)) for at in range(side)] for length in (width, height)
    )
    return [(left, top) for top in tops for left in lefts]


def texture(pixels: Pixels, crop_px: int, count: int) -> list[tuple[int, int]]:
    """Left and top of each."""
    height, width = pixels.shape[:2]
    across, down = max(width // crop_px, 1), max(height // crop_px, 1)
    left = max(round((width - crop_px * across) / 2), 0)
    top = max(round((height - crop_px * down) / 2), 0)
    tiles = [(left + crop_px * x, top + crop_px * y) for y in range(down) for x in range(across)]
    detail = [_detail(pixels[y : y + crop_px, x : x + crop_px]) for x, y in tiles]
    order = sorted(range(len(tiles)), key=lambda tile: (-detail[tile], tile))
    return [tiles[order[number % len(order)]] for number in range(count)]


def _detail(tile: Pixels) -> float:
    """The mean absolute Laplacian of a tile's brightness, in grey levels; 0 where it has no inside."""
    brightness: npt.NDArray[np.int32] = tile @ _LUMA
    if min(brightness.shape) < 3:
        return 0.0
    inside = brightness[1:-1, 1:-1]
    around = brightness[:-2, 1:-1] + brightness[2:, 1:-1] + brightness[1:-1, :-2] + brightness[1:-1, 2:]
    return float(np.abs(4 * inside - around).mean()) / 256
