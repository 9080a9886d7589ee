"""The fast path of the views: the same 19 ops and crops on uint8 arrays [H, W, 3], one image at a time, for a data
process.

    view = tail(apply(pixels, steps), size=224)       # `steps` as drawn by TransformOperator.sample

torch's uint8 kernels resize several times faster than Pillow, OpenCV does the rest; both differ from the reference by a
grey level here and there. `tests/train/transforms/test_fast.py` compares op by op, `train.main bench` measures the
speed. Nothing here changes its input, but an op that has nothing to do returns it. On a GPU `batched.py` makes the
views of a whole batch at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import cv2
import numpy as np
import torch
from PIL import Image

from train.transforms import ops
from train.transforms.crops import CROP_FRACTION, center_anchor, tail_size
from train.transforms.filters import gaussian_taps, rotation_map
from train.transforms.operator import Step

cv2.setNumThreads(1)  # data processes are as many as there are cores
FastOp = Callable[..., np.ndarray]
# The kernels themselves: F.interpolate takes as long to get there as a small resize takes.
_RESIZERS = {
    Image.Resampling.BICUBIC: torch.ops.aten._upsample_bicubic2d_aa,  # noqa: SLF001 - there is no public name
    Image.Resampling.BILINEAR: torch.ops.aten._upsample_bilinear2d_aa,  # noqa: SLF001
    Image.Resampling.LANCZOS: torch.ops.aten._upsample_lanczos2d_aa,  # noqa: SLF001
}
_LUMA = np.array([0.299, 0.587, 0.114])
_TRUNCATE = -0.5 + 1e-4  # Pillow truncates where OpenCV rounds


def apply(pixels: np.ndarray, steps: Sequence[Step]) -> np.ndarray:
    """`steps` one after another. Raises KeyError for an unknown op."""
    for name, parameters in steps:
        pixels = FAST_OPS[name](pixels, **parameters)
    return pixels


def interpolate(
    pixels: np.ndarray, width: int, height: int, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> np.ndarray:
    """Resize with anti-aliasing: Pillow's filters, order of passes and rounding."""
    if pixels.shape[:2] == (height, width):
        return pixels
    # The kernel is fast for whole channels-last batches only: contiguous, and the batch's axis added before the
    # permutation.
    tensor = torch.from_numpy(np.ascontiguousarray(pixels))[None].permute(0, 3, 1, 2)
    resized: np.ndarray = _RESIZERS[resample](tensor, [height, width], False)[0].permute(1, 2, 0).numpy()
    return resized


def resized_crop(pixels: np.ndarray, top: int, left: int, height: int, width: int, size: int = 224) -> np.ndarray:
    """The box, resized to `size` x `size` (bicubic)."""
    return interpolate(pixels[top : top + height, left : left + width], size, size)


def center_crop(pixels: np.ndarray, size: int = 224) -> np.ndarray:
    """The central `size` x `size`, black where the image is smaller; rounding as `crops.center_crop`."""
    height, width = pixels.shape[:2]
    (pad_top, top), (pad_left, left) = center_anchor(height, size), center_anchor(width, size)
    crop = pixels[top : top + min(size, height), left : left + min(size, width)]
    return _bordered(crop, pad_top, size - pad_top - crop.shape[0], pad_left, size - pad_left - crop.shape[1])


def tail(pixels: np.ndarray, size: int = 224, *, resize: bool = True) -> np.ndarray:
    """The end of a training view: shorter side to floor(size / 0.9) and the centre, or (`resize` off) the
    centre alone.
    """
    height, width = pixels.shape[:2]
    resized_width, resized_height = tail_size(width, height, math.floor(size / CROP_FRACTION))
    if not resize or (resized_width, resized_height) == (width, height):
        return center_crop(pixels, size)
    # The two passes of the resize one by one, each for what the centre needs alone: the rows that the second pass
    # reads, and then the central columns. The other rows stay as they are in memory; what they become is cut away.
    top, left = center_anchor(resized_height, size)[1], center_anchor(resized_width, size)[1]
    scale = height / resized_height
    reach = 2 * max(scale, 1.0) + 1  # of the bicubic filter, in source pixels
    first, last = max(0, math.floor(top * scale - reach)), min(height, math.ceil((top + size) * scale + reach))
    across = np.empty((height, size, 3), dtype=np.uint8)
    across[first:last] = interpolate(pixels[first:last], resized_width, last - first)[:, left : left + size]
    return interpolate(across, size, resized_height)[top : top + size]


