"""The fast path against the PIL reference, op by op and view by view."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from train.recipe import Views
from train.transforms import OPS, fast
from train.transforms.crops import center_crop, resize_tail, resized_crop, tail_size
from train.transforms.operator import SAMPLERS
from train.transforms.views import (
    Picture,
    fast_view,
    make_views,
    plan_view,
    plan_views,
    reference_view,
    view_rng,
    views_needed,
    with_history,
)

# Mean difference in grey levels, and the share of values that differ by more than 2. Rotation: nearest neighbour in
# Pillow's fixed-point arithmetic picks the other pixel here and there. Blur: Pillow rounds after each of its three
# passes. Resizes that shrink one axis and stretch the other: Pillow orders the passes otherwise. Skew, sharpen,
# saturation: OpenCV rounds once at the end, Pillow truncates or rounds between.
TOLERANCE = {
    "blur": (0.8, 0.005),
    "rotation": (0.3, 0.01),
    "aspect_ratio": (0.5, 0.02),
    "resize": (0.4, 0.01),
    "skew": (0.6, 0.01),
    "sharpen": (0.5, 0.001),
    "saturation": (0.4, 0.0),
}


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth shapes with some noise: resampling differs from plain noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return Image.fromarray(
        np.clip(np.asarray(coarse).astype(int) + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)
    )


@pytest.mark.parametrize("name", list(OPS))
@pytest.mark.parametrize("size", [(200, 150), (333, 500), (224, 224)])
def test_op_equals_the_reference(name: str, size: tuple[int, int]) -> None:
    """Same size, and pixels within a stated mean difference, over several draws of the parameters; the input stays as
    it was.
    """
    mean_limit, share_limit = TOLERANCE.get(name, (0.1, 0.001))
    image = photo(*size)
    given = np.array(image)
    rng = np.random.default_rng(4)
    for _ in range(6):
        parameters = SAMPLERS[name](rng)
        expected = np.asarray(OPS[name](image, **parameters)).astype(int)
        actual = fast.FAST_OPS[name](given, **parameters)
        assert actual.dtype == np.uint8 and actual.shape == expected.shape, (name, parameters)
        delta = np.abs(actual.astype(int) - expected)
        assert delta.mean() <= mean_limit and (delta > 2).mean() <= share_limit, (
            name,
            parameters,
            delta.mean(),
            (delta > 2).mean(),
        )
    assert np.array_equal(given, np.asarray(image))


@pytest.mark.parametrize("name", list(OPS))
def test_op_takes_the_smallest_images(name: str) -> None:
    """An image of one pixel, one row or one column does not fail, and gets the reference's size."""
    for size in ((1, 1), (1, 40), (40, 1)):
        image, parameters = Image.new("RGB", size, (7, 8, 9)), SAMPLERS[name](np.random.default_rng(1))
        actual = fast.FAST_OPS[name](np.array(image), **parameters)
        assert (actual.shape[1], actual.shape[0]) == OPS[name](image, **parameters).size


def test_fast_ops_are_the_same_nineteen() -> None:
    """Both paths know the same ops in the same order."""
    assert list(fast.FAST_OPS) == list(OPS)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(512, 384), (150, 200), (224, 224), (37, 301), (224, 9000)])
def test_crops_equal_the_reference(size: tuple[int, int]) -> None:
    """Tail, central crop and resized crop agree with the PIL ones."""
    image = photo(*size)
    pixels = np.array(image)
    assert np.array_equal(fast.center_crop(pixels), center_crop(image))
    assert np.abs(fast.tail(pixels).astype(int) - resize_tail(image)).mean() < 0.02
    box = (3, 5, size[1] - 10, size[0] - 9)
    assert np.abs(fast.resized_crop(pixels, *box).astype(int) - np.asarray(resized_crop(image, *box))).mean() < 0.5


@pytest.mark.parametrize("size", [(512, 384), (150, 200), (248, 300), (37, 301), (301, 37), (1, 1), (5, 4000)])
def test_tail_is_the_centre_of_the_whole_resize(size: tuple[int, int]) -> None:
    """Resizing for the centre alone gives the pixels of resizing everything and cutting the centre out."""
    pixels = np.array(photo(*size))
    whole = fast.interpolate(pixels, *tail_size(*size, 248))
    assert np.array_equal(fast.tail(pixels), fast.center_crop(whole))


