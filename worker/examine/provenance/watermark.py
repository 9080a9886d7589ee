"""Open watermarks that need neither key nor weights: fixed bits in the U channel, as `invisible-watermark` embeds them.

Its method "dwtDct" (which uses no DCT) writes bit `number of the block % bits` into every 4 x 4 block of the Haar
approximation: 8 x 8 pixels of the image, counted row by row from its corner. Every block carries a bit, so a part of
the image is enough: the crop that is decoded anyway is looked at, and nothing else is decoded for it.

Found means found; not found says nothing: resizing, a strong JPEG or another crop removes it. Payloads: CompVis and
Stability (`StableDiffusionV1`, `SDV2`), Stability and diffusers (SDXL), Black Forest Labs (FLUX; 46 of 48 bits, for
Python's `bin` drops two leading zeros).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from worker.crop import Pixels
from worker.evidence import Watermark

Floats = npt.NDArray[np.float32]

BLOCK_PX = 8
SCALE = 36.0
# The encoder refuses less.
MIN_IMAGE_PX = 256 * 256
# So improbable must a payload's match be if the bits were coins; twelve are tried for each image.
CHANCE = 1e-8
# A first look at so many rows of blocks ends the search for nearly every image.
FIRST_ROWS = 4
# How much more often the blocks agree with a payload than not, its ones and zeros weighed alike: 0 by chance, with a
# standard deviation of 0.09 for the 112 blocks of the first look; 0.3 to 1 for an image as its generator saved it.
MIN_AGREEMENT = 0.25


@dataclass(frozen=True, slots=True)
class Payload:
    slug: Watermark
    bits: tuple[int, ...]


def _of_text(text: str) -> tuple[int, ...]:
    return tuple(int(bit) for byte in text.encode() for bit in f"{byte:08b}")


def _of_bits(bits: str) -> tuple[int, ...]:
    return tuple(map(int, bits))


PAYLOADS = (
    Payload("stable-diffusion", _of_text("StableDiffusionV1")),
    Payload("stable-diffusion", _of_text("SDV2")),
    Payload("sdxl", _of_bits("101100111110110010010000011110111011000110011110")),
    Payload("flux", _of_bits("1010101111111010000111100111001111010100101110")),
)
# U of RGB in OpenCV's weights; the second column for encoders that took RGB for BGR (diffusers did until late 2023).
_U = np.array([[-0.147108, 0.435912], [-0.288804, -0.288804], [0.435912, -0.147108]], np.float32)
# The Haar approximation is half the sum of four pixels; two of a row lie side by side.
_HAAR_U = np.concatenate([_U, _U]) / 2
# What the offset of U, 128 in bytes and 0.5 in floats, becomes there. Of bytes no value is negative, so the largest of
# a block carries the bit; of floats the one that is farthest from zero.
_BYTE_OFFSET, _FLOAT_OFFSET = np.float32(256), np.float32(1)


@dataclass(frozen=True, slots=True)
class _Grid:
    """The whole blocks inside a region, `rows` x `columns` from pixel (`top`, `left`) of it.

    `numbers` [blocks]: the encoder's number of each; `weights` [blocks, payloads]: what a block's bit adds to the
    agreement with each payload.
    """

    top: int
    left: int
    rows: int
    columns: int
    numbers: npt.NDArray[np.int64]
    weights: Floats


def find(region: Pixels, left_px: int, top_px: int, image_width: int, image_height: int) -> Watermark | None:
    """The watermark in `region`, uint8 [H, W, 3] RGB: pixels of an image from (`left_px`, `top_px`) on, unscaled."""
    if image_width * image_height < MIN_IMAGE_PX or min(region.shape[:2]) < 2 * BLOCK_PX:
        return None
    height, width = region.shape[:2]
    first = _grid(left_px, top_px, width, min(height, (FIRST_ROWS + 1) * BLOCK_PX), image_width, image_height)
    if not first.numbers.size:
        return None
    agreement = _bits(region, first) @ first.weights  # [variants, payloads]
    variants, payloads = np.nonzero(agreement >= MIN_AGREEMENT)
    if not variants.size:
        return None
    grid = _grid(left_px, top_px, width, height, image_width, image_height)
    bits = _bits(region, grid)
    for variant, index in zip(variants, payloads, strict=True):
        if _matches(bits[variant], grid.numbers, PAYLOADS[index].bits):
            return PAYLOADS[index].slug
    return None


@lru_cache(maxsize=256)
def _grid(left_px: int, top_px: int, width: int, height: int, image_width: int, image_height: int) -> _Grid:
    across, down = image_width // BLOCK_PX, image_height // BLOCK_PX
    column, row = -(-left_px // BLOCK_PX), -(-top_px // BLOCK_PX)
    columns = max(0, min((left_px + width) // BLOCK_PX, across) - column)
    rows = max(0, min((top_px + height) // BLOCK_PX, down) - row)
    starts = (row + np.arange(rows)) * across + column
    # [rows, payloads, columns]
    signs = _windows(columns)[starts[:, None] % _LENGTHS + _FIRST_PLACES]
    ones = np.maximum((signs > 0).sum(axis=(0, 2)), 1)
    zeros = np.maximum(rows * columns - ones, 1)
    weights = np.where(signs > 0, 1 / ones[:, None], -1 / zeros[:, None]).astype(np.float32)
    return _Grid(
        top=row * BLOCK_PX - top_px,
        left=column * BLOCK_PX - left_px,
        rows=rows,
        columns=columns,
        numbers=(starts[:, None] + np.arange(columns)).reshape(-1),
        weights=weights.transpose(0, 2, 1).reshape(-1, len(PAYLOADS)),
    )


_LENGTHS = np.array([len(payload.bits) for payload in PAYLOADS])
_FIRST_PLACES = np.cumsum(_LENGTHS) - _LENGTHS


@lru_cache
def _windows(columns: int) -> npt.NDArray[np.int8]:
    """1 for a one, -1 for a zero, [places of all payloads, columns]: from each place on, around the end."""
    windows = [
        np.array(payload.bits, np.int8)[
            (np.arange(len(payload.bits))[:, None] + np.arange(columns)) % len(payload.bits)
        ]
        for payload in PAYLOADS
    ]
    return np.concatenate(windows) * np.int8(2) - np.int8(1)


def _bits(region: Pixels, grid: _Grid) -> Floats:
    """The bit of each block, 0 or 1, [3, blocks]: as embedded into bytes, floats, and floats with R and B swapped."""
    bottom, right = grid.top + grid.rows * BLOCK_PX, grid.left + grid.columns * BLOCK_PX
    pixels = region[grid.top : bottom, grid.left : right]
    pairs = np.add(pixels[0::2], pixels[1::2], dtype=np.uint16).reshape(-1, 6)
    approximation = (pairs.astype(np.float32) @ _HAAR_U).reshape(grid.rows, 4, grid.columns, 4, 2)
    # [16 places in the block, 2 orders of channels, blocks]; the first place carries nothing.
    places = np.ascontiguousarray(approximation.transpose(1, 3, 4, 0, 2)).reshape(16, 2, -1)[1:]
    highest, lowest = places.max(axis=0), places.min(axis=0)
    farthest = np.maximum(highest + _FLOAT_OFFSET, -_FLOAT_OFFSET - lowest)
    carriers = np.concatenate([highest[:1] + _BYTE_OFFSET, farthest])
    return (carriers % np.float32(SCALE) > np.float32(SCALE / 2)).astype(np.float32)


def _matches(bits: Floats, numbers: npt.NDArray[np.int64], payload: tuple[int, ...]) -> bool:
    """Is it so improbable that these blocks vote for this payload by chance?

    A place of the payload is 1 where its blocks are 1 more often than all blocks are: in smooth areas one value is the
    rule, whatever was embedded. Where the width is a multiple of the payload's, the crop has not every place.
    """
    length = len(payload)
    places = numbers % length
    blocks = np.bincount(places, minlength=length)
    shares = np.bincount(places, weights=bits, minlength=length) / np.maximum(blocks, 1)
    seen = blocks > 0
    errors = int(np.count_nonzero((shares > bits.mean())[seen] != np.array(payload, bool)[seen]))
    return errors <= max_errors(int(np.count_nonzero(seen)))


@lru_cache
def max_errors(places: int) -> int:
    """Wrong bits of so many coins that are less probable than CHANCE, -1 where none are: 4 of 46, 5 of 48, 1 of 32."""
    errors, probability = -1, 0.0
    while (probability := probability + math.comb(places, errors + 1) / 2**places) <= CHANCE:
        errors += 1
    return errors
