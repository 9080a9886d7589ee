"""The fast path of the views: the same 19 ops and crops on uint8 tensors [N, 3, H, W], on the CPU or a GPU.

    images = to_tensor(pil_image)                     # [1, 3, H, W], channels last in memory
    view = tail(apply(images, steps), size=224)       # `steps` as drawn by TransformOperator.sample

On the CPU torch resizes uint8 with vector instructions, several times faster than Pillow, and OpenCV does the rest
(`cpu_kernels.py`); both differ from the reference by a grey level here and there. `tests/train/transforms/test_fast.py` compares
op by op, `train.main bench` measures the speed. Off the CPU, JPEG encoding goes through Pillow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from train.transforms import ops
from train.transforms.cpu_kernels import CPU_KERNELS
from train.transforms.crops import CROP_FRACTION, center_anchor, tail_size
from train.transforms.filters import gaussian_taps, rotation_map
from train.transforms.operator import Step

_MODES = {Image.Resampling.BICUBIC: "bicubic", Image.Resampling.BILINEAR: "bilinear", Image.Resampling.LANCZOS: "lanczos"}


def to_tensor(image: Image.Image | np.ndarray) -> Tensor:
    """uint8 [1, 3, H, W], channels last in memory, from a PIL image of any mode or uint8 [H, W, 3]."""
    pixels = np.array(image if not isinstance(image, Image.Image) or image.mode == "RGB" else image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def to_images(images: Tensor) -> list[Image.Image]:
    """The PIL images of uint8 [N, 3, H, W]."""
    return [Image.fromarray(pixels) for pixels in images.permute(0, 2, 3, 1).contiguous().cpu().numpy()]


def apply(images: Tensor, steps: Sequence[Step]) -> Tensor:
    """`steps` one after another on every image of the batch. Raises KeyError for an unknown op."""
    for name, parameters in steps:
        if images.device.type == "cpu" and name in CPU_KERNELS:
            pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
            images = torch.from_numpy(_stack([CPU_KERNELS[name](image, **parameters) for image in pixels])).permute(0, 3, 1, 2)
        else:
            images = FAST_OPS[name](images, **parameters)
    return images


def _stack(images: list[np.ndarray]) -> np.ndarray:
    return images[0][None] if len(images) == 1 else np.stack(images)


def interpolate(images: Tensor, height: int, width: int, resample: Image.Resampling = Image.Resampling.BICUBIC) -> Tensor:
    """Resize with anti-aliasing, Pillow's filters and rounding."""
    if images.shape[-2:] == (height, width):
        return images
    if images.is_cuda:  # no uint8 kernel there
        resized = F.interpolate(images.float(), (height, width), mode=_MODES[resample], antialias=True)
        return _to_bytes(resized.round_())
    return F.interpolate(images, (height, width), mode=_MODES[resample], antialias=True)


def resized_crop(images: Tensor, top: int, left: int, height: int, width: int, size: int = 224) -> Tensor:
    """The box of every image, resized to `size` x `size` (bicubic)."""
    return interpolate(images[..., top : top + height, left : left + width], size, size)


def center_crop(images: Tensor, size: int = 224) -> Tensor:
    """The central `size` x `size`, black where the image is smaller; rounding as `crops.center_crop`."""
    height, width = images.shape[-2:]
    (pad_top, top), (pad_left, left) = center_anchor(height, size), center_anchor(width, size)
    crop = images[..., top : top + min(size, height), left : left + min(size, width)]
    return crop if crop.shape[-2:] == (size, size) else _on_canvas(crop, size, size, pad_top, pad_left)


def tail(images: Tensor, size: int = 224, *, resize: bool = True) -> Tensor:
    """The end of a training view: shorter side to floor(size / 0.9) and the centre, or (`resize` off) the centre alone."""
    if resize:
        width, height = tail_size(images.shape[-1], images.shape[-2], math.floor(size / CROP_FRACTION))
        images = interpolate(images, height, width)
    return center_crop(images, size)


def _to_bytes(values: Tensor) -> Tensor:
    return values.clamp_(0, 255).to(torch.uint8)


def _on_canvas(images: Tensor, height: int, width: int, top: int, left: int, fill: Sequence[int] = (0, 0, 0)) -> Tensor:
    canvas = torch.empty((len(images), height, width, 3), dtype=torch.uint8, device=images.device).permute(0, 3, 1, 2)
    for channel, value in enumerate(fill):
        canvas[:, channel].fill_(value)
    canvas[..., top : top + images.shape[-2], left : left + images.shape[-1]] = images
    return canvas


def _gray(images: Tensor) -> Tensor:
    """uint8 [N, 1, H, W]: Pillow's fixed-point luma."""
    red, green, blue = images.int().unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)[:, None]


def _blend(images: Tensor, other: Tensor | float, factor: float) -> Tensor:
    """Other + factor * (images - other), truncated and clipped as Image.blend does."""
    values = images.float()
    return _to_bytes(values.mul_(factor).add_(other * (1 - factor)))


def _per_image(images: Tensor, op: Callable[..., Image.Image], **parameters: Any) -> Tensor:
    return torch.cat([to_tensor(op(image, **parameters)) for image in to_images(images)]).to(images.device)


