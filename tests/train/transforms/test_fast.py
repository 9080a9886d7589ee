"""The fast path against the PIL reference, op by op and view by view."""

import numpy as np
import pytest
import torch
from PIL import Image

from train.recipe import Views
from train.transforms import OPS, fast
from train.transforms.crops import center_crop, resize_tail, resized_crop
from train.transforms.operator import SAMPLERS
from train.transforms.views import fast_view, make_views, plan_view, reference_view, view_rng, views_needed

# Mean difference in grey levels, and the share of values that differ by more than 2. Rotation: nearest neighbour in Pillow's
# fixed-point arithmetic picks the other pixel here and there. Blur: Pillow rounds after each of its three passes. Resizes
# that shrink one axis and stretch the other: Pillow orders the passes otherwise. Skew, sharpen, saturation: OpenCV rounds once at
# the end, Pillow truncates or rounds between.
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
    coarse = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return Image.fromarray(np.clip(np.asarray(coarse).astype(int) + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8))


@pytest.mark.parametrize("name", list(OPS))
@pytest.mark.parametrize("size", [(200, 150), (333, 500), (224, 224)])
def test_op_equals_the_reference(name: str, size: tuple[int, int]) -> None:
    """Same size, and pixels within a stated mean difference, over several draws of the parameters."""
    mean_limit, share_limit = TOLERANCE.get(name, (0.1, 0.001))
    image = photo(*size)
    rng = np.random.default_rng(4)
    for _ in range(4):
        parameters = SAMPLERS[name](rng)
        expected = np.asarray(OPS[name](image, **parameters)).astype(int)
        tensor = fast.to_tensor(image)
        for actual in (fast.FAST_OPS[name](tensor, **parameters), fast.apply(tensor, [(name, parameters)])):
            assert actual.dtype == torch.uint8
            pixels = actual[0].permute(1, 2, 0).numpy().astype(int)
            assert pixels.shape == expected.shape, (name, parameters)
            delta = np.abs(pixels - expected)
            assert delta.mean() <= mean_limit and (delta > 2).mean() <= share_limit, (name, parameters, delta.mean(), (delta > 2).mean())


@pytest.mark.parametrize("name", list(OPS))
def test_op_treats_a_batch_as_its_images(name: str) -> None:
    """Every image of a batch comes out as it would alone, and the input stays as it was."""
    batch = torch.cat([fast.to_tensor(photo(64, 48, seed)) for seed in range(3)])
    before = batch.clone()
    parameters = SAMPLERS[name](np.random.default_rng(8))
    for op in (lambda images: fast.FAST_OPS[name](images, **parameters), lambda images: fast.apply(images, [(name, parameters)])):
        assert torch.equal(op(batch), torch.cat([op(batch[index : index + 1]) for index in range(3)]))
    assert torch.equal(batch, before)


@pytest.mark.parametrize("name", list(OPS))
def test_op_takes_the_smallest_images(name: str) -> None:
    """An image of one pixel, one row or one column does not fail, and gets the reference's size."""
    for size in ((1, 1), (1, 40), (40, 1)):
        image, parameters = Image.new("RGB", size, (7, 8, 9)), SAMPLERS[name](np.random.default_rng(1))
        for actual in (fast.FAST_OPS[name](fast.to_tensor(image), **parameters), fast.apply(fast.to_tensor(image), [(name, parameters)])):
            assert (actual.shape[-1], actual.shape[-2]) == OPS[name](image, **parameters).size


def test_fast_ops_are_the_same_nineteen() -> None:
    """Both paths know the same ops in the same order."""
    assert list(fast.FAST_OPS) == list(OPS)


@pytest.mark.parametrize("size", [(512, 384), (150, 200), (224, 224), (37, 301)])
def test_crops_equal_the_reference(size: tuple[int, int]) -> None:
    """Tail, central crop and resized crop agree with the PIL ones."""
    image = photo(*size)
    tensor = fast.to_tensor(image)
    assert np.array_equal(fast.center_crop(tensor)[0].permute(1, 2, 0).numpy(), center_crop(image))
    tail = fast.tail(tensor)[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(tail - resize_tail(image)).mean() < 0.1
    box = (3, 5, size[1] - 10, size[0] - 9)
    crop = fast.resized_crop(tensor, *box)[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(crop - np.asarray(resized_crop(image, *box))).mean() < 0.5


@pytest.mark.parametrize("tail", ["resize248", "native_crop"])
@pytest.mark.parametrize("local_size", [96, 224])
def test_views_of_both_paths_agree(tail: str, local_size: int) -> None:
    """All eight views of both paths show the same draw: the mean difference over a dozen records is below one grey level."""
    recipe = Views(tail=tail, local_size_px=local_size)
    images = {"real": photo(320, 240, 1), "fake": photo(256, 256, 2)}
    differences = []
    for index in range(12):
        for view in views_needed("both"):
            image = images[view.split("_")[0]]
            plan = plan_view(view, image.width, image.height, recipe, view_rng(1, 0, f"record-{index}", view))
            expected, actual = reference_view(image, plan), fast_view(fast.to_tensor(image), plan)[0]
            side = local_size if view.endswith("local") else 224
            assert actual.shape == expected.shape == (3, side, side)
            differences.append((actual.int() - expected.int()).abs().float().mean().item())
    assert np.mean(differences) < 0.5 and np.max(differences) < 6


def test_views_depend_on_seed_epoch_record_and_view_only() -> None:
    """The same key gives the same pixels; another epoch, record, seed or occurrence gives others."""
    real, fake = photo(300, 200, 1), photo(256, 256, 2)

    def views(**changes: object) -> bytes:
        key = {"record_id": "a", "seed": 1, "epoch": 0, "occurrence": 0} | changes
        made = make_views(real, fake, key["record_id"], Views(), seed=key["seed"], epoch=key["epoch"], occurrence=key["occurrence"])
        assert list(made) == list(views_needed("both"))
        return made["real_local"].numpy().tobytes() + made["fake_global"].numpy().tobytes()

    assert views() == views()
    others = [views(epoch=1), views(seed=2), views(record_id="b"), views(occurrence=1)]
    assert len({views(), *others}) == 5


def test_ablation_makes_only_the_views_it_needs() -> None:
    """global_only spares the crops, multiscale_only the transformed views."""
    real, fake = photo(100, 100, 1), photo(90, 100, 2)
    assert set(make_views(real, fake, "a", Views(), seed=0, epoch=0, terms="global_only")) == {"real", "fake", "real_T", "fake_T"}
    assert set(make_views(real, fake, "a", Views(), seed=0, epoch=0, terms="multiscale_only")) == set(views_needed("multiscale_only"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("name", list(OPS))
def test_op_on_a_gpu_equals_the_cpu(name: str) -> None:
    """A batch on the GPU gives the CPU's pixels within one grey level on average."""
    batch = torch.cat([fast.to_tensor(photo(200, 150, seed)) for seed in range(2)])
    parameters = SAMPLERS[name](np.random.default_rng(2))
    there, here = fast.FAST_OPS[name](batch.cuda(), **parameters).cpu(), fast.FAST_OPS[name](batch, **parameters)
    assert (there.int() - here.int()).abs().float().mean() < 1
