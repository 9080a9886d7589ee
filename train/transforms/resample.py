"""Resizes and blurs of a batch whose images differ in size, box and strength, as two matrix products each.

A separable filter is one matrix for the rows and one for the columns of an image. Built for each image and multiplied
at once they keep a GPU busy where 2,000 small kernels would not, and crops cost nothing: rows of a matrix that are not
needed are not made. Pillow's filters, order of passes and rounding between them; weights in float32 instead of fixed
point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from train.transforms.filters import gaussian_taps


def _bicubic(x: Tensor) -> Tensor:
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _bilinear(x: Tensor) -> Tensor:
    return (1 - x).clamp_(min=0)


def _lanczos(x: Tensor) -> Tensor:
    return torch.where(x < 3, torch.sinc(x) * torch.sinc(x / 3), 0.0)


# Filter as a function of the distance in (scaled) pixels, and how far it reaches: Pillow's Resample.c.
_FILTERS: dict[Image.Resampling, tuple[Callable[[Tensor], Tensor], float]] = {
    Image.Resampling.BICUBIC: (_bicubic, 2.0),
    Image.Resampling.BILINEAR: (_bilinear, 1.0),
    Image.Resampling.LANCZOS: (_lanczos, 3.0),
}


@dataclass(frozen=True)
class Span:
    """One axis of one resize, in pixels: `length` source pixels from `start` on become `size`, of which those from
    `first` on are wanted.
    """

    start: int
    length: int
    size: int
    first: int = 0


def resize_weights(
    spans: Sequence[Span], count: int, padded: int, resample: Image.Resampling, device: torch.device
) -> Tensor:
    """float32 [N, `count`, `padded`]: the matrix of each span, for an axis of `padded` pixels; rows beyond a span's
    size are zero.
    """
    kernel, support = _FILTERS[resample]
    start, length, size, first = (
        torch.tensor([getattr(span, name) for span in spans], device=device)[:, None]
        for name in ("start", "length", "size", "first")
    )
    scale = length.double() / size
    stretch = scale.clamp(min=1)
    row = first + torch.arange(count, device=device)
    center = (row + 0.5) * scale
    low = (center - support * stretch + 0.5).floor().clamp(min=0)
    high = torch.minimum((center + support * stretch + 0.5).floor(), length)
    column = (torch.arange(padded, device=device) - start)[:, None, :]
    # Whole and fractional part apart: the distance is then exact enough in float32.
    whole = center.floor()
    distance = ((column - whole[:, :, None]).float() + (0.5 - (center - whole)).float()[:, :, None]) / stretch.float()[
        :, :, None
    ]
    weights = kernel(distance.abs_()) * (
        (column >= low[:, :, None]) & (column < high[:, :, None]) & (row < size)[:, :, None]
    )
    return weights / weights.sum(-1, keepdim=True).where((row < size)[:, :, None], 1.0)


def blur_weights(lengths: Sequence[int], radii: Sequence[float], padded: int, device: torch.device) -> Tensor:
    """float32 [N, `padded`, `padded`]: Gaussian blur (as Pillow approximates it) of the first `lengths` pixels, the
    border repeated.
    """
    reach = max(len(gaussian_taps(radius)) for radius in radii) // 2
    taps = torch.zeros(len(radii), 2 * reach + 1)
    for row, radius in zip(taps, radii, strict=True):
        own = torch.tensor(gaussian_taps(radius))
        row[reach - len(own) // 2 : reach + len(own) // 2 + 1] = own
    source = torch.arange(padded, device=device)[:, None] + torch.arange(-reach, reach + 1, device=device)
    last = torch.tensor(lengths, device=device)[:, None, None] - 1
    weights = torch.zeros(len(radii), padded, padded, device=device)
    return weights.scatter_add_(
        2, torch.minimum(source.clamp(min=0)[None], last), taps.to(device)[:, None].expand(-1, padded, -1)
    )


def separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """uint8 [N, 3, h, w] of uint8 [N, 3, H, W]: `columns` [N, w, W] first, then `rows` [N, h, H], rounded after each as
    Pillow does.
    """
    across = _rounded(images.float() @ columns.mT[:, None])
    return _rounded(rows[:, None] @ across).to(torch.uint8)


def _rounded(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_().clamp_(0, 255)


def resized(
    images: Tensor, sizes: Sequence[tuple[int, int]], new_sizes: Sequence[tuple[int, int]], resample: Image.Resampling
) -> Tensor:
    """uint8 [N, 3, h, w], the largest of `new_sizes` (height, width): the first `sizes` of each image resized to its
    new size.
    """
    weights = [
        resize_weights(
            [Span(0, size[axis], new[axis]) for size, new in zip(sizes, new_sizes, strict=True)],
            max(new[axis] for new in new_sizes),
            images.shape[-2 + axis],
            resample,
            images.device,
        )
        for axis in (0, 1)
    ]
    return separable(images, *weights)


def scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """(height, width) times `factor`, truncated, at least a pixel."""
    return max(1, int(size[0] * factor)), max(1, int(size[1] * factor))


def with_ratio(size: tuple[int, int], ratio: float) -> tuple[int, int]:
    """(height, width) of the same area with `ratio` = width / height, truncated, at least a pixel."""
    area = size[0] * size[1]
    width = max(1, int(math.sqrt(ratio * area)))
    return max(1, int(area / width)), width