def _weighted_sum(padded: Tensor, taps: Sequence[float], dim: int, step: int, length: int) -> Tensor:
    """sum_k taps[k] * padded[k * step :][:length] along `dim`; shifted sums beat a depthwise convolution on the CPU."""
    total = padded.narrow(dim, 0, length) * taps[0]
    for index, tap in enumerate(taps[1:], start=1):
        total.add_(padded.narrow(dim, index * step, length), alpha=tap)
    return total


def _rows(images: Tensor) -> Tensor:
    """float32 [N, H, W * 3]: the interleaved rows as they lie in memory."""
    pixels = images.permute(0, 2, 3, 1)
    return pixels.float().reshape(*pixels.shape[:2], -1)


def _from_rows(rows: Tensor) -> Tensor:
    """uint8 [N, 3, H, W] from interleaved rows of whole numbers or more, clipped and truncated."""
    return _to_bytes(rows).reshape(*rows.shape[:2], -1, 3).permute(0, 3, 1, 2)


def blur(images: Tensor, radius: float = 2.0) -> Tensor:
    taps = gaussian_taps(radius)
    reach = len(taps) // 2
    rows = _rows(images)
    height, length = rows.shape[1:]
    rows = torch.cat([rows[:, :1].expand(-1, reach, -1), rows, rows[:, -1:].expand(-1, reach, -1)], dim=1)
    rows = _weighted_sum(rows, taps, 1, 1, height)
    rows = torch.cat([rows[..., :3].repeat(1, 1, reach), rows, rows[..., -3:].repeat(1, 1, reach)], dim=2)
    return _from_rows(_weighted_sum(rows, taps, 2, 3, length).round_())


def brightness(images: Tensor, factor: float = 1.0) -> Tensor:
    return _blend(images, 0.0, factor)


def aspect_ratio(images: Tensor, ratio: float = 1.0) -> Tensor:
    area = images.shape[-1] * images.shape[-2]
    width = max(1, int(math.sqrt(ratio * area)))
    return interpolate(images, max(1, int(area / width)), width)


def pixelization(images: Tensor, ratio: float = 1.0) -> Tensor:
    height, width = images.shape[-2:]
    return interpolate(interpolate(images, max(1, int(height * ratio)), max(1, int(width * ratio))), height, width)


def rotation(images: Tensor, degrees: float = 0.0) -> Tensor:
    if degrees % 90 == 0:
        return _per_image(images, ops.rotation, degrees=degrees)
    height, width = images.shape[-2:]
    (inner_width, inner_height), matrix = rotation_map(width, height, degrees)
    x = torch.arange(inner_width, dtype=torch.float64, device=images.device)[None, :]
    y = torch.arange(inner_height, dtype=torch.float64, device=images.device)[:, None]
    source_x = (matrix[0][0] * x + matrix[0][1] * y + matrix[0][2]).floor_().long().clamp_(0, width - 1)
    source_y = (matrix[1][0] * x + matrix[1][1] * y + matrix[1][2]).floor_().long().clamp_(0, height - 1)
    flat = images.permute(0, 2, 3, 1).reshape(len(images), height * width, 3)
    turned = flat.index_select(1, (source_y * width + source_x).flatten())
    return turned.reshape(len(images), inner_height, inner_width, 3).permute(0, 3, 1, 2)


def contrast(images: Tensor, factor: float = 1.0) -> Tensor:
    mean = (_gray(images).float().mean(dim=(1, 2, 3), keepdim=True) + 0.5).floor_()
    return _blend(images, mean, factor)


def saturation(images: Tensor, factor: float = 1.0) -> Tensor:
    return _blend(images, _gray(images).float(), factor)


def encoding_quality(images: Tensor, quality: int = 50) -> Tensor:
    return _per_image(images, ops.encoding_quality, quality=quality)


def grayscale(images: Tensor, mode: str = "luminosity") -> Tensor:
    if mode != "luminosity":
        raise ValueError(f"grayscale mode {mode!r}: the recipe has 'luminosity' only")
    return _gray(images).expand(-1, 3, -1, -1)


def hflip(images: Tensor) -> Tensor:
    return images.flip(-1)


def opacity(images: Tensor, level: float = 1.0) -> Tensor:
    alpha = int(255 * level) / 255
    return _to_bytes(images.float().mul_(alpha).add_(255 * (1 - alpha)).round_())


def overlay_stripes(
    images: Tensor,
    line_width: float = 0.5,
    line_angle: float = 0,
    line_color: Sequence[int] = (255, 255, 255),
    line_opacity: float = 1.0,
    line_density: float = 0.5,
    line_type: str = "solid",
) -> Tensor:
    if line_type != "solid" or line_opacity != 1.0 or line_angle != 0:
        style = {"line_angle": line_angle, "line_opacity": line_opacity, "line_density": line_density, "line_type": line_type}
        return _per_image(images, ops.overlay_stripes, line_width=line_width, line_color=line_color, **style)
    height, width = images.shape[-2:]
    # Horizontal stripes are whole rows, and the mask is the same in every column.
    rows = torch.from_numpy(ops.stripe_mask(width, height, line_width, line_angle, line_density)[:, 0].copy()).to(images.device)
    painted = images.permute(0, 2, 3, 1).clone()
    painted[:, rows] = torch.tensor(line_color, dtype=torch.uint8, device=images.device)
    return painted.permute(0, 3, 1, 2)


