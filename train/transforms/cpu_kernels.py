"""The ops that OpenCV does several times faster than torch on a CPU: pointwise ones, small filters and warps.

Each takes and returns uint8 [H, W, 3] and gives the reference's pixels up to a rounding here and there; `fast.apply` uses them for
tensors on the CPU, `fast.FAST_OPS` stands for every other device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
from PIL import Image

from train.transforms import ops
from train.transforms.filters import gaussian_taps, rotation_map

cv2.setNumThreads(1)  # data processes are as many as there are cores
Kernel = Callable[..., np.ndarray]
_LEVELS = np.arange(256, dtype=np.float64)
_LUMA = np.array([0.299, 0.587, 0.114])
_TRUNCATE = -0.5 + 1e-4  # Pillow truncates where OpenCV rounds


def _blend_table(other: float, factor: float) -> np.ndarray:
    """uint8 [256]: other + factor * (level - other), clipped and truncated as Image.blend does, in its float32."""
    values = np.float32(other) + np.float32(factor) * (_LEVELS.astype(np.float32) - np.float32(other))
    return np.clip(values, 0, 255).astype(np.uint8)


def blur(pixels: np.ndarray, radius: float = 2.0) -> np.ndarray:
    taps = np.array(gaussian_taps(radius))
    return cv2.sepFilter2D(pixels, -1, taps, taps, borderType=cv2.BORDER_REPLICATE)


def brightness(pixels: np.ndarray, factor: float = 1.0) -> np.ndarray:
    return cv2.LUT(pixels, _blend_table(0, factor))


def contrast(pixels: np.ndarray, factor: float = 1.0) -> np.ndarray:
    mean = int(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).mean() + 0.5)
    return cv2.LUT(pixels, _blend_table(mean, factor))


def saturation(pixels: np.ndarray, factor: float = 1.0) -> np.ndarray:
    matrix = np.concatenate([factor * np.eye(3) + (1 - factor) * _LUMA, np.full((3, 1), 0.0 if factor == 1 else _TRUNCATE)], axis=1)
    return cv2.transform(pixels, matrix)


def encoding_quality(pixels: np.ndarray, quality: int = 50) -> np.ndarray:
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    if not done:
        raise ValueError(f"JPEG of {pixels.shape[1]}x{pixels.shape[0]} at quality {quality} failed")
    return cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def opacity(pixels: np.ndarray, level: float = 1.0) -> np.ndarray:
    alpha = int(255 * level)
    return cv2.LUT(pixels, np.floor((_LEVELS * alpha + 255 * (255 - alpha)) / 255 + 0.5).astype(np.uint8))


def sharpen(pixels: np.ndarray, factor: float = 1.0) -> np.ndarray:
    kernel = np.full((3, 3), (1 - factor) / 13)
    kernel[1, 1] = factor + 5 * (1 - factor) / 13
    made = cv2.filter2D(pixels, -1, kernel, delta=_TRUNCATE)
    for edge in (np.s_[:1], np.s_[-1:], np.s_[:, :1], np.s_[:, -1:]):  # Pillow leaves the border as it is
        made[edge] = pixels[edge]
    return made


def rotation(pixels: np.ndarray, degrees: float = 0.0) -> np.ndarray:
    if degrees % 90 == 0:
        return np.asarray(ops.rotation(Image.fromarray(pixels), degrees))
    height, width = pixels.shape[:2]
    size, matrix = rotation_map(width, height, degrees)
    to_centres = np.array(matrix) - [[0, 0, 0.5], [0, 0, 0.5]]
    return cv2.warpAffine(pixels, to_centres, size, flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)


def skew(pixels: np.ndarray, skew_factor: float = 0.5, axis: int = 0) -> np.ndarray:
    height, width = pixels.shape[:2]
    along_x = np.array([[1, skew_factor, 0.5 * skew_factor - skew_factor * height / 2], [0, 1, 0]], dtype=np.float64)
    along_y = np.array([[1, 0, 0], [skew_factor, 1, 0.5 * skew_factor - skew_factor * width / 2]], dtype=np.float64)
    return cv2.warpAffine(pixels, along_x if axis == 0 else along_y, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def grayscale(pixels: np.ndarray, mode: str = "luminosity") -> np.ndarray:
    if mode != "luminosity":
        raise ValueError(f"grayscale mode {mode!r}: the recipe has 'luminosity' only")
    return cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def shuffle_pixels(pixels: np.ndarray, factor: float = 1.0, seed: int = 0) -> np.ndarray:
    height, width = pixels.shape[:2]
    targets, sources = ops.shuffle_indices(height * width, factor, seed)
    whole: Any = pixels.copy().view("V3").reshape(-1)  # three bytes move as one
    whole[targets] = whole[sources]
    return whole.view(np.uint8).reshape(height, width, 3)


CPU_KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        kernel.__name__: kernel
        for kernel in (blur, brightness, contrast, saturation, encoding_quality, opacity, sharpen, rotation, skew, grayscale, shuffle_pixels)
    }
)
