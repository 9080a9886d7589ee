"""Decoding against its reference: Pillow's convert("RGB") and torchvision's CenterCrop(224), every pixel."""

import csv
import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.examine.judged import decoded
from tests.odd_images import odd_images
from worker.errors import Rejected, RejectReason, SettingsError
from worker.examine.body import Body, cost
from worker.examine.headers import check_limits, peek, read
from worker.examine.picture import Picture
from worker.examine.pixels import central_region, try_pillow
from worker.settings import LimitSettings

TESTS = Path(__file__).parents[1]
GOLDEN = json.loads((TESTS / "golden" / "crops" / "cases.json").read_text())["center"]
# Pillow about damaged metadata; pytest undoes the filter of headers.py.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def body():
    body = Body("cpu")
    yield body
    body.close()


def reference(data: bytes) -> np.ndarray:
    """What the released detector looks at."""
    functional = pytest.importorskip(
        "torchvision.transforms.functional", reason="torchvision is in the train extra: make setup-all"
    )
    with Image.open(io.BytesIO(data)) as image:
        grey16 = image.mode.startswith("I;16")  # which Pillow would clip
        scaled = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if grey16 else image
        return np.asarray(functional.center_crop(scaled.convert("RGB"), [224, 224]))


def reference_or_none(data: bytes) -> np.ndarray | None:
    try:
        return reference(data)
    except Exception:  # noqa: BLE001 - the reference may raise anything
        return None


def decode_one(body: Body, data: bytes) -> np.ndarray | Rejected:
    try:
        check_limits(peek(data), LimitSettings(max_image_pixels=10_000_000))
    except Rejected as rejected:
        return rejected
    pixels, failures = decoded(body, [data])
    return failures.get(0, pixels[0])


def decodable(name: str) -> bool:
    """Whether the odd image gets as far as the decoder."""
    try:
        check_limits(peek(odd_images()[name].data), LimitSettings())
    except Rejected:
        return False
    return True


def sample_paths() -> list[str]:
    with (TESTS / "data" / "MANIFEST.csv").open(newline="") as file:
        return [row["relpath"] for row in csv.DictReader(file)]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["input"])
def test_golden_crops_are_reproduced(body, case):
    """The released detector's crops come out pixel for pixel, odd sizes and black borders included."""
    folder = TESTS / "golden" / "crops"
    expected = np.asarray(Image.open(folder / case["output"]).convert("RGB"))
    np.testing.assert_array_equal(decode_one(body, (folder / case["input"]).read_bytes()), expected)


def test_sample_images_equal_the_reference(body):
    """All sample images, in batches of mixed formats, equal the reference in every pixel."""
    data = [(TESTS / "data" / "images" / path).read_bytes() for path in sample_paths()]
    for start in range(0, len(data), 16):
        batch = data[start : start + 16]
        pixels, failures = decoded(body, batch)
        assert failures == {}
        np.testing.assert_array_equal(pixels, np.stack([reference(image) for image in batch]))


@pytest.mark.parametrize("name", [name for name in odd_images() if decodable(name)])
def test_odd_images_equal_the_reference_or_are_corrupt(body, name):
    """Every kind of odd image either equals the reference in every pixel or is rejected as corrupt by this stage."""
    odd = odd_images()[name]
    outcome = decode_one(body, odd.data)
    if odd.ok:
        np.testing.assert_array_equal(outcome, reference(odd.data))
    else:
        assert isinstance(outcome, Rejected)
        assert (outcome.reason, outcome.stage) == (RejectReason.CORRUPT, "decode")
        assert outcome.reason in odd.expect


def test_bad_images_cost_the_others_of_their_batch_nothing(body):
    """With every odd image in one batch, the bad ones fail alone and stay black, and the good ones equal the
    reference.
    """
    names = [name for name in odd_images() if decodable(name)]
    data = [odd_images()[name].data for name in names]
    pixels, failures = decoded(body, data)
    assert {names[i] for i in failures} == {name for name in names if not odd_images()[name].ok}
    for i, image in enumerate(data):
        np.testing.assert_array_equal(pixels[i], 0 if i in failures else reference(image))


@pytest.mark.parametrize(
    "name",
    [
        "truncated.jpg",
        "truncated-tail.jpg",
        "progressive-truncated.jpg",
        "truncated.png",
        "corrupted.png",
        "truncated.gif",
    ],
)
def test_damage_outside_the_crop_is_found(body, name):
    """Decoding only a region must not overlook that the rest of the file is missing or broken."""
    outcome = decode_one(body, odd_images()[name].data)
    assert isinstance(outcome, Rejected) and outcome.reason == RejectReason.CORRUPT


@pytest.mark.parametrize(
    "name",
    [
        "plain.jpg",
        "grey.jpg",
        "restarts.jpg",
        "trailing-garbage.jpg",
        "exif-rotated.jpg",
        "plain.png",
        "alpha.png",
        "palette.png",
    ],
)
def test_ordinary_images_take_the_fast_way(name):
    """The check that keeps DALI exact does not send ordinary images the slow way."""
    data = odd_images()[name].data
    assert read(data).picture.exact


