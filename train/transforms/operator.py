"""The transform operator T: zero, one or two distinct ops of the 19, applied in the list's order.

Sampling is separate from applying, so that the same draws drive the PIL reference and the batched fast path, and so
that a view can be drawn again from its seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from train.transforms.ops import OPS

Step = tuple[str, dict[str, Any]]
GRID_POINTS = 5


def _grid(low: float, high: float) -> list[float]:
    # float32 as in the release (0.2 is 0.20000000298023224: int() of a product can differ by a pixel), counted from the
    # nearer end as torch.linspace does (1.4 is 1.4000000953674316). Written out so that a data worker needs no torch.
    start, end = np.float32(low), np.float32(high)
    step = (end - start) / np.float32(GRID_POINTS - 1)
    points = np.arange(GRID_POINTS, dtype=np.float32)
    values = np.where(points < GRID_POINTS // 2, start + step * points, end - step * points[::-1])
    return [float(value) for value in values]


def _uniform(name: str, low: float, high: float) -> Callable[[np.random.Generator], dict[str, Any]]:
    return lambda rng: {name: float(rng.uniform(low, high))}


def _choice(
    values: Iterable[dict[str, Any]], *, seeded: bool = False
) -> Callable[[np.random.Generator], dict[str, Any]]:
    options = list(values)

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        parameters = dict(options[int(rng.integers(len(options)))])
        return {**parameters, "seed": int(rng.integers(2**32))} if seeded else parameters

    return draw


_STRIPES = {
    "line_angle": 0,
    "line_color": [255, 255, 255],
    "line_opacity": 1.0,
    "line_density": 0.5,
    "line_type": "solid",
}
_CROP = {"pad_if_needed": True, "fill": 0, "padding_mode": "constant"}

# Ranges and grids of the released train.sh; each list op takes one of five evenly spaced values.
SAMPLERS: Mapping[str, Callable[[np.random.Generator], dict[str, Any]]] = {
    "blur": _uniform("radius", 0.1, 2),
    "brightness": _uniform("factor", 0.5, 2),
    "aspect_ratio": _uniform("ratio", 0.75, 2),
    "pixelization": _uniform("ratio", 0.3, 1),
    "rotation": _uniform("degrees", 90, 270),
    "contrast": _choice({"factor": value} for value in _grid(0.5, 1.5)),
    "saturation": _choice({"factor": value} for value in _grid(0.5, 1.5)),
    "encoding_quality": _choice({"quality": int(value)} for value in _grid(40, 100)),
    "grayscale": lambda _: {"mode": "luminosity"},
    "hflip": lambda _: {},
    "opacity": _choice({"level": value} for value in _grid(0.2, 1.0)),
    "overlay_stripes": _choice({"line_width": value, **_STRIPES} for value in _grid(0.05, 0.35)),
    "pad": _choice({"w_factor": value, "h_factor": value, "color": [0, 0, 0]} for value in _grid(0.01, 0.25)),
    "resize": _choice({"width": int(value), "height": int(value), "resample": 3} for value in _grid(64, 512)),
    "random_crop": _choice(({"size": [int(value), int(value)], **_CROP} for value in _grid(64, 512)), seeded=True),
    "scale": _choice({"factor": value, "interpolation": None} for value in _grid(0.5, 1.5)),
    "sharpen": _choice({"factor": value} for value in _grid(1.2, 2.0)),
    # The release reseeds NumPy with 42 on every call, which shuffles alike everywhere; here every draw has its own
    # seed.
    "shuffle_pixels": _choice(({"factor": value} for value in _grid(0.0, 0.35)), seeded=True),
    "skew": _choice({"skew_factor": value, "axis": 0} for value in _grid(-1, 1)),
}


class TransformOperator:
    """Draws and applies T. `max_ops` is the most ops of one draw: their number is uniform on 0..max_ops."""

    def __init__(self, max_ops: int = 2) -> None:
        if not 0 <= max_ops <= len(OPS):
            raise ValueError(f"max_ops is {max_ops}: expected 0 to {len(OPS)}")
        self.max_ops = max_ops
        self._names = list(OPS)

    def sample(self, rng: np.random.Generator) -> list[Step]:
        """Ops in order of application with their parameters."""
        count = int(rng.integers(0, self.max_ops + 1))
        if not count:
            return []
        chosen = sorted(int(index) for index in rng.choice(len(self._names), size=count, replace=False))
        return [(self._names[index], SAMPLERS[self._names[index]](rng)) for index in chosen]

    def apply(self, image: Image.Image, steps: Sequence[Step]) -> Image.Image:
        """`steps` applied one after another to a copy. Raises KeyError for an unknown op."""
        image = image.convert("RGB")
        for name, parameters in steps:
            image = OPS[name](image, **parameters)
        return image
