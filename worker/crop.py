"""What models look at: the central crop of `code`, the views of other detectors, and the memory that batches lie in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

CROP_PX = 224
CROP_BYTES = CROP_PX * CROP_PX * 3
MAX_VIEW_PX = 1024  # of a side; a row of a batch is then 3 MB
MAX_CROPS = 16
CROPS = ("grid", "texture")
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
Pixels = npt.NDArray[np.uint8]
"""uint8 [..., H, W, 3], RGB; H = W = 224 for `code`."""


class Lease(Protocol):
    """Memory that somebody reads: given back once, when nobody does any more."""

    def release(self) -> None: ...


@dataclass(frozen=True, slots=True)
class View:
    """How an image becomes the pixels of one detector: torchvision's Resize, then CenterCrop, on the RGB image.

    `shorter`: the shorter side's new length; `to`: new height and width, whatever the ratio was; at most one of both.
    `crops`: instead of the central crop several of them at native size, one below the other: `("grid", 4)` from corner
    to corner, `("texture", 4)` those with most fine detail (worker/examine/crops.py).
    """

    shorter: int | None = None
    to: tuple[int, int] | None = None
    interpolation: str = "bicubic"
    crop: int | None = CROP_PX
    crops: tuple[str, int] | None = None

    @classmethod
    def parse(cls, text: str) -> View:
        """A model's parameter `view`. Raises ValueError that says what is expected."""
        try:
            fields = json.loads(text)
        except ValueError:
            raise ValueError(f"{text[:80]!r} is no JSON") from None
        known = {"resize", "interpolation", "crop", "crops"}
        if not isinstance(fields, dict) or fields.keys() - known:
            raise ValueError(f"an object of {', '.join(sorted(known))} is expected")
        resize, interpolation = fields.get("resize"), fields.get("interpolation", "bicubic")
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation {interpolation!r} is none of {', '.join(INTERPOLATIONS)}")
        crop = None if fields.get("crop") is None else _side("crop", fields["crop"])
        crops = None if fields.get("crops") is None else _crops(fields["crops"])
        if crops is not None and (resize is not None or crop is None):
            raise ValueError("crops are of the image at its native size: resize is null, crop a number of pixels")
        if resize is None and crop is not None:
            return cls(None, None, interpolation, crop, crops)
        if isinstance(resize, dict) and resize.keys() == {"shorter"} and crop is not None:
            return cls(_side("shorter", resize["shorter"]), None, interpolation, crop)
        to = resize.get("to") if isinstance(resize, dict) and resize.keys() == {"to"} else None
        if isinstance(to, list) and len(to) == 2:
            return cls(None, (_side("to", to[0]), _side("to", to[1])), interpolation, crop)
        raise ValueError('resize is null or {"shorter": N}, with a crop, or {"to": [H, W]}')

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what comes out."""
        if self.crop is not None:
            return self.crop * (self.crops[1] if self.crops else 1), self.crop
        assert self.to is not None, "a view without a crop has a size"
        return self.to

    def to_json(self) -> str:
        """As in the parameter `view`."""
        resize: dict[str, Any] | None = None
        if self.shorter is not None:
            resize = {"shorter": self.shorter}
        elif self.to is not None:
            resize = {"to": list(self.to)}
        fields = {"resize": resize, "interpolation": self.interpolation, "crop": self.crop}
        return json.dumps(fields | ({"crops": f"{self.crops[0]}:{self.crops[1]}"} if self.crops else {}))


def _side(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_VIEW_PX:
        raise ValueError(f"{name} {value!r} is no number of pixels from 1 to {MAX_VIEW_PX}")
    return value


def _crops(value: object) -> tuple[str, int]:
    kind, _, number = value.partition(":") if isinstance(value, str) else ("", "", "")
    count = int(number) if number.isdecimal() and len(number) < 4 else 0
    square = kind != "grid" or round(count**0.5) ** 2 == count
    if kind not in CROPS or not 2 <= count <= MAX_CROPS or not square:
        raise ValueError(f"crops {value!r} is none of grid:4, grid:9, grid:16 and texture:2 to texture:{MAX_CROPS}")
    return kind, count
