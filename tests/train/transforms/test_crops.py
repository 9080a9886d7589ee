"""Crops against the released ones (tests/golden/crops) and their distribution."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from train.model import normalise
from train.transforms.crops import GLOBAL_SCALE, LOCAL_SCALE, center_crop, resize_tail, resized_crop, sample_box


def cases(golden: Path) -> dict:
    folder = golden / "crops"
    return json.loads(
        (folder / "views.json" if (folder / "views.json").exists() else folder / "cases.json").read_text()
    )


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_tail_matches_the_release(golden: Path) -> None:
    """Resize(248) + CenterCrop(224) gives the released pixels."""
    for case in cases(golden)["tail"]:
        actual = resize_tail(Image.open(golden / "crops" / case["input"]))
        assert actual.dtype == np.uint8 and actual.shape == (224, 224, 3)
        assert np.abs(actual - pixels(golden / "crops" / case["output_uint8"])).max() == 0


def test_resized_crop_matches_the_release(golden: Path) -> None:
    """A given box gives the released view, exactly or within what another Pillow does to mixed resizes."""
    for case in cases(golden)["random_resized_crop_explicit"]:
        actual = resized_crop(Image.open(golden / "crops" / case["input"]), case["i"], case["j"], case["h"], case["w"])
        delta = np.abs(np.asarray(actual) - pixels(golden / "crops" / case["output"]))
        assert delta.max() <= 16 and delta.mean() <= 0.5
        if case["other_version_diff"]["max_abs"] == 0:
            assert delta.max() == 0


def test_central_crop_matches_the_release(golden: Path) -> None:
    """The crop of inference: the released pixels exactly, black where the image is smaller, and normalised
    within 1e-6.
    """
    folder = golden / "crops"
    for case in json.loads((folder / "cases.json").read_text())["center"]:
        crop = center_crop(Image.open(folder / case["input"]))
        assert np.array_equal(crop, pixels(folder / case.get("output_uint8", case.get("output")))), case["input"]
        ready = normalise(torch.from_numpy(crop).permute(2, 0, 1)[None])[0].numpy()
        if "normalised_mean" in case:
            assert np.abs(ready.mean(axis=(1, 2), dtype=np.float64) - case["normalised_mean"]).max() < 1e-6
            assert np.abs(ready[0, 112, :8] - case["normalised_first_row_r"]).max() < 1e-6
        if case.get("output_normalised"):
            assert np.abs(ready - np.load(folder / case["output_normalised"])["normalised"]).max() < 1e-6


@pytest.mark.parametrize(("view", "scale"), [("global", GLOBAL_SCALE), ("local", LOCAL_SCALE)])
def test_boxes_follow_the_released_distribution(view: str, scale: tuple[float, float], golden: Path) -> None:
    """Mean area and mean log ratio of the boxes are the released ones within 0.01; they lie in the middle on average,
    as the released ones do.
    """
    facts = json.loads((golden / "crops" / "rrc_distribution.json").read_text())["distributions"][view]["per_image"]
    for size, expected in facts.items():
        width, height = (int(part) for part in size.split("x"))
        rng = np.random.default_rng(5)
        boxes = np.array([sample_box(width, height, scale, rng) for _ in range(8000)], dtype=float)
        assert np.mean(boxes[:, 2] * boxes[:, 3]) / (width * height) == pytest.approx(
            expected["area_fraction"]["mean"], abs=0.01
        )
        assert np.mean(np.log(boxes[:, 3] / boxes[:, 2])) == pytest.approx(
            expected["log_ratio_w_over_h"]["mean"], abs=0.01
        )
        for start, side, whole in ((0, 2, height), (1, 3, width)):
            free = boxes[whole - boxes[:, side] > 20]  # else there is hardly a choice
            if len(free) > 1000:
                assert np.mean(free[:, start] / (whole - free[:, side])) == pytest.approx(0.5, abs=0.03)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 2**32), st.sampled_from([GLOBAL_SCALE, LOCAL_SCALE]))
def test_boxes_lie_inside_the_image(width: int, height: int, seed: int, scale: tuple[float, float]) -> None:
    """Whatever the image's shape, the box is not empty and inside."""
    top, left, box_height, box_width = sample_box(width, height, scale, np.random.default_rng(seed))
    assert 0 < box_height <= height and 0 < box_width <= width
    assert 0 <= top <= height - box_height and 0 <= left <= width - box_width


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.integers(1, 500))
def test_center_crop_pads_and_rounds_as_torchvision_does(width: int, height: int) -> None:
    """Smaller axes are padded with black (floor before, ceil after), larger ones cut at round-half-even."""
    image = np.random.default_rng(width * 1000 + height).integers(1, 256, (height, width, 3), dtype=np.uint8)
    crop = center_crop(Image.fromarray(image))
    expected = np.zeros((224, 224, 3), np.uint8)
    pad_top, pad_left = max(0, (224 - height) // 2), max(0, (224 - width) // 2)
    padded = np.pad(
        image,
        ((pad_top, max(0, math.ceil((224 - height) / 2))), (pad_left, max(0, math.ceil((224 - width) / 2))), (0, 0)),
    )
    top, left = round((padded.shape[0] - 224) / 2), round((padded.shape[1] - 224) / 2)
    expected[:] = padded[top : top + 224, left : left + 224]
    assert np.array_equal(crop, expected)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16", "YCbCr"])
def test_center_crop_of_any_mode_is_convert_then_crop(mode: str) -> None:
    """Cropping before the conversion gives the pixels of converting first."""
    source = Image.effect_noise((301, 257), 80)
    image = (
        source.convert("RGB").convert(mode)
        if mode != "I;16"
        else Image.fromarray(np.asarray(source).astype(np.uint16) << 4)
    )
    assert np.array_equal(center_crop(image), center_crop(image.convert("RGB")))


@pytest.mark.parametrize("size", [96, 224])
def test_tail_fills_the_view_from_any_shape(size: int) -> None:
    """The tail resizes small images up, so that no black border is left."""
    for shape in ((10, 400), (400, 10), (37, 64), (1, 1)):
        view = resize_tail(Image.new("RGB", shape, (9, 9, 9)), size)
        assert view.shape == (size, size, 3) and view.min() == 9