@pytest.mark.parametrize(
    "name",
    ["cmyk-plain.jpg", "truncated-tail.jpg", "grey-16-bit.png", "rgb-16-bit.png", "grey-16-bit.tiff", "palette.tiff"],
)
def test_what_dali_decodes_differently_goes_to_pillow(name):
    """Kinds that DALI is known to decode differently, or to accept where Pillow does not, are left to Pillow."""
    data = odd_images()[name].data
    assert not read(data).picture.exact


def test_an_image_that_dali_refuses_gets_a_second_opinion(body):
    """A PNG with a wrong checksum, which DALI alone refuses, is decoded."""
    data = odd_images()["broken-crc.png"].data
    assert read(data).picture.exact
    with pytest.raises(Exception, match=r".+"):
        body._dali([dataclasses.replace(read(data).picture, data=data)])
    np.testing.assert_array_equal(decode_one(body, data), reference(data))


MUTABLE = [image.data for name, image in odd_images().items() if image.ok and 0 < len(image.data) < 60_000]


@settings(max_examples=250, deadline=None)
@given(
    seed=st.sampled_from(MUTABLE),
    where=st.floats(0, 1),
    cut=st.sampled_from([0, 1, 2, 100, 3000]),
    insert=st.one_of(st.binary(max_size=8), st.binary(min_size=100, max_size=100)),
    end=st.sampled_from([None, None, None, -1, -40, -900]),
)
def test_damaged_images_are_judged_as_pillow_judges_them(body, seed, where, cut, insert, end):
    """A damaged image is accepted where Pillow accepts it, and then has Pillow's pixels.

    More is accepted than by Pillow where the damage is in what is not looked at.
    """
    at = int(where * len(seed))
    data = (seed[:at] + insert + seed[at + cut :])[:end]
    outcome = decode_one(body, data)
    if isinstance(outcome, Rejected):
        on_purpose = outcome.reason == RejectReason.TOO_MANY_PIXELS or "a tile of" in outcome.detail
        if not on_purpose:
            assert reference_or_none(data) is None
    elif (expected := reference_or_none(data)) is not None:
        np.testing.assert_array_equal(outcome, expected)


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_the_region_is_inside_the_image_and_central(width, height):
    """The region fills the crop or the image, and lies in the middle, half pixels rounded to even."""
    left, top, region_width, region_height = central_region(width, height)
    assert (region_width, region_height) == (min(width, 224), min(height, 224))
    assert 0 <= left <= width - region_width and 0 <= top <= height - region_height
    assert left == (round((width - 224) / 2) if width > 224 else 0)
    assert abs(left - (width - region_width) / 2) <= 0.5 and abs(top - (height - region_height) / 2) <= 0.5


def test_without_dali_pillow_decodes_everything(monkeypatch):
    """Where DALI cannot be imported the same pixels come through Pillow."""
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    data = [odd_images()[name].data for name in ("plain.jpg", "truncated.jpg", "alpha.png", "plain.webp")]
    slow = Body("cpu")
    pixels, failures = decoded(slow, data)
    assert slow.decoder == "pillow" and set(failures) == {1}
    np.testing.assert_array_equal(pixels[[0, 2, 3]], np.stack([reference(data[i]) for i in (0, 2, 3)]))


@pytest.mark.slow
def test_a_decoder_brings_no_torch_along():
    """Torch stays out of the worker's process also where it is installed, and can be imported there afterwards."""
    script = "import sys; from worker.examine.body import Body; print(Body('cpu').decoder, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=TESTS.parent, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["cpu", "False"]


def test_a_gpu_that_is_asked_for_and_missing_is_a_wrong_setting(monkeypatch):
    """device=gpu without DALI stops, instead of decoding slowly without a word."""
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(SettingsError, match="DALI cannot be imported"):
        Body("gpu")


def test_an_image_that_opens_in_another_size_is_corrupt():
    """A decoder that sees another size than the header said gives no pixels, whatever it decodes."""
    for name in ("plain.gif", "plain.webp", "progressive.jpg"):
        picture = read(odd_images()[name].data).picture
        outcome = try_pillow(dataclasses.replace(picture, width=picture.width + 1))
        assert isinstance(outcome, Rejected) and "its header was read as other" in outcome.detail


def test_no_other_format_is_opened():
    """Bytes of another format than the header said are corrupt, though Pillow knows them."""
    picture = read(odd_images()["plain.gif"].data).picture
    outcome = try_pillow(dataclasses.replace(picture, data=odd_images()["plain.png"].data))
    assert isinstance(outcome, Rejected) and "not a GIF file" in outcome.detail


def test_an_image_one_pixel_wide_is_known_to_take_memory_for_its_rows():
    """What is reserved counts the rows too: there may be as many as pixels."""
    wide, tall = (Picture("png", "PNG", *size, b"") for size in ((10_000, 10_000), (1, 100_000_000)))
    more = cost(tall, by_dali=False).decoded_bytes - cost(wide, by_dali=False).decoded_bytes
    assert more >= 8 * 99_990_000
    assert cost(tall, by_dali=False).effort_ms == cost(wide, by_dali=False).effort_ms
