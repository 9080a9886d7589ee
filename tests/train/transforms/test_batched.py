"""The batched path against the PIL reference: op by op on images of different sizes and parameters, and whole views."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from train.recipe import Views
from train.transforms import OPS, batched
from train.transforms.operator import SAMPLERS
from train.transforms.views import plan_views, reference_view

SIZES = [(200, 150), (64, 48), (150, 200), (1, 1), (1, 40), (224, 224)]
# Mean difference from the PIL reference in grey levels, and the share of values that differ by more than 2: see
# test_fast.py. JPEG is in floating point: where a coefficient lies between two steps of a coarse quantiser, fixed point
# may take the other one, and the whole block differs by a little.
TOLERANCE = {
    "blur": (0.9, 0.005),
    "rotation": (0.3, 0.01),
    "aspect_ratio": (0.5, 0.02),
    "resize": (0.4, 0.01),
    "scale": (0.15, 0.001),
    "encoding_quality": (1.2, 0.12),
}
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])


def photo(width: int, height: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return np.clip(np.asarray(coarse).astype(int) + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)


def to_device(image: np.ndarray, device: str) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).to(device)


def difference(actual: torch.Tensor, expected: np.ndarray) -> tuple[float, float]:
    pixels = actual.permute(1, 2, 0).cpu().numpy().astype(int)
    assert pixels.shape == expected.shape
    delta = np.abs(pixels - expected)
    return float(delta.mean()), float((delta > 2).mean())


@DEVICES
@pytest.mark.parametrize("name", list(OPS))
def test_op_gives_each_image_of_a_batch_its_own_parameters(name: str, device: str) -> None:
    """Images of six sizes with six draws on one canvas come out as the reference makes them; the input stays as
    it was.
    """
    mean_limit, share_limit = TOLERANCE.get(name, (0.05, 0.001))
    images = [photo(*size, seed) for seed, size in enumerate(SIZES)]
    for draw in range(3):
        rng = np.random.default_rng(draw)
        parameters = [SAMPLERS[name](rng) for _ in images]
        canvas = batched._canvas([to_device(image, device) for image in images], range(len(images)))
        before = canvas.clone()
        made, sizes = batched.BATCHED_OPS[name](canvas, [image.shape[:2] for image in images], parameters)
        assert torch.equal(canvas, before)
        assert made.dtype == torch.uint8 and made.device.type == device
        for index, (image, own) in enumerate(zip(images, parameters, strict=True)):
            height, width = sizes[index]
            expected = np.asarray(OPS[name](Image.fromarray(image), **own)).astype(int)
            mean, share = difference(made[index, :, :height, :width], expected)
            tiny = image.shape[0] * image.shape[1] < 100  # a single pixel is the whole mean
            assert mean <= (2 if tiny else mean_limit) and (tiny or share <= share_limit), (
                image.shape,
                own,
                mean,
                share,
            )


@pytest.mark.slow
@DEVICES
@pytest.mark.parametrize("tail", ["resize248", "native_crop"])
@pytest.mark.parametrize("local_size", [96, 224])
def test_views_of_a_batch_are_those_of_its_records(tail: str, local_size: int, device: str) -> None:
    """The eight views of records of different sizes are, within a grey level on average, what the reference makes of
    them.
    """
    recipe = Views(tail=tail, local_size_px=local_size)
    records = [
        {"real": photo(320, 240, 1), "fake": photo(256, 256, 2)},
        {"real": photo(100, 300, 3), "fake": photo(64, 64, 4)},
    ] * 4
    sizes = [[record[name].shape[1::-1] for name in ("real", "fake")] for record in records]
    plans = [plan_views(*sizes[index], f"record {index}", recipe, seed=3, epoch=0) for index in range(len(records))]
    views = batched.make_views(
        [{name: to_device(image, device) for name, image in record.items()} for record in records], plans
    )
    assert set(views) == set(plans[0])
    differences = []
    for name, made in views.items():
        side = local_size if name.endswith("local") else 224
        assert made.shape == (len(records), 3, side, side) and made.dtype == torch.uint8
        for index, record in enumerate(records):
            expected = reference_view(Image.fromarray(record[name.split("_")[0]]), plans[index][name])
            differences.append(difference(made[index], expected.astype(int))[0])
    assert np.mean(differences) < 0.3 and np.max(differences) < 5


def test_a_small_canvas_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch worked on in many parts gives the pixels of one worked on at once."""
    records = [{"real": photo(40 + index, 60, index), "fake": photo(64, 50 + index, index)} for index in range(6)]
    plans = [plan_views((40 + index, 60), (64, 50 + index), str(index), Views(), seed=0, epoch=0) for index in range(6)]
    make = partial(
        batched.make_views,
        [{name: to_device(image, "cpu") for name, image in record.items()} for record in records],
        plans,
    )
    whole = make()
    monkeypatch.setattr(batched, "CANVAS_PX", 5000)
    for name, views in make().items():
        assert (views.int() - whole[name].int()).abs().max() <= 1, name


@pytest.mark.parametrize("quality", [40, 55, 70, 85, 100])
@pytest.mark.parametrize("size", [(160, 128), (61, 93)])
def test_jpeg_is_what_an_encoder_does(quality: int, size: tuple[int, int]) -> None:
    """The round trip without entropy coding gives libjpeg's pixels, apart from its fixed-point rounding."""
    image = photo(*size, quality)
    made, _ = batched.encoding_quality(to_device(image, "cpu")[None], [image.shape[:2]], [{"quality": quality}])
    mean, share = difference(made[0], np.asarray(OPS["encoding_quality"](Image.fromarray(image), quality)).astype(int))
    assert mean < 0.8 and share < 0.1