def _bordered(
    pixels: np.ndarray, top: int, bottom: int, left: int, right: int, color: Sequence[int] = (0, 0, 0)
) -> np.ndarray:
    if not (top or bottom or left or right):
        return pixels
    return cv2.copyMakeBorder(
        pixels, top, bottom, left, right, cv2.BORDER_CONSTANT, value=[int(value) for value in color]
    )


def blur(pixels: np.ndarray, radius: float = 2.0) -> np.ndarray:
    taps = np.array(gaussian_taps(radius), dtype=np.float32)
    return cv2.sepFilter2D(pixels, -1, taps, taps, borderType=cv2.BORDER_REPLICATE)


def brightness(pixels: np.ndarray, factor: float = 1.0) -> np.ndarray:
    return cv2.addWeighted(pixels, factor, pixels, 0, 0 if factor == 1 else _TRUNCATE)


def aspect_ratio(pixels: np.ndarray, ratio: float = 1.0) -> np.ndarray:
    area = pixels.shape[0] * pixels.shape[1]
    width = max(1, int(math.sqrt(ratio * area)))
    return interpolate(pixels, width, max(1, int(area / width)))


def pixelization(pixels: np.ndarray, ratio: float = 1.0) -> np.ndarray:
    height, width = pixels.shape[:2]
    return interpolate(interpolate(pixels, max(1, int(width * ratio)), max(1, int(height * ratio))), width, height)


def rotation(pixels: np.ndarray, degrees: float = 0.0) -> np.ndarray:
    if degrees % 90 == 0:
        return np.array(ops.rotation(Image.fromarray(pixels), degrees))
    height, width = pixels.shape[:2]
    size, matrix = rotation_map(width, height, degrees)
    to_centres = np.array(matrix) - [[0, 0, 0.5], [0, 0, 0.5]]
    return cv2.warpAffine(
        pixels, to_centres, size, flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
    )


def contrast(pixels: np.ndarray, factor: float = 1.0) -> np.ndarray:
    if factor == 1:
        return pixels
    mean = int(cv2.mean(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return cv2.addWeighted(pixels, factor, pixels, 0, mean * (1 - factor) + _TRUNCATE)


def saturation(pixels: np.ndarray, factor: float = 1.0) -> np.ndarray:
    if factor == 1:
        return pixels
    return cv2.transform(
        pixels, np.concatenate([factor * np.eye(3) + (1 - factor) * _LUMA, np.full((3, 1), _TRUNCATE)], axis=1)
    )


def encoding_quality(pixels: np.ndarray, quality: int = 50) -> np.ndarray:
    done, encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, int(quality)]
    )
    if not done:
        raise ValueError(f"JPEG of {pixels.shape[1]}x{pixels.shape[0]} at quality {quality} failed")
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB))


def grayscale(pixels: np.ndarray, mode: str = "luminosity") -> np.ndarray:
    if mode != "luminosity":
        raise ValueError(f"grayscale mode {mode!r}: the recipe has 'luminosity' only")
    return cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def hflip(pixels: np.ndarray) -> np.ndarray:
    return cv2.flip(pixels, 1)


def opacity(pixels: np.ndarray, level: float = 1.0) -> np.ndarray:
    alpha = int(255 * level)
    return cv2.convertScaleAbs(pixels, alpha=alpha / 255, beta=255 - alpha)


def overlay_stripes(
    pixels: np.ndarray,
    line_width: float = 0.5,
    line_angle: float = 0,
    line_color: Sequence[int] = (255, 255, 255),
    line_opacity: float = 1.0,
    line_density: float = 0.5,
    line_type: str = "solid",
) -> np.ndarray:
    if line_type != "solid" or line_opacity != 1.0 or line_angle != 0:
        striped = ops.overlay_stripes(
            Image.fromarray(pixels), line_width, line_angle, line_color, line_opacity, line_density, line_type
        )
        return np.array(striped)
    height, width = pixels.shape[:2]
    painted = pixels.reshape(height, -1).copy()
    # Horizontal stripes are whole rows: the mask is the same in every column.
    painted[ops.stripe_mask(width, height, line_width, 0, line_density)[:, 0]] = np.tile(
        np.array(line_color, np.uint8), width
    )
    return painted.reshape(height, width, 3)


