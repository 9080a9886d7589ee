"""Open watermarks, embedded here over the whole image by the published method, found in the crop; none where none
is.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.odd_images import odd_images
from worker.errors import Rejected
from worker.evidence import Evidence
from worker.examine.headers import peek
from worker.examine.pixels import CROP_PX, central_region
from worker.examine.provenance.reader import Crop, ProvenanceReader
from worker.examine.provenance.watermark import PAYLOADS, find, max_errors

DATA = Path(__file__).parents[2] / "data"
# In OpenCV's order blue, green, red.
TO_YUV = np.array([[0.114, 0.587, 0.299], [0.436, -0.289, -0.147], [-0.100, -0.515, 0.615]])
SDV1, SDV2, SDXL, FLUX = PAYLOADS


def embed(rgb, bits, *, floats):
    """The method "dwtDct" of invisible-watermark 0.2: one coefficient of each 4 x 4 block of U's Haar approximation."""
    yuv = rgb[..., ::-1].astype(float) @ TO_YUV.T + np.array([0, *((0.5, 0.5) if floats else (128, 128))])
    if not floats:
        yuv = np.clip(np.rint(yuv), 0, 255)
    height, width = rgb.shape[0] // 4 * 4, rgb.shape[1] // 4 * 4
    u = yuv[:height, :width, 1]
    approximation = (u[::2, ::2] + u[::2, 1::2] + u[1::2, ::2] + u[1::2, 1::2]) / 2
    number = 0
    for top in range(0, approximation.shape[0] // 4 * 4, 4):
        for left in range(0, approximation.shape[1] // 4 * 4, 4):
            block = approximation[top : top + 4, left : left + 4]
            row, column = divmod(int(np.argmax(np.abs(block.reshape(-1)[1:]))) + 1, 4)
            bit = bits[number % len(bits)]
            number += 1
            size = (abs(block[row, column]) // 36 + 0.25 + 0.5 * bit) * 36
            change = (size if block[row, column] >= 0 else -size) - block[row, column]
            u[2 * top + 2 * row : 2 * top + 2 * row + 2, 2 * left + 2 * column : 2 * left + 2 * column + 2] += (
                change / 2
            )
    bgr = (yuv - np.array([0, *((0.5, 0.5) if floats else (128, 128))])) @ np.linalg.inv(TO_YUV).T
    return np.clip(np.rint(bgr[..., ::-1]), 0, 255).astype(np.uint8)


def photograph(width, height):
    """Smooth colours with some texture, as photographs have."""
    rng = np.random.default_rng(width)
    smooth = Image.fromarray(rng.integers(40, 216, (6, 8, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return np.clip(np.asarray(smooth) + rng.normal(0, 4, (height, width, 1)), 0, 255).astype(np.uint8)


def crop(rgb):
    height, width = rgb.shape[:2]
    left, top, crop_width, crop_height = central_region(width, height)
    return rgb[top : top + crop_height, left : left + crop_width], left, top, width, height


@pytest.mark.parametrize("size", [(512, 512), (768, 512), (1000, 701), (512, 257)])
@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("payload", [SDV1, SDXL, FLUX], ids=["sd", "sdxl", "flux"])
def test_an_embedded_payload_is_found_in_the_crop(payload, floats, size):
    """Whether the generator embedded into bytes or floats, and wherever the crop begins."""
    marked = embed(photograph(*size), payload.bits, floats=floats)
    assert find(*crop(marked)) == payload.slug


def test_the_shortest_payload_is_found():
    """32 bits, of which a crop has 28 where the width is a multiple of 256: no error is allowed then."""
    assert find(*crop(embed(photograph(520, 512), SDV2.bits, floats=False))) == "stable-diffusion"


def test_channels_in_the_other_order_are_found():
    """diffusers took RGB for BGR until late 2023."""
    marked = embed(photograph(512, 512)[..., ::-1], SDXL.bits, floats=True)[..., ::-1]
    assert find(*crop(np.ascontiguousarray(marked))) == "sdxl"


@pytest.mark.parametrize("bits", [[0], [1], [0, 1], [int(bit) for bit in f"{0x5DEECE66D123:048b}"]])
def test_another_payload_is_none_of_these(bits):
    """What somebody else embeds by the same method is not one of the four."""
    assert find(*crop(embed(photograph(512, 512), bits, floats=False))) is None


def test_resizing_removes_it():
    """Positive evidence only: nothing found says nothing."""
    marked = Image.fromarray(embed(photograph(512, 512), SDXL.bits, floats=False))
    assert find(*crop(np.asarray(marked.resize((500, 500), Image.Resampling.BICUBIC)))) is None


@pytest.mark.parametrize("value", [0, 127, 255])
def test_flat_pictures_have_none(value):
    """One value everywhere votes alike for every bit."""
    assert find(*crop(np.full((512, 512, 3), value, np.uint8))) is None


def test_noise_has_none():
    """Hundreds of crops of random pixels; the bound says one in ten million."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        assert find(rng.integers(0, 256, (CROP_PX, CROP_PX, 3), np.uint8), 0, 0, 512, 512) is None


def test_the_bound_on_errors_is_that_of_coins():
    """The sum of the binomial tail stays below 1e-8, and one more error would not."""
    assert [max_errors(places) for places in (20, 26, 28, 32, 46, 48, 136)] == [-1, -1, 0, 1, 4, 5, 35]


def evidence_of(data):
    with Image.open(io.BytesIO(data)) as image:
        pixels, left, top, width, height = crop(np.asarray(image.convert("RGB")))
    return ProvenanceReader(None).read(data, peek(data).format, Crop(pixels, left, top, width, height))


def samples(label):
    with (DATA / "MANIFEST.csv").open(encoding="utf-8", newline="") as lines:
        return [row["relpath"] for row in csv.DictReader(lines) if row["label"] == label]


@pytest.mark.parametrize("path", samples("real"))
def test_photographs_declare_nothing(path):
    """Cameras' and editors' metadata is no claim that a photograph was made otherwise, and no watermark is seen in
    it.
    """
    assert evidence_of((DATA / "images" / path).read_bytes()) == Evidence()


def test_odd_images_declare_nothing():
    """Rotated, animated, of 16 bits, with profiles: none of it is a mark."""
    for name, odd in odd_images().items():
        try:
            image_format = peek(odd.data).format
        except Rejected:
            continue
        assert ProvenanceReader(None).read(odd.data, image_format) == Evidence(), name
