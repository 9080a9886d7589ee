"""What JPEG does to pixels, for a whole batch on any device: colour conversion, 4:2:0, DCT, quantisation, and back.

The lossless part of the format (entropy coding) is left out, as it changes nothing. Follows libjpeg (ITU-T T.81, Annex
K tables, triangle-filter upsampling) in floating point, so a value may differ by a grey level or two from an encoder's
fixed-point one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

UNIT_PX = 16  # one block of subsampled chroma covers as much

# T.81, tables K.1 and K.2.
_LUMINANCE = [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
]
_CHROMINANCE = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]  # 99 elsewhere
_TO_YCC = [[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]]
_TO_RGB = [[1.0, 0.0, 1.402], [1.0, -0.344136286, -0.714136286], [1.0, 1.772, 0.0]]


def round_trip(images: Tensor, sizes: Sequence[tuple[int, int]], qualities: Sequence[int]) -> Tensor:
    """uint8 [N, 3, h, w] of [N, 3, H, W]: the first (height, width) of each image encoded at its quality (1 to 100) and
    decoded.
    """
    device = images.device
    center = torch.tensor([0.0, 128.0, 128.0], device=device).view(1, 3, 1, 1)
    # An encoder repeats the last row and column until whole blocks are full.
    full = _repeated(images, sizes, [-(-extent // UNIT_PX) * UNIT_PX for extent in images.shape[-2:]])
    ycc = (torch.einsum("ij,njhw->nihw", torch.tensor(_TO_YCC, device=device), full.float()) + center).round_()
    chroma = ycc[:, 1:]
    quarters = chroma[..., 0::2, 0::2] + chroma[..., 1::2, 0::2] + chroma[..., 0::2, 1::2] + chroma[..., 1::2, 1::2]
    bias = 1 + torch.arange(quarters.shape[-1], device=device) % 2  # libjpeg rounds up and down in turn
    luma = _through_blocks(ycc[:, :1], _quantisers(_LUMINANCE, qualities, device))
    halves = [(-(-height // 2), -(-width // 2)) for height, width in sizes]
    # Below the image it is the last row of chroma, not of the image, that is repeated.
    small = _repeated(
        ((quarters + bias) / 4).floor_(), [(height, quarters.shape[-1]) for height, _ in halves], quarters.shape[-2:]
    )
    small = _through_blocks(small, _quantisers(_padded_chrominance(), qualities, device))
    # A decoder forgets what is beyond the image before it looks at neighbours.
    small = _repeated(small, halves, small.shape[-2:])
    back = torch.cat([luma, _upsampled(small)], 1) - center
    made = (
        torch.einsum("ij,njhw->nihw", torch.tensor(_TO_RGB, device=device), back)
        .round_()
        .clamp_(0, 255)
        .to(torch.uint8)
    )
    return made[..., : images.shape[-2], : images.shape[-1]]


def _repeated(planes: Tensor, sizes: Sequence[tuple[int, int]], extents: Sequence[int]) -> Tensor:
    """[N, C, *extents]: the first (height, width) of each, its last row and column repeated."""
    limits = torch.tensor(sizes, device=planes.device) - 1
    rows, columns = (
        torch.minimum(torch.arange(extents[axis], device=planes.device)[None], limits[:, axis, None]) for axis in (0, 1)
    )
    each = torch.arange(len(planes), device=planes.device)[:, None, None]
    return planes.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _padded_chrominance() -> list[list[int]]:
    return [[*row, *[99] * 4] for row in _CHROMINANCE] + [[99] * 8] * 4


def _quantisers(table: list[list[int]], qualities: Sequence[int], device: torch.device) -> Tensor:
    """float32 [N, 1, 1, 8, 1, 8]: jpeg_quality_scaling of libjpeg, kept to 8 bits."""
    percent = torch.tensor([5000 // quality if quality < 50 else 200 - 2 * quality for quality in qualities])
    steps = (torch.tensor(table)[None] * percent[:, None, None] + 50) // 100
    return steps.clamp(1, 255).float().to(device)[:, None, None, :, None, :]


def _through_blocks(planes: Tensor, quantisers: Tensor) -> Tensor:
    """[N, C, H, W] through the DCT of each block of 8 x 8, quantised and back, whole numbers of 0 to 255."""
    count, channels, height, width = planes.shape
    order = torch.arange(8, device=planes.device)
    cosines = torch.cos((2 * order + 1) * order[:, None] * (math.pi / 16)) / 2
    cosines[0] /= math.sqrt(2)
    blocks = (planes - 128).reshape(count, channels, height // 8, 8, width // 8, 8)
    coefficients = torch.einsum("ui,nchiwj,vj->nchuwv", cosines, blocks, cosines)
    kept = (coefficients / quantisers).round_() * quantisers
    values = torch.einsum("ui,nchuwv,vj->nchiwj", cosines, kept, cosines)
    return values.add_(128).round_().clamp_(0, 255).reshape(planes.shape)


def _upsampled(planes: Tensor) -> Tensor:
    """Twice the size: each new value is three quarters of the nearer and a quarter of the next one, along both axes."""
    grown = F.pad(planes, (1, 1, 1, 1), mode="replicate")
    tall = torch.stack(
        [3 * grown[..., 1:-1, :] + grown[..., :-2, :], 3 * grown[..., 1:-1, :] + grown[..., 2:, :]], dim=-2
    )
    tall = tall.flatten(-3, -2)
    left, right = 3 * tall[..., 1:-1] + tall[..., :-2] + 8, 3 * tall[..., 1:-1] + tall[..., 2:] + 7
    return (torch.stack([left, right], dim=-1).flatten(-2) / 16).floor_()