def pad(
    pixels: np.ndarray, w_factor: float = 0.25, h_factor: float = 0.25, color: Sequence[int] = (0, 0, 0)
) -> np.ndarray:
    left, top = int(pixels.shape[1] * w_factor), int(pixels.shape[0] * h_factor)
    return _bordered(pixels, top, top, left, left, color)


def resize(pixels: np.ndarray, width: int, height: int, resample: int = Image.Resampling.BICUBIC) -> np.ndarray:
    return interpolate(pixels, int(width), int(height), Image.Resampling(resample))


def random_crop(
    pixels: np.ndarray,
    size: int | Sequence[int],
    top: int | None = None,
    left: int | None = None,
    seed: int | None = None,
    *,
    pad_if_needed: bool = True,
    fill: int = 0,
    padding_mode: str = "constant",
) -> np.ndarray:
    if padding_mode != "constant":
        raise ValueError(f"padding_mode {padding_mode!r}: the recipe has 'constant' only")
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    rows, columns = pixels.shape[:2]
    pad_x, pad_y = ops.random_crop_padding(columns, rows, (height, width))
    if (pad_x or pad_y) and not pad_if_needed:
        raise ValueError(f"a crop of {width}x{height} does not fit into {columns}x{rows}: set pad_if_needed")
    if top is None or left is None:
        top, left = ops.place_crop(columns + 2 * pad_x, rows + 2 * pad_y, (height, width), seed)
    padded = _bordered(pixels, pad_y, pad_y, pad_x, pad_x, (fill, fill, fill))
    return padded[top : top + height, left : left + width]


def scale(pixels: np.ndarray, factor: float = 0.5, interpolation: int | None = None) -> np.ndarray:
    default = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BILINEAR
    height, width = max(1, int(pixels.shape[0] * factor)), max(1, int(pixels.shape[1] * factor))
    return interpolate(pixels, width, height, default if interpolation is None else Image.Resampling(interpolation))


def sharpen(pixels: np.ndarray, factor: float = 1.0) -> np.ndarray:
    kernel = np.full((3, 3), (1 - factor) / 13)
    kernel[1, 1] = factor + 5 * (1 - factor) / 13
    made = cv2.filter2D(pixels, -1, kernel, delta=_TRUNCATE)
    for edge in (np.s_[:1], np.s_[-1:], np.s_[:, :1], np.s_[:, -1:]):  # Pillow leaves the border as it is
        made[edge] = pixels[edge]
    return made


def shuffle_pixels(pixels: np.ndarray, factor: float = 1.0, seed: int = 0) -> np.ndarray:
    height, width = pixels.shape[:2]
    targets, sources = ops.shuffle_indices(height * width, factor, seed)
    whole = (
        cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA).view(np.uint32).reshape(-1)
    )  # one number a pixel moves faster than three
    whole[targets] = whole.take(sources)
    return cv2.cvtColor(whole.view(np.uint8).reshape(height, width, 4), cv2.COLOR_RGBA2RGB)


def skew(pixels: np.ndarray, skew_factor: float = 0.5, axis: int = 0) -> np.ndarray:
    if skew_factor == 0:
        return pixels
    height, width = pixels.shape[:2]
    along_x = np.array([[1, skew_factor, 0.5 * skew_factor - skew_factor * height / 2], [0, 1, 0]], dtype=np.float64)
    along_y = np.array([[1, 0, 0], [skew_factor, 1, 0.5 * skew_factor - skew_factor * width / 2]], dtype=np.float64)
    four = cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA)  # OpenCV interpolates four channels twice as fast as three
    sheared = cv2.warpAffine(
        four, along_x if axis == 0 else along_y, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )
    return cv2.cvtColor(sheared, cv2.COLOR_RGBA2RGB)


FAST_OPS: Mapping[str, FastOp] = MappingProxyType({name: globals()[name] for name in ops.OPS})
