"""The views of a whole batch at once, on any device: made for a GPU, where one image at a time would leave it waiting
for launches.

    views = make_views(images, plans)     # images already on the device, plans as drawn by `views.plan_views`

Images that need the same op are laid on one canvas (padded with black to the largest) and go through it together, each
with its own parameters and size; resizes and blurs are matrix products (`resample.py`). Sizes are known to the host all
the time, so nothing waits for the device. `tests/train/transforms/test_batched.py` compares with the fast path op by
op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from train.transforms import jpeg, ops
from train.transforms.crops import CROP_FRACTION, center_anchor, tail_size
from train.transforms.filters import rotation_map
from train.transforms.resample import Span, blur_weights, resize_weights, resized, scaled, separable, with_ratio
from train.transforms.views import Plan, class_of

CANVAS_PX = 2**24  # pixels worked on at a time: about a gigabyte with the matrices
Size = tuple[int, int]  # height, width
Parameters = Sequence[Mapping[str, Any]]
BatchedOp = Callable[[Tensor, list[Size], Parameters], tuple[Tensor, list[Size]]]


def make_views(images: Sequence[Mapping[str, Tensor]], plans: Sequence[Mapping[str, Plan]]) -> dict[str, Tensor]:
    """uint8 [N, 3, S, S] for each name in `plans`: the views of N records, from uint8 [3, H, W] under `real` and
    `fake`.

    Every record has the same names, and the steps of a plan come in the order of OPS.
    """
    jobs = [(name, record) for name in plans[0] for record in range(len(plans))]
    chosen = [plans[record][name] for name, record in jobs]
    work = [images[record][class_of(name)] for name, record in jobs]
    for size_px in {plan.size_px for plan in chosen}:
        for group in _chunks(
            work, [job for job, plan in enumerate(chosen) if plan.box is not None and plan.size_px == size_px]
        ):
            _put(work, group, _crop(_canvas(work, group), [chosen[job].box or (0, 0, 0, 0) for job in group], size_px))
    for name, op in BATCHED_OPS.items():
        given = {
            job: dict(plan.steps)[name]
            for job, plan in enumerate(chosen)
            if any(step == name for step, _ in plan.steps)
        }
        for group in _chunks(work, list(given)):
            made, sizes = op(_canvas(work, group), _sizes(work, group), [given[job] for job in group])
            for job, image, (height, width) in zip(group, made, sizes, strict=True):
                work[job] = image[:, :height, :width]
    for size_px, resize in {(plan.size_px, plan.resize) for plan in chosen}:
        for group in _chunks(
            work, [job for job, plan in enumerate(chosen) if (plan.size_px, plan.resize) == (size_px, resize)]
        ):
            _put(work, group, _tail(_canvas(work, group), _sizes(work, group), size_px, resize=resize))
    return {name: torch.stack([work[job] for job in group]) for name, group in _by_name(jobs)}


def _by_name(jobs: Sequence[tuple[str, int]]) -> Iterator[tuple[str, list[int]]]:
    for name, group in groupby(range(len(jobs)), key=lambda job: jobs[job][0]):
        yield name, list(group)


def _chunks(work: Sequence[Tensor], jobs: Sequence[int]) -> Iterator[list[int]]:
    """`jobs` by size of their image, as many at a time as fit on a canvas."""
    chunk: list[int] = []
    height = width = 0
    for job in sorted(jobs, key=lambda job: work[job].shape[-2:]):
        height, width = max(height, work[job].shape[-2]), max(width, work[job].shape[-1])
        if chunk and (len(chunk) + 1) * height * width > CANVAS_PX:
            yield chunk
            chunk, (height, width) = [], work[job].shape[-2:]
        chunk.append(job)
    if chunk:
        yield chunk


def _sizes(work: Sequence[Tensor], group: Sequence[int]) -> list[Size]:
    return [(work[job].shape[-2], work[job].shape[-1]) for job in group]


def _canvas(work: Sequence[Tensor], group: Sequence[int]) -> Tensor:
    """uint8 [N, 3, H, W]: the images at the top left, black around them."""
    sizes = _sizes(work, group)
    if len(set(sizes)) == 1:
        return torch.stack([work[job] for job in group])
    canvas = work[group[0]].new_zeros(
        len(group), 3, max(height for height, _ in sizes), max(width for _, width in sizes)
    )
    for place, job, (height, width) in zip(canvas, group, sizes, strict=True):
        place[:, :height, :width] = work[job]
    return canvas


def _put(work: list[Tensor], group: Sequence[int], made: Tensor) -> None:
    for job, image in zip(group, made, strict=True):
        work[job] = image


def _crop(canvas: Tensor, boxes: Sequence[tuple[int, int, int, int]], size_px: int) -> Tensor:
    """uint8 [N, 3, S, S]: the box (top, left, height, width) of each image, resized."""
    rows, columns = (
        resize_weights(
            [Span(box[axis], box[axis + 2], size_px) for box in boxes],
            size_px,
            canvas.shape[axis + 2],
            Image.Resampling.BICUBIC,
            canvas.device,
        )
        for axis in (0, 1)
    )
    return separable(canvas, rows, columns)


def _tail(canvas: Tensor, sizes: Sequence[Size], size_px: int, *, resize: bool) -> Tensor:
    """uint8 [N, 3, S, S]: the shorter side to floor(S / 0.9) and the centre, or (`resize` off) the centre alone."""
    if not resize:
        anchors = [[center_anchor(size[axis], size_px) for size in sizes] for axis in (0, 1)]
        rows, columns = ([_shifted(size_px, offset - padding) for padding, offset in axis] for axis in anchors)
        return _select(canvas, sizes, rows, columns)
    targets = [tail_size(width, height, int(size_px / CROP_FRACTION))[::-1] for height, width in sizes]
    rows_columns = (
        resize_weights(
            [
                Span(0, size[axis], target[axis], center_anchor(target[axis], size_px)[1])
                for size, target in zip(sizes, targets, strict=True)
            ],
            size_px,
            canvas.shape[axis + 2],
            Image.Resampling.BICUBIC,
            canvas.device,
        )
        for axis in (0, 1)
    )
    return separable(canvas, *rows_columns)


def _shifted(count: int, by: int) -> np.ndarray:
    return np.arange(count) + by


def _select(
    images: Tensor,
    sizes: Sequence[Size],
    rows: Sequence[np.ndarray],
    columns: Sequence[np.ndarray],
    fill: Sequence[Sequence[int]] = (),
) -> Tensor:
    """The pixels at `rows` and `columns` (numbers outside the image: its colour in `fill`, or black) of each image."""
    row, column = (_stacked(axis, images.device) for axis in (rows, columns))
    heights, widths = (torch.tensor([size[axis] for size in sizes], device=images.device)[:, None] for axis in (0, 1))
    inside = ((row >= 0) & (row < heights))[:, :, None] & ((column >= 0) & (column < widths))[:, None, :]
    each = torch.arange(len(images), device=images.device)[:, None, None]
    taken = images.permute(0, 2, 3, 1)[
        each, row.clamp(0, images.shape[-2] - 1)[:, :, None], column.clamp(0, images.shape[-1] - 1)[:, None, :]
    ]
    colors = torch.tensor(fill or [[0, 0, 0]] * len(images), dtype=torch.uint8, device=images.device)[:, None, None, :]
    return taken.where(inside[..., None], colors).permute(0, 3, 1, 2)


def _stacked(numbers: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """int64 [N, longest], -1 behind the shorter ones."""
    table = np.full((len(numbers), max(len(row) for row in numbers)), -1, dtype=np.int64)
    for target, row in zip(table, numbers, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(table).to(device)


def _each(parameters: Parameters, name: str, images: Tensor) -> Tensor:
    """float32 [N, 1, 1, 1]: one number of each image."""
    return torch.tensor([float(own[name]) for own in parameters], device=images.device).view(-1, 1, 1, 1)


def _gray(images: Tensor) -> Tensor:
    """uint8 [N, 1, H, W]: Pillow's fixed-point luma."""
    red, green, blue = images.int().unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)[:, None]


