"""The 19 ops against outputs of the released code (tests/golden/transforms, tolerances in tests/golden/README.md)."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from train.transforms import OPS
from train.transforms.operator import SAMPLERS
from train.transforms.ops import largest_inscribed

# Resampling passes that shrink one axis and stretch the other changed order between Pillow 10 and 13.
RESAMPLED = {"aspect_ratio", "resize", "pixelization", "scale"}


def difference(actual: np.ndarray, expected: np.ndarray) -> tuple[int, float]:
    delta = np.abs(actual.astype(int) - expected.astype(int))
    return int(delta.max()), float(delta.mean())


def tolerance(name: str) -> tuple[int, float]:
    """Largest and mean difference in grey levels that another version of Pillow or libjpeg may cause."""
    return {"encoding_quality": (255, 1.0)}.get(name, (16, 0.5) if name in RESAMPLED else (0, 0.0))


def expected_pixels(folder: Path, row: dict[str, Any], output: Image.Image) -> tuple[np.ndarray, np.ndarray] | None:
    if "output" in row:
        return np.asarray(output), np.asarray(Image.open(folder / row["output"]).convert("RGB"))
    if "output_tiles" in row:
        tiles = Image.new("RGB", (288, 96))
        for index, box in enumerate(row["tile_boxes_xyxy"]):
            tiles.paste(output.crop(tuple(box)), (96 * index, 0))
        return np.asarray(tiles), np.asarray(Image.open(folder / row["output_tiles"]).convert("RGB"))
    return None


@pytest.mark.parametrize("name", list(OPS))
def test_op_gives_the_released_pixels(name: str, golden: Path) -> None:
    """Each op gives the released code's pixels: exactly, or within the stated tolerance where Pillow's resampling
    changed.
    """
    folder = golden / "transforms"
    rows = [row for row in json.loads((folder / "ops.json").read_text())["rows"] if list(OPS)[row["op_index"]] == name]
    assert rows
    for row in rows:
        image = Image.open(folder / row["input"])
        parameters = dict(row["params"])
        if name == "random_crop":
            parameters |= {"top": row["top_i"], "left": row["left_j"]}
        output = OPS[name](image, **parameters)
        assert output.mode == "RGB"
        assert list(output.size) == row["output_size_wh"], row["id"]
        pixels = np.asarray(output)
        if name == "shuffle_pixels":
            before, facts = np.asarray(image.convert("RGB")), row["stochastic"]
            changed = int((pixels != before).any(-1).sum())
            assert changed == pytest.approx(facts["n_visibly_changed"], rel=0.002, abs=5)
            assert changed <= facts["n_selected"]
            assert np.array_equal(np.sort(pixels.reshape(-1, 3), axis=0), np.sort(before.reshape(-1, 3), axis=0))
        elif hashlib.sha256(pixels.tobytes()).hexdigest() != row["output_sha256_rgb"]:
            pair = expected_pixels(folder, row, output)
            assert pair is not None, f"{row['id']}: other pixels than the release"
            largest, mean = tolerance(name)
            seen = difference(*pair)
            assert seen[0] <= largest and seen[1] <= mean, (row["id"], seen)


def test_there_are_nineteen_ops_in_the_released_order(golden: Path) -> None:
    """OPS holds exactly the 19, in the order in which T applies them."""
    rows = json.loads((golden / "transforms" / "ops.json").read_text())["rows"]
    released = [
        name for _, name in sorted({(row["op_index"], row["op"].lower().removeprefix("random")) for row in rows})
    ]
    assert [name.replace("_", "").removeprefix("random") for name in OPS] == released


@pytest.mark.parametrize("name", list(OPS))
def test_op_is_pure(name: str) -> None:
    """An op leaves its input and NumPy's global generator alone, and gives the same pixels when called again."""
    rng = np.random.default_rng(3)
    image = Image.fromarray(rng.integers(0, 256, (48, 80, 3), dtype=np.uint8))
    before, state = image.tobytes(), np.random.get_state()[1].copy()  # noqa: NPY002 - the legacy state is what must stay
    parameters = SAMPLERS[name](rng)
    first, second = OPS[name](image, **parameters), OPS[name](image, **parameters)
    assert first.tobytes() == second.tobytes()
    assert image.tobytes() == before
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.parametrize("name", list(OPS))
@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_op_takes_every_mode_and_size(name: str, mode: str) -> None:
    """An op makes RGB of any mode and does not fail on images of one pixel."""
    for size in ((1, 1), (3, 2)):
        assert OPS[name](Image.new(mode, size), **SAMPLERS[name](np.random.default_rng(0))).mode == "RGB"


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 2000), st.floats(0, 360))
def test_inscribed_rectangle_fits_inside_the_turned_image(width: int, height: int, degrees: float) -> None:
    """All corners of the inscribed rectangle lie within the turned rectangle, and it is not empty."""
    radians = np.radians(degrees)
    inner_width, inner_height = largest_inscribed(width, height, radians)
    assert inner_width > 0 and inner_height > 0
    for x, y in ((inner_width / 2, inner_height / 2), (inner_width / 2, -inner_height / 2)):
        turned_x, turned_y = x * np.cos(radians) + y * np.sin(radians), y * np.cos(radians) - x * np.sin(radians)
        assert abs(turned_x) <= width / 2 + 1e-6 * width and abs(turned_y) <= height / 2 + 1e-6 * height


def test_random_crop_needs_a_place() -> None:
    """A crop without position and seed is refused, with one it is reproducible."""
    image = Image.effect_noise((90, 70), 40).convert("RGB")
    with pytest.raises(ValueError, match="seed"):
        OPS["random_crop"](image, size=[64, 64])
    assert (
        OPS["random_crop"](image, size=64, seed=1).tobytes()
        == OPS["random_crop"](image, size=[64, 64], seed=1).tobytes()
    )
    assert OPS["random_crop"](image, size=64, seed=1).tobytes() != OPS["random_crop"](image, size=64, seed=2).tobytes()


def test_shuffle_seeds_differ() -> None:
    """Another seed shuffles other pixels."""
    image = Image.effect_noise((64, 64), 60).convert("RGB")
    assert (
        OPS["shuffle_pixels"](image, factor=0.2, seed=1).tobytes()
        != OPS["shuffle_pixels"](image, factor=0.2, seed=2).tobytes()
    )
