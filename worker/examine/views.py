"""A detector's view of a picture: torchvision's Resize and CenterCrop, by Pillow's own filters.

Only the part that the crop keeps is resampled, by the `box` of Pillow's resize: its filters read the pixels around the
box, so the result is that of the whole, and a picture of 1 x 100,000 pixels does not become one of 256 x 25,600,000.
Pictures are decoded whole: scaled decoding of a JPEG is another filter, and what a detector learnt on is this one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from worker.crop import Pixels, View
from worker.errors import Rejected
from worker.examine import crops
from worker.examine.picture import Picture
from worker.examine.pixels import Part, central_region, place, try_pillow


def make(picture: Picture, view: View, row: Pixels) -> None:
    """The view of `picture` into `row`, uint8 [H, W, 3] of zeros. Raises Rejected, MemoryError."""
    _fill((picture.width, picture.height), lambda part: _decoded(picture, part), view, row)


def of_pixels(pixels: Pixels, view: View) -> Pixels:
    """The view, uint8 [H, W, 3], of a picture uint8 [H, W, 3] that is decoded already: for who trains and measures."""
    row = np.zeros((*view.size, 3), np.uint8)

    def cut(part: Part) -> Pixels:
        left, top, width, height = part
        return pixels[top : top + height, left : left + width]

    _fill((pixels.shape[1], pixels.shape[0]), cut, view, row)
    return row


def _fill(size: tuple[int, int], decoded: Callable[[Part], Pixels], view: View, row: Pixels) -> None:
    """The view of a picture of `size` (width, height), of which `decoded` gives parts."""
    crop = view.crop
    if view.shorter is None and view.to is None:
        assert crop is not None, "a view has a size"
        if view.crops is not None:
            crops.make(decoded((0, 0, *size)), crop, *view.crops, row)
            return
        place(decoded(central_region(*size, crop)), row)
        return
    width, height = resized(*size, view)
    left, top, part_width, part_height = (0, 0, width, height) if crop is None else central_region(width, height, crop)
    whole = Image.fromarray(decoded((0, 0, *size)))
    across, down = size[0] / width, size[1] / height
    box = (left * across, top * down, (left + part_width) * across, (top + part_height) * down)
    filtered = whole.resize((part_width, part_height), Image.Resampling[view.interpolation.upper()], box)
    place(np.asarray(filtered), row)


def resized(width: int, height: int, view: View) -> tuple[int, int]:
    """Width and height behind the resize, as torchvision counts: the longer side rounded down."""
    if view.to is not None:
        return view.to[1], view.to[0]
    shorter = view.shorter
    assert shorter is not None, "this view resizes"
    longer = int(shorter * max(width, height) / min(width, height))
    return (shorter, longer) if width <= height else (longer, shorter)


def _decoded(picture: Picture, part: Part) -> Pixels:
    outcome = try_pillow(picture, part)
    if isinstance(outcome, Rejected):
        raise outcome
    return outcome
