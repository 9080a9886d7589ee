"""The eight views of a record: clean, transformed, global crop and local crop of its real and of one of its fakes.

Every view is drawn from (run seed, epoch, record id, view) alone, so that results depend neither on the number of data
workers nor on the order in which records are read. The same draws drive the PIL reference and the fast path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from train.losses import VIEWS, Terms
from train.recipe import Views
from train.transforms import fast
from train.transforms.crops import center_crop, resize_tail, resized_crop, sample_box
from train.transforms.operator import Step, TransformOperator
from train.transforms.ops import encoding_quality

Picture = Image.Image | np.ndarray  # the reference takes PIL images, the fast path uint8 [H, W, 3]


def view_rng(seed: int, epoch: int, record_id: str, view: str, occurrence: int = 0) -> np.random.Generator:
    """The generator of one view; `occurrence` counts how often a record came in an epoch that is longer than
    the data.
    """
    key = "\n".join([str(seed), str(epoch), str(occurrence), view, record_id])
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest(), "little"))


@dataclass(frozen=True)
class Plan:
    """What happens to one image for one view: a box resized to `size_px` (or None), T's steps, the tail."""

    box: tuple[int, int, int, int] | None
    steps: list[Step]
    size_px: int
    resize: bool


def views_needed(terms: Terms) -> tuple[str, ...]:
    """The views that these terms of the loss read."""
    return {"both": VIEWS, "global_only": VIEWS[:4], "multiscale_only": VIEWS[4:]}[terms]


def plan_view(
    view: str, width: int, height: int, recipe: Views, rng: np.random.Generator, ops: np.random.Generator | None = None
) -> Plan:
    """Draw one view of an image of `width` x `height` pixels. The clean views have neither crop nor ops; the crops get
    both, as released. `ops` draws the ops where they are shared with the other image, else `rng` does.
    """
    resize = recipe.tail == "resize248"
    if view in ("real", "fake"):
        return Plan(None, [], recipe.size_px, resize)
    operator = TransformOperator(recipe.max_ops)
    if view.endswith("_T"):
        return Plan(None, operator.sample(ops or rng), recipe.size_px, resize)
    local = view.endswith("_local")
    box = sample_box(width, height, recipe.local_scale if local else recipe.global_scale, rng)
    return Plan(box, operator.sample(ops or rng), recipe.local_size_px if local else recipe.size_px, resize)


def reference_view(image: Image.Image, plan: Plan) -> np.ndarray:
    """uint8 [S, S, 3] by the PIL reference."""
    if plan.box is not None:
        image = resized_crop(image, *plan.box, size=plan.size_px)
    image = TransformOperator().apply(image, plan.steps)
    return resize_tail(image, plan.size_px) if plan.resize else center_crop(image, plan.size_px)


def fast_view(pixels: np.ndarray, plan: Plan) -> np.ndarray:
    """uint8 [S, S, 3] of uint8 [H, W, 3] by the fast path."""
    if plan.box is not None:
        pixels = fast.resized_crop(pixels, *plan.box, size=plan.size_px)
    return fast.tail(fast.apply(pixels, plan.steps), plan.size_px, resize=plan.resize)


def plan_views(
    real: tuple[int, int],
    fake: tuple[int, int],
    record_id: str,
    recipe: Views,
    *,
    seed: int,
    epoch: int,
    occurrence: int = 0,
    terms: Terms = "both",
) -> dict[str, Plan]:
    """The draw of each view that `terms` needs, for images of these sizes (width, height)."""
    sizes = {"real": real, "fake": fake}

    def draw(name: str) -> np.random.Generator:
        return view_rng(seed, epoch, record_id, name, occurrence)

    return {
        view: plan_view(
            view,
            *sizes[class_of(view)],
            recipe,
            draw(view),
            draw(view.removeprefix(class_of(view))) if recipe.shared_ops else None,
        )
        for view in views_needed(terms)
    }


def with_history(image: Picture, recipe: Views, rng: np.random.Generator) -> Picture:
    """The image as it is once it has been saved as JPEG, at a quality that `rng` draws from `jpeg_history`."""
    if not recipe.jpeg_history:
        return image
    least, most = recipe.jpeg_history
    quality = int(rng.integers(least, most, endpoint=True))
    if isinstance(image, np.ndarray):
        return fast.encoding_quality(image, quality)
    return encoding_quality(image, quality)


def class_of(view: str) -> str:
    """`real` or `fake`."""
    return view.split("_", maxsplit=1)[0]


def make_views(real: Picture, fake: Picture, plans: Mapping[str, Plan]) -> dict[str, Tensor]:
    """uint8 [3, S, S] for each plan, channels last in memory; S is the recipe's `size_px`, or `local_size_px` for the
    local crops.

    Arrays (uint8 [H, W, 3]) take the fast path, PIL images the reference.
    """
    images = {"real": real, "fake": fake}
    made: dict[str, Tensor] = {}
    for view, plan in plans.items():
        name = class_of(view)
        if view != name and plan == plans.get(name):  # T drew no op: the clean view, which is made already
            made[view] = made[name]
            continue
        image = images[name]
        pixels = fast_view(image, plan) if isinstance(image, np.ndarray) else reference_view(image, plan)
        made[view] = torch.from_numpy(pixels).permute(2, 0, 1)
    return made