@pytest.mark.parametrize("tail", ["resize248", "native_crop"])
@pytest.mark.parametrize("local_size", [96, 224])
def test_views_of_both_paths_agree(tail: str, local_size: int) -> None:
    """All eight views of both paths show the same draw: the mean difference over a dozen records is below one grey
    level.
    """
    recipe = Views(tail=tail, local_size_px=local_size)
    images = {"real": photo(320, 240, 1), "fake": photo(256, 256, 2)}
    differences = []
    for index in range(12):
        for view in views_needed("both"):
            image = images[view.split("_")[0]]
            plan = plan_view(view, image.width, image.height, recipe, view_rng(1, 0, f"record-{index}", view))
            expected, actual = reference_view(image, plan), fast_view(np.array(image), plan)
            side = local_size if view.endswith("local") else 224
            assert actual.shape == expected.shape == (side, side, 3)
            differences.append(np.abs(actual.astype(int) - expected).mean())
    assert np.mean(differences) < 0.5 and np.max(differences) < 6


def made_views(real: Picture, fake: Picture, **changes: object) -> dict[str, torch.Tensor]:
    key = {"record_id": "a", "seed": 1, "epoch": 0} | changes
    sizes = [image.size if isinstance(image, Image.Image) else image.shape[1::-1] for image in (real, fake)]
    return make_views(real, fake, plan_views(*sizes, key.pop("record_id"), Views(), **key))


def test_views_depend_on_seed_epoch_record_and_view_only() -> None:
    """The same key gives the same pixels; another epoch, record, seed or occurrence gives others."""
    real, fake = photo(300, 200, 1), photo(256, 256, 2)

    def views(**changes: object) -> bytes:
        made = made_views(real, fake, **changes)
        assert list(made) == list(views_needed("both"))
        return made["real_local"].numpy().tobytes() + made["fake_global"].numpy().tobytes()

    assert views() == views()
    others = [views(epoch=1), views(seed=2), views(record_id="b"), views(occurrence=1)]
    assert len({views(), *others}) == 5


@pytest.mark.parametrize("as_given", [lambda image: image, np.array], ids=["reference", "fast"])
def test_a_transform_of_no_ops_is_the_clean_view(as_given: Callable[[Image.Image], Picture]) -> None:
    """A third of the transformed views are the clean one, and the others are not."""
    real, fake = as_given(photo(64, 48, 1)), as_given(photo(48, 64, 2))
    same = []
    for epoch in range(60):
        made = made_views(real, fake, epoch=epoch)
        plan = plan_views((64, 48), (48, 64), "a", Views(), seed=1, epoch=epoch)["real_T"]
        same.append(torch.equal(made["real"], made["real_T"]))
        assert same[-1] or plan.steps
    assert 10 <= sum(same) <= 35


def test_shared_ops_are_the_same_for_real_and_fake() -> None:
    """With `shared_ops` both images meet the same ops in each kind of view, and crops of their own; without they hardly
    ever do.
    """
    kinds = ("T", "global", "local")

    def same(recipe: Views) -> int:
        drawn = [plan_views((300, 200), (256, 256), "a", recipe, seed=1, epoch=epoch) for epoch in range(40)]
        pairs = [(plans[f"real_{kind}"], plans[f"fake_{kind}"]) for plans in drawn for kind in kinds]
        assert any(real.box != fake.box for real, fake in pairs)
        return sum(real.steps == fake.steps for real, fake in pairs)

    assert same(Views(shared_ops=True)) == 120
    assert same(Views()) < 60


@pytest.mark.parametrize("as_given", [lambda image: image, np.array], ids=["reference", "fast"])
def test_a_history_is_a_jpeg_of_one_quality(as_given: Callable[[Image.Image], Picture]) -> None:
    """The same draw is the same quality for both images; none without `jpeg_history`."""
    image = photo(64, 48, 1)
    recipe = Views(jpeg_history=(30, 30))
    saved = np.array(with_history(as_given(image), recipe, view_rng(1, 0, "a", "history")))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=30)
    assert np.abs(saved.astype(int) - np.array(Image.open(buffer))).mean() < 1
    assert np.abs(saved.astype(int) - np.array(image)).max() > 2
    given = as_given(image)
    assert with_history(given, Views(), view_rng(1, 0, "a", "history")) is given


def test_ablation_makes_only_the_views_it_needs() -> None:
    """global_only spares the crops, multiscale_only the transformed views."""
    real, fake = photo(100, 100, 1), photo(90, 100, 2)
    assert set(made_views(real, fake, terms="global_only")) == {"real", "fake", "real_T", "fake_T"}
    assert set(made_views(real, fake, terms="multiscale_only")) == set(views_needed("multiscale_only"))