def _blend(images: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
    """Other + factor * (images - other), clipped and truncated as Image.blend does."""
    return (other + factor * (images.float() - other)).clamp_(0, 255).to(torch.uint8)


def blur(images: Tensor, sizes: list[Size], parameters: Parameters) -> tuple[Tensor, list[Size]]:
    radii = [own["radius"] for own in parameters]
    rows, columns = (
        blur_weights([size[axis] for size in sizes], radii, images.shape[axis + 2], images.device) for axis in (0, 1)
    )
    return separable(images, rows, columns), sizes


def brightness(images: Tensor, sizes: list[Size], parameters: Parameters) -> tuple[Tensor, list[Size]]:
    return _blend(images, 0.0, _each(parameters, "factor", images)), sizes


def aspect_ratio(images: Tensor, sizes: list[Size], parameters: Parameters) -> tuple[Tensor, list[Size]]:
    made = [with_ratio(size, own["ratio"]) for size, own in zip(sizes, parameters, strict=True)]
    return resized(images, sizes, made, Image.Resampling.BICUBIC), made


def pixelization(images: Tensor, sizes: list[Size], parameters: Parameters) -> tuple[Tensor, list[Size]]:
    small = [scaled(size, own["ratio"]) for size, own in zip(sizes, parameters, strict=True)]
    return resized(
        resized(images, sizes, small, Image.Resampling.BICUBIC), small, sizes, Image.Resampling.BICUBIC
    ), sizes


def rotation(images: Tensor, sizes: list[Size], parameters: Parameters) -> tuple[Tensor, list[Size]]:
    maps = [rotation_map(width, height, own["degrees"]) for (height, width), own in zip(sizes, parameters, strict=True)]
    turned = [(height, width) for (width, height), _ in maps]
    matrix = torch.tensor([matrix for _, matrix in maps], dtype=torch.float64, device=images.device)[..., None, None]
    x = torch.arange(max(width for _, width in turned), device=images.device)[None, :]
    y = torch.arange(max(height for height, _ in turned), device=images.device)[:, None]
    x, y = (matrix[:, axis, 0] * x + matrix[:, axis, 1] * y + matrix[:, axis, 2] for axis in (0, 1))
    limits = torch.tensor(sizes, device=images.device)[..., None, None] - 1
    row, column = (
        torch.minimum(place.floor().long().clamp_(min=0), limit)
        for place, limit in ((y, limits[:, 0]), (x, limits[:, 1]))
    )
    return _at(images, row, column), turned


def _at(images: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """uint8 [N, 3, h, w]: the pixels at `row` and `column`, each [N, h, w]."""
    place = (row * images.shape[-1] + column).flatten(1)[:, None].expand(-1, 3, -1)
    return images.flatten(2).gather(2, place).view(len(images), 3, *row.shape[1:])


def contrast(images: Tensor, sizes: list[Size], parameters: Parameters) -> tuple[Tensor, list[Size]]:
    area = torch.tensor([height * width for height, width in sizes], device=images.device)
    mean = (_gray(images).sum(dim=(1, 2, 3)) / area.double() + 0.5).floor()  # black around an image adds nothing
    return _blend(images, mean.float().view(-1, 1, 1, 1), _each(parameters, "factor", images)), sizes


def saturation(images: Tensor, sizes: list[Size], parameters: Parameters) -> tuple[Tensor, list[Size]]:
    return _blend(images, _gray(images).float(), _each(parameters, "factor", images)), sizes


def encoding_quality(images: Tensor, sizes: list[Size], parameters: Parameters) -> tuple[Tensor, list[Size]]:
    return jpeg.round_trip(images, sizes, [int(own["quality"]) for own in parameters]), sizes


def grayscale(images: Tensor, sizes: list[Size], _: Parameters) -> tuple[Tensor, list[Size]]:
    return _gray(images).expand(-1, 3, -1, -1), sizes


def hflip(images: Tensor, sizes: list[Size], _: Parameters) -> tuple[Tensor, list[Size]]:
    return _select(
        images, sizes, [_shifted(height, 0) for height, _ in sizes], [_shifted(width, 0)[::-1] for _, width in sizes]
    ), sizes


def opacity(images: Tensor, sizes: list[Size], parameters: Parameters) -> tuple[Tensor, list[Size]]:
    alpha = (_each(parameters, "level", images).double() * 255).floor().float()
    return ((images * alpha + 255 * (255 - alpha)) / 255).round_().to(torch.uint8), sizes


def overlay_stripes(images: Tensor, sizes: list[Size], parameters: Parameters) -> tuple[Tensor, list[Size]]:
    masks = []
    for (height, width), own in zip(sizes, parameters, strict=True):
        if own["line_angle"] != 0 or own["line_opacity"] != 1.0:
            raise ValueError(
                "stripes are painted in whole rows here, as the recipe has them: set views.made_on=workers for others"
            )
        masks.append(np.flatnonzero(ops.stripe_mask(width, height, own["line_width"], 0, own["line_density"])[:, 0]))
    painted = images.clone()
    for image, rows, own in zip(painted, masks, parameters, strict=True):
        color = torch.tensor(own["line_color"], dtype=torch.uint8, device=images.device).view(3, 1, 1)
        image[:, torch.from_numpy(rows).to(images.device)] = color
    return painted, sizes


def pad(images: Tensor, sizes: list[Size], parameters: Parameters) -> tuple[Tensor, list[Size]]:
    border = [
        (int(height * own["h_factor"]), int(width * own["w_factor"]))
        for (height, width), own in zip(sizes, parameters, strict=True)
    ]
    grown = [(height + 2 * top, width + 2 * left) for (height, width), (top, left) in zip(sizes, border, strict=True)]
    rows, columns = (
        [_shifted(size[axis], -own[axis]) for size, own in zip(grown, border, strict=True)] for axis in (0, 1)
    )
    return _select(images, sizes, rows, columns, [own["color"] for own in parameters]), grown


def resize(images: Tensor, sizes: list[Size], parameters: Parameters) -> tuple[Tensor, list[Size]]:
    made = [(int(own["height"]), int(own["width"])) for own in parameters]
    return resized(images, sizes, made, Image.Resampling.BICUBIC), made


def random_crop(images: Tensor, sizes: list[Size], parameters: Parameters) -> tuple[Tensor, list[Size]]:
    made = [(int(own["size"][0]), int(own["size"][1])) for own in parameters]
    places = []
    for (height, width), size, own in zip(sizes, made, parameters, strict=True):
        pad_x, pad_y = ops.random_crop_padding(width, height, size)
        top, left = ops.place_crop(width + 2 * pad_x, height + 2 * pad_y, size, own["seed"])
        places.append((top - pad_y, left - pad_x))
    rows, columns = (
        [_shifted(size[axis], place[axis]) for size, place in zip(made, places, strict=True)] for axis in (0, 1)
    )
    return _select(images, sizes, rows, columns), made


def scale(images: Tensor, sizes: list[Size], parameters: Parameters) -> tuple[Tensor, list[Size]]:
    made = [scaled(size, own["factor"]) for size, own in zip(sizes, parameters, strict=True)]
    canvas = images.new_zeros(len(images), 3, max(height for height, _ in made), max(width for _, width in made))
    for shrinks, kind in ((True, Image.Resampling.LANCZOS), (False, Image.Resampling.BILINEAR)):
        group = [index for index, own in enumerate(parameters) if (own["factor"] < 1) is shrinks]
        if group:
            part = resized(images[group], [sizes[index] for index in group], [made[index] for index in group], kind)
            canvas[group, :, : part.shape[-2], : part.shape[-1]] = part
    return canvas, made


def sharpen(images: Tensor, sizes: list[Size], parameters: Parameters) -> tuple[Tensor, list[Size]]:
    values = torch.nn.functional.pad(images.float(), (1, 1, 1, 1))
    lines = values[..., :-2] + values[..., 1:-1] + values[..., 2:]
    smooth = (
        (lines[..., :-2, :] + lines[..., 1:-1, :] + lines[..., 2:, :] + 4 * values[..., 1:-1, 1:-1]) / 13 + 0.5
    ).floor_()
    limits = torch.tensor(sizes, device=images.device).view(-1, 2, 1, 1, 1) - 1
    row = torch.arange(images.shape[-2], device=images.device).view(1, 1, -1, 1)
    column = torch.arange(images.shape[-1], device=images.device).view(1, 1, 1, -1)
    # Pillow leaves the border as it is.
    inner = (row > 0) & (row < limits[:, 0]) & (column > 0) & (column < limits[:, 1])
    return _blend(images, smooth.where(inner, images.float()), _each(parameters, "factor", images)), sizes


def shuffle_pixels(images: Tensor, sizes: list[Size], parameters: Parameters) -> tuple[Tensor, list[Size]]:
    flat = images.flatten(2).clone()
    for image, (height, width), own in zip(flat, sizes, parameters, strict=True):
        moved = ops.shuffle_indices(height * width, own["factor"], own["seed"])
        targets, sources = (
            torch.from_numpy(index // width * images.shape[-1] + index % width).to(images.device) for index in moved
        )
        image[:, targets] = image[:, sources]
    return flat.view_as(images), sizes


def skew(images: Tensor, sizes: list[Size], parameters: Parameters) -> tuple[Tensor, list[Size]]:
    if any(own["axis"] != 0 for own in parameters):
        raise ValueError("rows are sheared here, as the recipe has it: set views.made_on=workers for axis 1")
    # Row y is the input's row shifted by s (y + 0.5) - s h / 2 pixels, linearly between its two neighbours.
    heights, widths = (
        torch.tensor([size[axis] for size in sizes], device=images.device).view(-1, 1, 1) for axis in (0, 1)
    )
    factor = torch.tensor([own["skew_factor"] for own in parameters], dtype=torch.float64, device=images.device).view(
        -1, 1, 1
    )
    row = torch.arange(images.shape[-2], device=images.device).view(1, -1, 1)
    position = torch.arange(images.shape[-1], device=images.device) + 0.5 + factor * (row + 0.5) - factor * heights / 2
    base = (position - 0.5).floor()
    weight = (position - 0.5 - base).float()[:, None]
    before, after = (
        _at(images, row.expand(base.shape), torch.minimum((base.long() + step).clamp_(min=0), widths - 1)).float()
        for step in (0, 1)
    )
    sheared = (before + (after - before) * weight) * ((position >= 0) & (position < widths))[:, None]
    return sheared.to(torch.uint8), sizes


BATCHED_OPS: Mapping[str, BatchedOp] = MappingProxyType({name: globals()[name] for name in ops.OPS})