def pad(images: Tensor, w_factor: float = 0.25, h_factor: float = 0.25, color: Sequence[int] = (0, 0, 0)) -> Tensor:
    height, width = images.shape[-2:]
    left, top = int(width * w_factor), int(height * h_factor)
    return _on_canvas(images, height + 2 * top, width + 2 * left, top, left, color)


def resize(images: Tensor, width: int, height: int, resample: int = Image.Resampling.BICUBIC) -> Tensor:
    return interpolate(images, int(height), int(width), Image.Resampling(resample))


def random_crop(
    images: Tensor,
    size: int | Sequence[int],
    top: int | None = None,
    left: int | None = None,
    seed: int | None = None,
    *,
    pad_if_needed: bool = True,
    fill: int = 0,
    padding_mode: str = "constant",
) -> Tensor:
    if padding_mode != "constant":
        raise ValueError(f"padding_mode {padding_mode!r}: the recipe has 'constant' only")
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    pad_x, pad_y = ops.random_crop_padding(images.shape[-1], images.shape[-2], (height, width))
    if (pad_x or pad_y) and not pad_if_needed:
        raise ValueError(f"a crop of {width}x{height} does not fit: set pad_if_needed")
    if top is None or left is None:
        top, left = ops.place_crop(images.shape[-1] + 2 * pad_x, images.shape[-2] + 2 * pad_y, (height, width), seed)
    top, left = top - pad_y, left - pad_x  # in the image itself; outside it is the fill
    inside = images[..., max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)]
    if inside.shape[-2:] == (height, width):
        return inside
    return _on_canvas(inside, height, width, max(0, -top) if inside.shape[-2] else 0, max(0, -left) if inside.shape[-1] else 0, (fill, fill, fill))


def scale(images: Tensor, factor: float = 0.5, interpolation: int | None = None) -> Tensor:
    default = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BILINEAR
    height, width = max(1, int(images.shape[-2] * factor)), max(1, int(images.shape[-1] * factor))
    return interpolate(images, height, width, default if interpolation is None else Image.Resampling(interpolation))


def sharpen(images: Tensor, factor: float = 1.0) -> Tensor:
    rows = _rows(images)
    smooth = rows.clone()
    height, length = rows.shape[1:]
    if height > 2 and length > 6:  # Pillow leaves the border as it is
        box = _weighted_sum(rows, (1.0, 1.0, 1.0), 1, 1, height - 2)
        box = _weighted_sum(box, (1.0, 1.0, 1.0), 2, 3, length - 6).add_(rows[:, 1:-1, 3:-3], alpha=4)
        smooth[:, 1:-1, 3:-3] = box.div_(13).add_(0.5).floor_()
    return _from_rows(rows.mul_(factor).add_(smooth, alpha=1 - factor))


def shuffle_pixels(images: Tensor, factor: float = 1.0, seed: int = 0) -> Tensor:
    count, height, _, width = len(images), *images.permute(0, 2, 1, 3).shape[1:]
    targets, sources = (torch.from_numpy(indices).to(images.device) for indices in ops.shuffle_indices(height * width, factor, seed))
    pixels = images.permute(0, 2, 3, 1).reshape(count, height * width, 3).clone()
    pixels[:, targets] = pixels[:, sources]
    return pixels.reshape(count, height, width, 3).permute(0, 3, 1, 2)


def skew(images: Tensor, skew_factor: float = 0.5, axis: int = 0) -> Tensor:
    if skew_factor == 0:
        return images
    if axis != 0:
        return skew(images.transpose(-1, -2), skew_factor, 0).transpose(-1, -2)
    count, _, height, width = images.shape
    # Row y is the input's row shifted by s (y + 0.5) - s h / 2 pixels, linearly between its two neighbours.
    shift = skew_factor * (torch.arange(height, dtype=torch.float64, device=images.device)[:, None] + 0.5) - skew_factor * height / 2
    position = torch.arange(width, device=images.device)[None, :] + 0.5 + shift
    inside = ((position >= 0) & (position < width)).flatten()
    base = (position - 0.5).floor()
    weight = (position - 0.5 - base).float().view(1, -1, 1)
    row = torch.arange(height, device=images.device)[:, None] * width
    flat = images.permute(0, 2, 3, 1).reshape(count, height * width, 3)
    before = flat.index_select(1, (row + base.long().clamp(0, width - 1)).flatten()).float()
    after = flat.index_select(1, (row + (base.long() + 1).clamp(0, width - 1)).flatten()).float()
    sheared = (before + (after - before) * weight) * inside.view(1, -1, 1)
    return _to_bytes(sheared).reshape(count, height, width, 3).permute(0, 3, 1, 2)


FAST_OPS: Mapping[str, Callable[..., Tensor]] = MappingProxyType({name: globals()[name] for name in ops.OPS})
